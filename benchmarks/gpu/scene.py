"""Where and how large the cases are that are timed, and what a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.costs.counts import Work
from glance_fast.geometry import PatchGrid

Inputs = dict[str, Any]
Version = Callable[[Inputs], Any]
SEQUENCE, COMPILED, PLAIN = "definition, eager", "definition, compiled", "conv2d alone"
WHOLE = "definition, whole maps"
# Our versions, and the backend or route of each.
OURS = {"ours": "cpu", "ours, one kernel": "triton", "ours, library and epilogue": "cudnn"}


@dataclass(frozen=True)
class Scene:
    """Where the cases run, and how large.

    Attributes
    ----------
    device : torch.device
        Of all tensors.
    dtypes : tuple of torch.dtype
        Of the convolutions; the first one for every layer, the others for one.
    ours : tuple of str
        Which of our versions, names in OURS.
    image, patch, stride : int
        The grid, pixels.
    width : int
        Channels of Global-Net.
    maps : int
        Images of a convolution's batch.
    windowed : int
        Images whose windows are computed at a time.
    images : int
        Images whose patches are scored, and whose maps are drawn, at a time.
    compiled : bool
        Whether to time ``torch.compile`` too.
    every_layer : bool
        Whether to take every layer, or one of each kernel, stride and addition.
    """

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    ours: tuple[str, ...]
    image: int = 256
    patch: int = 32
    stride: int = 8
    width: int = 64
    maps: int = 256
    windowed: int = 4
    images: int = 16
    compiled: bool = False
    every_layer: bool = True

    @property
    def grid(self) -> PatchGrid:
        """The patches."""
        return PatchGrid(self.image, self.image, self.patch, self.stride)

    def versions(
        self, operator: str, of: Callable[[str], Version], dtype: torch.dtype = torch.float32
    ) -> dict[str, Version]:
        """Our versions of an operator by name; ``of`` makes one of a backend."""
        # The interpreter gets products of bfloat16 wrong.
        wrong = self.device.type == "cpu" and dtype == torch.bfloat16 and interpreted()
        return {
            name: of(OURS[name])
            for name in self.ours
            if OURS[name] == "cpu" or (has_kernel(operator) and not wrong)
            if OURS[name] != "cudnn" or operator == "partial_conv"
        }


def on_gpu() -> Scene:
    """The default net on a CUDA device."""
    ours = ("ours, one kernel", "ours, library and epilogue")
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    return Scene(torch.device("cuda"), dtypes, ours, compiled=True)


def on_cpu() -> Scene:
    """The default net on a CPU."""
    dtypes = (torch.float32, torch.bfloat16)
    return Scene(torch.device("cpu"), dtypes, ("ours",), maps=8, windowed=1)


def tiny() -> Scene:
    """One layer of each kind on a CPU, Triton's kernels in its interpreter."""
    small = {"image": 64, "stride": 16, "width": 16, "maps": 2, "windowed": 1, "images": 2}
    ours = ("ours", *(("ours, one kernel",) if interpreted() else ()))
    return Scene(torch.device("cpu"), (torch.float32, torch.float16), ours, **small, every_layer=False)


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes
    ----------
    operator, shape, dtype : str
        What it is.
    work : Work
        Operations and bytes.
    draw : callable
        Inputs from a generator.
    exact : callable
        The answer in float64, a tensor or a tuple of them.
    versions : dict
        By name; each takes the inputs and returns what ``exact`` does.
    baseline : str
        The version that the others are compared with.
    ours : tuple of str
        Names of our versions.
    matrix : bool
        Whether the operations are products that the matrix units can do.
    pick : callable, optional
        What of a version's answer ``exact`` gives, where that would be too much.
    uncaptured : tuple of str
        Versions that no graph can hold: they wait for the host, or belong to autograd.
    """

    operator: str
    shape: str
    dtype: str
    work: Work
    draw: Callable[[torch.Generator], Inputs]
    exact: Version
    versions: dict[str, Version]
    baseline: str
    ours: tuple[str, ...]
    matrix: bool = True
    pick: Callable[[Inputs, Any], Any] = lambda inputs, found: found
    uncaptured: tuple[str, ...] = ()


def interpreted() -> bool:
    """Whether Triton's kernels can run without a GPU."""
    if find_spec("triton") is None:
        return False
    from glance_fast.kernels.dispatch import interpreting

    return interpreting()


def has_kernel(operator: str) -> bool:
    """Whether an operator has a Triton kernel in this version of the package."""
    return find_spec(f"glance_fast.kernels.{operator}.gpu") is not None


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal float32 on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device)


def upcast(inputs: Inputs) -> Inputs:
    """The same in float64, where it is floating point."""
    return {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }


def compiled(function: Callable) -> Callable:
    """``torch.compile`` of it, at fixed shapes."""
    # Functions of one definition share a cache, and when that is full torch silently stays eager.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
