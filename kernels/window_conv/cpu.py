"""Partial convolution of windows on the CPU, by what differs from the unmasked image.

    raw_p = base.raw + W * window[p]          inside the map; of the first layer, window[p] is minus the hole
    δ_p   = act(raw_p · k_h k_w / seen + b + R_p) - base.out

The convolution of a window that is 0 beyond its border needs fewer products than that of what the window
lies in, and nothing is gathered from two maps. Where the package was compiled (``native``), C code leaves out
the products with 0, too, and takes a window from its input to δ. Elsewhere, and for bfloat16 where the
processor multiplies that itself, oneDNN convolves what one loop fills in and another one finishes. Those take
the windows in steps, so that what was written is still in the cache when it is read.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor

from glance_fast.kernels.bfloat16 import as_array, narrow, widen
from glance_fast.kernels.window_conv import native
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap, for_each_window

# Of filled input in one step, a thread: what its second-level cache holds a good part of. From 1 to 8 MiB
# make no difference of 5 %; all at once takes up to 1.6 times as long.
STEP_BYTES = 2 << 20


@njit(cache=True)
def overlap(start, stop, first, last):
    """Length that [start, stop) and [first, last) share."""
    return max(min(stop, last) - max(start, first), 0)


@njit(cache=True)
def fill_window(field, window, corner, top, left, channels):
    """Lay a window [i_h, i_w · C] with its corner into a field [rows, columns · C] at (top, left), else 0."""
    first = max(corner[1] - left, 0)
    last = max(min(corner[1] - left + window.shape[1] // channels, field.shape[1] // channels), first)
    skipped = (left + first - corner[1]) * channels
    for i in range(field.shape[0]):
        row, y = field[i], top + i - corner[0]
        row[:] = 0
        if 0 <= y < window.shape[0]:
            for c in range(first * channels, last * channels):
                row[c] = window[y, skipped + c - first * channels]


@njit(cache=True, parallel=True)
def fill(field, window, corners, origins, stride, padding, channels):
    """What every window reads.

    Parameters: field [P, rows, columns · C] (output), window [P, i_h, i_w · C], corners int64 [P, 2], origins
    int64 [P, 2] in the map of the outputs.
    """
    for p in prange(field.shape[0]):
        top, left = origins[p, 0] * stride - padding, origins[p, 1] * stride - padding
        fill_window(field[p], window[p], corners[p], top, left, channels)


@njit(cache=True, parallel=True)
def fill_holes(field, base, images, holes, origins, stride, padding, channels):
    """Minus what the holes hide: field as above, base [N, H, W · C], images int64 [P], holes int64 [P, 4]."""
    for p in prange(field.shape[0]):
        top, left = origins[p, 0] * stride - padding, origins[p, 1] * stride - padding
        hole, whole = holes[p], base[images[p]]
        first, last = (
            max(hole[1], left, 0),
            min(hole[3], whole.shape[1] // channels, left + field.shape[2] // channels),
        )
        for i in range(field.shape[1]):
            row, y = field[p, i], top + i
            row[:] = 0
            if max(hole[0], 0) <= y < min(hole[2], whole.shape[0]):
                for c in range(first * channels, last * channels):
                    row[c - left * channels] = narrow(-widen(whole[y, c]), row[0])


@njit(cache=True)
def finish_pixel(y, raw, bias, ratio, after, floor, out):
    """out = max((raw + y) · ratio + bias, floor) - after for the channels of one pixel; NaN stays NaN."""
    for c in range(bias.shape[0]):
        value = (raw[c] + widen(y[c])) * ratio + bias[c]
        out[c] = narrow((floor if value < floor else value) - widen(after[c]), out[c])


@njit(cache=True)
def finish_and_add(y, raw, bias, ratio, residual, added, after, floor, out):
    """The same of (raw + y) · ratio + bias + residual + added."""
    for c in range(bias.shape[0]):
        value = (raw[c] + widen(y[c])) * ratio + bias[c] + (widen(residual[c]) + widen(added[c]))
        out[c] = narrow((floor if value < floor else value) - widen(after[c]), out[c])


@njit(cache=True, parallel=True)
def finish(
    y,
    raw,
    after,
    out,
    bias,
    images,
    holes,
    origins,
    size,
    kernel,
    stride,
    padding,
    floor,
    adds,
    base,
    window,
    corners,
):
    """Ratio, bias, residual and activation of every window, less what the base has there.

    Parameters: y and out [P, h, w, O], raw and after [N, H', W', O], bias [O], size and kernel (height,
    width) of the input map and of the weight; where ``adds``, the residual's base [N, H', W', O], window
    [P, r_h, r_w, O] and corners.
    """
    for p in prange(y.shape[0]):
        hole, image = holes[p], images[p]
        hole_top, hole_left = max(hole[0], 0), max(hole[1], 0)
        hole_bottom, hole_right = min(hole[2], size[0]), min(hole[3], size[1])
        no_y, no_raw = np.zeros(y.shape[3], y.dtype), np.zeros(y.shape[3], raw.dtype)
        no_bias = np.zeros_like(bias)
        for i in range(y.shape[1]):
            row = origins[p, 0] + i
            top = row * stride - padding
            rows = overlap(0, size[0], top, top + kernel[0])
            hidden_rows = overlap(hole_top, hole_bottom, top, top + kernel[0])
            window_row = row - corners[p, 0]
            for j in range(y.shape[2]):
                column = origins[p, 1] + j
                left = column * stride - padding
                seen = rows * overlap(0, size[1], left, left + kernel[1])
                seen -= hidden_rows * overlap(hole_left, hole_right, left, left + kernel[1])
                pixel, whole, shift = y[p, i, j], raw[image, row, column], bias
                if seen == 0:
                    pixel, whole, shift, seen = no_y, no_raw, no_bias, 1
                ratio = bias.dtype.type(kernel[0] * kernel[1]) / bias.dtype.type(seen)
                before = after[image, row, column]
                if not adds:
                    finish_pixel(pixel, whole, shift, ratio, before, floor, out[p, i, j])
                    continue
                residual, added, window_column = base[image, row, column], no_y, column - corners[p, 1]
                if 0 <= window_row < window.shape[1] and 0 <= window_column < window.shape[2]:
                    added = window[p, window_row, window_column]
                finish_and_add(pixel, whole, shift, ratio, residual, added, before, floor, out[p, i, j])


def pixels_of(x: Tensor) -> np.ndarray:
    """[N, H, W, C] of a channels-last tensor [N, C, H, W], as a NumPy view."""
    return as_array(x).transpose(0, 2, 3, 1)


def rows_of(x: Tensor) -> np.ndarray:
    """[N, H, W · C] of a channels-last tensor [N, C, H, W], as a NumPy view."""
    n, c, h, w = x.shape
    return pixels_of(x).reshape(n, h, w * c)


def integers(x: Tensor) -> np.ndarray:
    """int64, so that every loop is compiled for one type of index."""
    return x.long().contiguous().numpy()


def packed(weight: Tensor) -> Tensor | None:
    """A weight once more as the C code reads it; None where that does not run on it."""
    return native.packed(weight) if weight.device.type == "cpu" and native.runs(weight.dtype) else None


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
    layer = weight, bias, holes, images, origins, size, stride, padding, residual, relu
    if native.runs(weight.dtype) and native.fits(source, unmasked):
        return native.window_conv2d_native(source, unmasked, *layer, boxes, packed).to(dtype)
    return window_conv2d_numba(source, unmasked, *layer).to(dtype)


def window_conv2d_numba(
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
) -> Tensor:
    """The same without C code, for all but float16; whole windows, whatever their boxes are."""
    holes, origins, source, residual = for_each_window(len(images), holes, origins, source, residual)
    dtype = source.base.dtype
    count, outputs, channels = len(images), *weight.shape[:2]
    extent, kernel = tuple(source.base.shape[2:]), tuple(weight.shape[2:])
    # What numbers are computed in, which bfloat16 is not.
    real = torch.promote_types(dtype, torch.float32)
    shifts = (torch.zeros(outputs, dtype=real) if bias is None else bias.to(real)).numpy()
    floor = shifts.dtype.type(0 if relu else -np.inf)
    index, hidden, first = integers(images), integers(holes), integers(origins)
    base, raw, after = rows_of(source.base), pixels_of(unmasked.raw), pixels_of(unmasked.out)
    window, corners = _windows(source, rows_of, np.empty((count, 0, 0), base.dtype))
    nothing = np.empty((count, 0, 0, 0), base.dtype)
    added = nothing if residual is None else pixels_of(residual.base)
    laid, laid_corners = _windows(residual, pixels_of, nothing)

    last = torch.channels_last
    out = torch.empty((count, outputs, *size), dtype=dtype, memory_format=last)
    reads = [(s - 1) * stride + k for s, k in zip(size, kernel, strict=True)]
    a_window = reads[0] * reads[1] * channels * dtype.itemsize
    step = even_step(STEP_BYTES * torch.get_num_threads() // a_window, count)
    buffer = torch.empty((step, channels, *reads), dtype=dtype, memory_format=last)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        field = buffer[: part.stop - start]
        if source.window is None:
            fill_holes(
                rows_of(field), base, index[part], hidden[part], first[part], stride, padding, channels
            )
        else:
            fill(rows_of(field), window[part], corners[part], first[part], stride, padding, channels)
        y = F.conv2d(field, weight, None, stride).contiguous(memory_format=last)
        finish(
            pixels_of(y), raw, after, pixels_of(out[part]), shifts, index[part], hidden[part], first[part],
            extent, kernel, stride, padding, floor, residual is not None, added, laid[part],
            laid_corners[part],
        )  # fmt: skip
    return out


def even_step(step: int, count: int) -> int:
    """Windows in one step: at least one, and steps of about one size."""
    steps = -(-count // max(step, 1))
    return max(-(-count // max(steps, 1)), 1)


def _widened(source: WindowedMap) -> WindowedMap:
    window = None if source.window is None else source.window.float()
    return source._replace(base=source.base.float(), window=window)


def _windows(source: WindowedMap | None, view, nothing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows as an array, and where they lie; of no extent if there are none."""
    if source is None or source.window is None or source.origins is None:
        return nothing, np.zeros((len(nothing), 2), np.int64)
    return view(source.window), integers(source.origins)
