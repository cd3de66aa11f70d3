"""Passes of Global-Net over whole images, as the engines need them: folded once, layer by layer."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.errors import UserError
from glance_fast.kernels.partial_conv import partial_conv2d_inner
from glance_fast.kernels.window_conv import Unmasked, packed
from glance_fast.nets.masked import Level, MaskedNet, PartialBlock, PartialConvNorm

# What only holds layers; all else in a net must be a layer whose reach the plan knows.
CONTAINERS = (MaskedNet, Level, PartialBlock, nn.ModuleList)


class LayerWeights(NamedTuple):
    """Of one layer, BatchNorm folded in."""

    weight: Tensor  # [O, C, k, k], channels-last
    bias: Tensor  # [O]
    packed: Tensor | None  # the weight once more, as window_conv2d reads it fastest


Weights = list[LayerWeights]
# Of each net and dtype, with what they were made of.
_folded: WeakKeyDictionary[MaskedNet, dict[torch.dtype, tuple[list, Weights]]] = WeakKeyDictionary()


def check(net: MaskedNet) -> None:
    """Refuse a net whose layers are not all known: a place of a map could depend on far ones.

    Raises
    ------
    UserError
        It names what is not.
    """
    known: set[nn.Module] = set(net.head.modules())
    for layer in net.layers():
        norm = getattr(layer.module, "norm", None)
        if type(layer.module) is PartialConvNorm and type(norm) is nn.BatchNorm2d:
            known |= {layer.module, norm}
    for name, module in net.named_modules():
        if module not in known and type(module) not in CONTAINERS:
            raise UserError(
                f"engines dense and grouped: {name or 'the net'} ({type(module).__name__}) may let a patch "
                "change the whole map, and dense computes only what lies around it; use engine patchwise"
            )
    if net.training:
        raise UserError(
            "engines dense and grouped: BatchNorm in training depends on the whole image; call eval() first"
        )


def as_computed(x: Tensor) -> Tensor:
    """Images in the precision that is asked for (autocast's) and channels-last."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return x.contiguous(memory_format=torch.channels_last)


def folded(net: MaskedNet, dtype: torch.dtype) -> Weights:
    """The weights of ``net.layers()``; made once, and again when the net has changed.

    On a CPU the numbers themselves are compared. A device would have to be waited for: there torch's count of
    changes is, which a change through ``.data`` does not move.
    """
    state = [t for layer in net.layers() for t in (*layer.module.parameters(), *layer.module.buffers())]
    on_cpu = all(t.device.type == "cpu" for t in state)
    known, weights = _folded.setdefault(net, {}).get(dtype, ([], []))
    if on_cpu:
        same = len(known) == len(state) and all(map(torch.equal, known, state))
    else:
        # Tensors made in inference mode count nothing.
        tracked = not any(t.is_inference() for t in state)
        key = [(t.data_ptr(), t.device, t._version) for t in state] if tracked else []
        same = tracked and known == key
    if same:
        return weights
    with torch.inference_mode(False), torch.no_grad():
        layers = [[t.to(dtype) for t in layer.module.folded()] for layer in net.layers()]
        channels_last = [(w.contiguous(memory_format=torch.channels_last), b) for w, b in layers]
        weights = [LayerWeights(w, b, packed(w)) for w, b in channels_last]
        _folded[net][dtype] = [t.clone() for t in state] if on_cpu else key, weights
    return weights


def unmasked_layers(net: MaskedNet, x: Tensor, weights: Weights) -> list[Unmasked]:
    """What every layer makes of images [N, 3, H, W] without a hole; arguments as for ``layer_outputs``."""
    found: list[Unmasked] = []
    before = x
    for layer, (weight, bias, _) in zip(net.layers(), weights, strict=True):
        stride, padding = layer.module.stride, layer.module.padding
        # In float32, for sums of windows are added to it: products of bfloat16 are exact there.
        raw = F.conv2d(before.float(), weight.float(), None, stride, padding)
        ratio = border_ratio(tuple(before.shape[2:]), tuple(weight.shape[2:]), stride, padding, x.device)
        raw = raw.contiguous(memory_format=torch.channels_last)
        y = (raw * ratio).add_(bias.float()[:, None, None])
        if layer.residual:
            y += found[-2].out
        before = y.relu_().to(x.dtype)
        found.append(Unmasked(raw, before))
    return found


@lru_cache(maxsize=64)
def border_ratio(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, device: torch.device
) -> Tensor:
    """k_h k_w / sum(M) of Eq. 5 without holes, float32 [H', W']: 1 but where zero padding is seen."""
    ones = torch.ones(1, 1, *size, device=device)
    seen = F.conv2d(ones, torch.ones(1, 1, *kernel, device=device), None, stride, padding)[0, 0]
    return (kernel[0] * kernel[1]) / seen


def layer_outputs(net: MaskedNet, x: Tensor, holes: Tensor, weights: Weights) -> tuple[list[Tensor], Tensor]:
    """The input and the output of every layer, and the last one's holes.

    Parameters
    ----------
    net : MaskedNet
        In evaluation mode.
    x : Tensor
        Images [N, 3, H, W], 0 in their holes.
    holes : Tensor
        Int64 [N, K, 4], all K masked at once.
    weights : Weights
        From ``folded``, of the dtype of ``x``.
    """
    maps = [x]
    for layer, (weight, bias, _) in zip(net.layers(), weights, strict=True):
        stride, padding = layer.module.stride, layer.module.padding
        added = maps[-2] if layer.residual else None
        y, holes, _ = partial_conv2d_inner(maps[-1], weight, bias, holes, stride, padding, added, relu=True)
        maps.append(y)
    return maps, holes
