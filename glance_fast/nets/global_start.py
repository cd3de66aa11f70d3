"""Where Global-Net starts from: one body and a head for each patch size, learned on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.data.files import read_tensors, write_tensors
from glance_fast.nets.masked import masked_net
from glance_fast.nets.modules import channels_last

BODY = ("stem", "stages")


class GlobalStart(nn.Module):
    """Global-Nets as net "pyramid" has them by default, one a patch size, that share all but their heads.

    Parameters
    ----------
    patches : tuple of int
        Sides of the patches, pixels.

    Attributes
    ----------
    body : nn.ModuleDict
        ``stem`` and ``stages``, as in ``MaskedNet``.
    heads : nn.ModuleDict
        By patch size.
    """

    def __init__(self, patches: tuple[int, ...]) -> None:
        super().__init__()
        config = Config(net="pyramid")
        nets = {patch: masked_net(config, patch) for patch in patches}
        first = nets[patches[0]]
        for net in nets.values():
            net.stem, net.stages = first.stem, first.stages
        self.body = nn.ModuleDict({name: getattr(first, name) for name in BODY})
        self.heads = nn.ModuleDict({str(patch): net.head for patch, net in nets.items()})
        self._nets = nets
        channels_last(self)

    def forward(self, x: Tensor, holes: Tensor, patch: int) -> Tensor:
        """z_g for holes of one patch size, as ``MaskedNet`` gives it."""
        return self._nets[patch](x, holes)

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write it, matrices and kernels in half precision; ``notes`` are kept as the file's metadata."""
        state = {n: v.half() if v.dim() > 1 else v for n, v in self.state_dict().items()}
        write_tensors(path, state, notes)


def load_global_start(path: Path, patch: int) -> dict[str, Tensor]:
    """The state dictionary of a ``MaskedNet`` for ``patch`` out of what ``GlobalStart.save`` wrote."""
    tensors, _ = read_tensors(path, "a start of Global-Net comes from glance-fast distill --student global")
    head = f"heads.{patch}."
    state = {name.removeprefix("body."): v for name, v in tensors.items() if name.startswith("body.")}
    state |= {f"head.{name.removeprefix(head)}": v for name, v in tensors.items() if name.startswith(head)}
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}
