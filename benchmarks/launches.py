"""The launches of the default net that ``ahead_of_time`` compiles: 256x256 pixels, patches of 32 at stride 8.

Only types, shapes and alignment matter here; no memory is touched. Each case calls a launcher of an
operator's ``gpu.py`` with tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from glance_fast.kernels.partial_conv import gpu as partial_conv_gpu

CASES: dict[str, Callable[[], Any]] = {}


def case(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function as the case ``name``."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name] = function
        return function

    return register


# partial_conv: 8 images of one hole each through the stem and a 3x3 layer, forward and backward.


def _partial_conv(layer: str, dtype: torch.dtype, library: bool) -> None:
    channels, outputs, size, kernel, stride, padding = {
        "stem": (3, 64, 256, 8, 4, 2),
        "3x3": (64, 64, 32, 3, 1, 1),
        "down": (64, 64, 64, 3, 2, 1),
    }[layer]
    x = torch.empty(8, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.empty(outputs, channels, kernel, kernel, dtype=dtype)
    bias = torch.empty(outputs, dtype=dtype)
    holes = torch.zeros(8, 1, 4, dtype=torch.int64)
    inner = layer != "stem"
    y, seen, _ = partial_conv_gpu.forward(x, weight, bias, None, holes, stride, padding, True, inner, library)
    if not library:
        needs = [inner, True, True]
        partial_conv_gpu.backward(y, x, weight, holes, seen, stride, padding, inner, needs, False)


for _layer in ("stem", "3x3", "down"):
    for _dtype in (torch.bfloat16, torch.float32):
        _name = f"partial_conv {_layer} {'bf16' if _dtype == torch.bfloat16 else 'fp32'}"
        case(_name)(partial(_partial_conv, _layer, _dtype, False))
case("partial_conv 3x3 bf16, after cuDNN")(partial(_partial_conv, "3x3", torch.bfloat16, True))


@case("partial_conv 3x3 bf16, masks")
def _partial_conv_masks() -> None:
    x = torch.empty(8, 64, 32, 32, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight = torch.empty(64, 64, 3, 3, dtype=torch.bfloat16)
    mask = torch.ones(8, 1, 32, 32)
    y, seen, _ = partial_conv_gpu.forward(x, weight, None, None, mask, 1, 1, False, False, False)
    partial_conv_gpu.backward(y, x, weight, mask, seen, 1, 1, False, [True] * 3, False)


# ---- window_conv: 8 images of 841 windows


def window_conv(
    dtype: torch.dtype,
    channels: int,
    kernel: int,
    stride: int,
    padding: int,
    maps: tuple[int, int],
    windows: tuple[int, int],
    residual: int = 0,
) -> None:
    """Launch a layer; sides of the maps and windows of its input and output, and of the residual's windows."""
    from glance_fast.kernels.window_conv import WindowedMap, window_conv2d_inner

    images, count, outputs = 8, 8 * 841, 64

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32)

    before, after = windows
    source = WindowedMap(empty(images, channels, maps[0], maps[0]))
    if before:
        source = source._replace(window=empty(count, channels, before, before), origins=integers(count, 2))
    added = None
    if residual:
        added = WindowedMap(
            empty(images, outputs, maps[1], maps[1]),
            empty(count, outputs, residual, residual),
            integers(count, 2),
        )
    window_conv2d_inner(
        source,
        empty(outputs, channels, kernel, kernel),
        torch.empty(outputs, dtype=dtype),
        integers(count, 4),
        integers(count),
        integers(count, 2),
        (after, after),
        stride,
        padding,
        added,
        relu=True,
        backend="triton",
    )


for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
    for layer, arguments in {
        "stem": (3, 8, 4, 2, (256, 64), (0, 10)),
        "down": (64, 3, 2, 1, (64, 32), (10, 6)),
        "block's first": (64, 3, 1, 1, (16, 16), (6, 8)),
        "block's second": (64, 3, 1, 1, (16, 16), (8, 10), 6),
    }.items():
        case(f"window_conv {layer}, {name}")(partial(window_conv, dtype, *arguments))
