"""Partial convolution of windows on the CPU, by what differs from the unmasked image.

    raw_p = base.raw + W * window[p]          inside the map; of the first layer, window[p] is minus the hole
    δ_p   = act(raw_p · k_h k_w / seen + b + R_p) - base.out

The convolution of a window that is 0 beyond its border needs fewer products than that of what the window
lies in, and nothing is gathered from two maps. C code (``native``) leaves out the products with 0, too, and
takes a window from its input to δ. Where the processor has a unit for matrices of bfloat16, oneDNN convolves
what C code fills in and finishes; where the package was installed without a compiler, what Numba does
(``loops``). Those take the windows in steps, so that what was written is still in the cache when it is read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.kernels.window_conv import native
from glance_fast.kernels.window_conv.loops import NumbaLayer
from glance_fast.kernels.window_conv.native import NativeLayer
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap

# Of filled input in one step, a thread: what its second-level cache holds a good part of. From 1 to 8 MiB
# make no difference of 5 %; all at once takes up to 1.6 times as long.
STEP_BYTES = 2 << 20


def packed(weight: Tensor) -> Tensor | None:
    """A weight once more as the C code multiplies by it; None where that is not what runs."""
    direct = (
        weight.device.type == "cpu" and native.there(weight.dtype) and not native.library_first(weight.dtype)
    )
    return native.packed(weight) if direct else None


def window_conv2d_cpu(
    source: WindowedMap,
    unmasked: Unmasked,
    weight: Tensor,
    bias: Tensor | None,
    holes: Tensor,
    images: Tensor,
    origins: Tensor,
    size: tuple[int, int],
    stride: int,
    padding: int,
    residual: WindowedMap | None,
    relu: bool,
    boxes: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Windows [P, O, h, w] of the difference of the layer's output; see ``window_conv2d``."""
    dtype = source.base.dtype
    if dtype == torch.float16:
        # Numba has no such type, and oneDNN is slow at it.
        source, residual = _widened(source), residual and _widened(residual)
        unmasked = Unmasked(unmasked.raw, unmasked.out.float())
        weight, bias = weight.float(), None if bias is None else bias.float()
    arguments = weight, bias, holes, images, origins, size, stride, padding, residual, relu
    layer: NativeLayer | NumbaLayer
    if native.there(weight.dtype) and native.fits(source, unmasked):
        layer = NativeLayer(source, unmasked, *arguments, boxes)
        if not native.library_first(weight.dtype):
            layer.run(native.packed(weight) if packed is None else packed)
            return layer.out.to(dtype)
    else:
        layer = NumbaLayer(source, unmasked, *arguments)
    in_steps(layer, weight, stride)
    return layer.out.to(dtype)


def in_steps(layer: NativeLayer | NumbaLayer, weight: Tensor, stride: int) -> None:
    """Fill, convolve, finish, some windows at a time."""
    count, _, *size = layer.out.shape
    reads = [(s - 1) * stride + k for s, k in zip(size, weight.shape[2:], strict=True)]
    a_window = reads[0] * reads[1] * weight.shape[1] * weight.itemsize
    step = even_step(STEP_BYTES * torch.get_num_threads() // a_window, count)
    last = torch.channels_last
    buffer = torch.empty((step, weight.shape[1], *reads), dtype=weight.dtype, memory_format=last)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        field = buffer[: part.stop - start]
        layer.fill(field, part)
        layer.finish(F.conv2d(field, weight, None, stride).contiguous(memory_format=last), part)


def even_step(step: int, count: int) -> int:
    """Windows in one step: at least one, and steps of about one size."""
    steps = -(-count // max(step, 1))
    return max(-(-count // max(steps, 1)), 1)


def _widened(source: WindowedMap) -> WindowedMap:
    window = None if source.window is None else source.window.float()
    return source._replace(base=source.base.float(), window=window)
