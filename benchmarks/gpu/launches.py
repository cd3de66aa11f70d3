"""The launches of the default net that ``ahead_of_time`` compiles: 256x256 pixels, patches of 32 at stride 8.

Only types, shapes and alignment matter here; no memory is touched. Each case calls a launcher of an
operator's ``gpu.py`` with tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from glance_fast.kernels.idw import gpu as idw_gpu
from glance_fast.kernels.partial_conv import gpu as partial_conv_gpu
from glance_fast.kernels.patch_score import DistortionWeights
from glance_fast.kernels.patch_score import gpu as patch_score_gpu
from glance_fast.kernels.surround_conv import gpu as surround_conv_gpu
from glance_fast.kernels.window_conv import Unmasked, WindowedMap, window_conv2d_inner
from glance_fast.kernels.window_sample import window_sample_inner

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


# window_conv: 8 images of 841 windows; sides of the maps and windows as four layers have them.


def _window_conv(
    dtype: torch.dtype,
    channels: int,
    convolution: tuple[int, int, int],
    maps: tuple[int, int],
    windows: tuple[int, int],
    residual: int = 0,
) -> None:
    images, patches, outputs = 8, 841, 64
    count = images * patches

    def reals(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)

    def places(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32)

    def windowed(depth: int, side: int, window: int) -> WindowedMap:
        found = WindowedMap(reals(images, depth, side, side))
        if window:
            found = WindowedMap(found.base, reals(count, depth, window, window), places(patches, 2))
        return found

    kernel, stride, padding = convolution
    after = reals(images, outputs, maps[1], maps[1])
    window_conv2d_inner(
        windowed(channels, maps[0], windows[0]),
        Unmasked(after.float(), after),
        reals(outputs, channels, kernel, kernel),
        torch.empty(outputs, dtype=dtype),
        places(patches, 4),
        places(count),
        places(patches, 2),
        (windows[1], windows[1]),
        stride,
        padding,
        windowed(outputs, maps[1], residual) if residual else None,
        relu=True,
        backend="triton",
    )


for _layer, _shape, _names in (
    ("stem", (3, (8, 4, 2), (256, 64), (0, 10)), ("bfloat16", "float32")),
    ("down", (64, (3, 2, 1), (64, 32), (10, 6)), ("bfloat16",)),
    ("block's first", (64, (3, 1, 1), (16, 16), (6, 8)), ("bfloat16",)),
    ("block's second", (64, (3, 1, 1), (16, 16), (8, 10), 6), ("bfloat16", "float16", "float32")),
):
    for _name in _names:
        case(f"window_conv {_layer} {_name}")(partial(_window_conv, getattr(torch, _name), *_shape))


# window_sample: the ring of nine around a patch, from the map at stride 8.


def _window_sample(dtype: torch.dtype) -> None:
    images, patches, channels = 8, 841, 64
    last = {"memory_format": torch.channels_last}
    source = WindowedMap(
        torch.empty(images, channels, 32, 32, dtype=dtype).to(**last),
        torch.empty(images * patches, channels, 10, 10, dtype=dtype).to(**last),
        torch.empty(patches, 2, dtype=torch.int64),
    )
    index = torch.empty(images * patches, dtype=torch.int64)
    window_sample_inner(source, index, torch.empty(patches, 9, 2), "triton")


for _name in ("bfloat16", "float32"):
    case(f"window_sample {_name}")(partial(_window_sample, getattr(torch, _name)))


# surround_conv: the two rings around a hole of 7 x 7 patches and 16 far ones, and a grid of half the stride.


def _surround_conv(layer: str, dtype: torch.dtype, images: int, tf32: bool = True) -> None:
    size, *geometry = {
        "ring": (31, (11, 11), (7, 7), 1, (5, 5), ()),
        "ring and far": (31, (11, 11), (7, 7), 1, (5, 5), (8, 12)),
        "half stride": (31, (15, 15), (11, 11), 2, (6, 6), ()),
    }[layer]
    channels, outputs, (kernel, hole, *_, dilations) = 64, 128, geometry
    x = torch.empty(images, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.empty(outputs, channels, kernel[0] * kernel[1] - hole[0] * hole[1], dtype=dtype)
    far_weight = torch.empty(outputs, channels, 8 * len(dilations), dtype=dtype) if dilations else None
    bias = torch.empty(outputs, dtype=dtype)
    with torch.backends.cudnn.flags(allow_tf32=tf32):
        y = surround_conv_gpu.forward(x, weight, bias, far_weight, *geometry, True)
        needs = [True, True, True, bool(dilations)]
        surround_conv_gpu.backward(y, x, weight, far_weight, *geometry, needs)


for _layer, _dtype, _images in (
    ("ring", torch.bfloat16, 8),
    ("ring and far", torch.bfloat16, 64),
    ("half stride", torch.bfloat16, 64),
    ("ring and far", torch.float32, 64),
):
    _name = f"surround_conv {_layer} {str(_dtype).removeprefix('torch.')} {_images} images"
    case(_name)(partial(_surround_conv, _layer, _dtype, _images))
case("surround_conv ring and far float32 64 images, no tf32")(
    partial(_surround_conv, "ring and far", torch.float32, 64, tf32=False)
)


# patch_score: 841 patches of 128 features; whitening by position as the calibrated blend stores it.


def _patch_score(
    images: int, whitening: tuple[int, ...] | None, dtype: torch.dtype, features: int = 128
) -> None:
    patches, units = 841, features
    shapes = [(units, features)] * 3 + [(units,), (units, units), (units,), (units,), ()]
    patch_score_gpu.score_patches_gpu(
        torch.empty(images, patches, features),
        torch.empty(images, patches, features),
        torch.empty(patches, features),
        None if whitening is None else torch.empty(*whitening, features, features, dtype=dtype),
        DistortionWeights(*(torch.empty(shape) for shape in shapes)),
        (0.0, 1.0),
        (0.0, 1.0),
        0.8,
    )


for _images in (1, 16, 64):
    case(f"patch_score {_images} images")(partial(_patch_score, _images, (841,), torch.float16))
case("patch_score 64 images, 256 features")(partial(_patch_score, 64, (841,), torch.float16, 256))
case("patch_score one matrix")(partial(_patch_score, 16, (), torch.float32))
case("patch_score no whitening")(partial(_patch_score, 16, None, torch.float32))


# idw: 29 x 29 centres to 256 x 256 pixels.


def _idw(images: int, power: float, neighbours: int | None) -> None:
    centers = np.arange(29) * 8 + 15.5
    idw_gpu.idw_map(torch.empty(images, 29, 29), centers, centers, 256, 256, power, neighbours)


case("idw 16 images, 16 nearest")(partial(_idw, 16, 2.0, 16))
case("idw 16 images, all")(partial(_idw, 16, 2.0, None))
case("idw 16 images, all, power 2.5")(partial(_idw, 16, 2.5, None))
