"""Partial convolution of windows on the CPU: gather, oneDNN's convolution without padding, one epilogue.

    field_p = the rows and columns of X_p that window p reads, 0 in the hole and outside the map
    y_p     = act(conv(field_p) · k_h k_w / seen + b + R_p)

Gather and epilogue move whole runs of pixels, a window a thread. The windows are taken in steps, so that
what the gather wrote is still in the cache when oneDNN reads it, and so is what the epilogue reads; large
buffers would also have to be mapped anew for every layer, which costs more than the gather.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor

from glance_fast.kernels.bfloat16 import as_array, narrow, widen
from glance_fast.kernels.window_conv.reference import WindowedMap

# Of gathered input in one step, a thread: what its second-level cache holds a good part of. From 1 to 8 MiB
# make no difference of 5 %; all at once takes up to 1.6 times as long.
STEP_BYTES = 2 << 20


@njit(cache=True)
def copy(target, source):
    """Write the first elements of ``source`` into all of ``target``."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@njit(cache=True)
def overlap(start, stop, first, last):
    """Length that [start, stop) and [first, last) share."""
    return max(min(stop, last) - max(start, first), 0)


@njit(cache=True)
def clamp(value, low, high):
    """The nearest to ``value`` within [low, high]."""
    return min(max(value, low), high)


@njit(cache=True)
def gather_window(field, base, window, corner, hole, top, left, channels):
    """Put together what one window reads.

    Parameters: field [rows, columns · C] (output), whose first pixel is (top, left) of the map; base
    [H, W · C]; window [i_h, i_w · C] with its corner; hole (top, left, bottom, right).
    """
    rows, columns = field.shape[0], field.shape[1] // channels
    height, width = base.shape[0], base.shape[1] // channels
    # Columns of the field: the map begins, the window begins and ends, the map ends.
    first = clamp(-left, 0, columns)
    last = clamp(width - left, first, columns)
    start = clamp(corner[1] - left, first, last)
    stop = clamp(corner[1] - left + window.shape[1] // channels, start, last)
    hole_start = clamp(hole[1] - left, first, last)
    hole_stop = clamp(hole[3] - left, hole_start, last)
    for i in range(rows):
        row, y = field[i], top + i
        if y < 0 or y >= height:
            row[:] = 0
            continue
        row[: first * channels] = 0
        row[last * channels :] = 0
        pixels = base[y]
        if corner[0] <= y < corner[0] + window.shape[0] and start < stop:
            copy(row[first * channels : start * channels], pixels[(left + first) * channels :])
            copy(
                row[start * channels : stop * channels],
                window[y - corner[0]][(left + start - corner[1]) * channels :],
            )
            copy(row[stop * channels : last * channels], pixels[(left + stop) * channels :])
        else:
            copy(row[first * channels : last * channels], pixels[(left + first) * channels :])
        if hole[0] <= y < hole[2]:
            row[hole_start * channels : hole_stop * channels] = 0


@njit(cache=True, parallel=True)
def gather(field, base, window, corners, images, holes, origins, stride, padding, channels):
    """Put together what every window reads.

    Parameters: field [P, rows, columns · C] (output), base [N, H, W · C], window [P, i_h, i_w · C], corners
    int64 [P, 2], images int64 [P], holes int64 [P, 4], origins int64 [P, 2] in the map of the outputs.
    """
    for p in prange(field.shape[0]):
        top, left = origins[p, 0] * stride - padding, origins[p, 1] * stride - padding
        gather_window(field[p], base[images[p]], window[p], corners[p], holes[p], top, left, channels)


@njit(cache=True)
def finish_pixel(y, bias, ratio, floor, out):
    """out = max(y · ratio + bias, floor) for the channels of one pixel; NaN stays NaN."""
    for c in range(bias.shape[0]):
        value = widen(y[c]) * ratio + bias[c]
        out[c] = narrow(floor if value < floor else value, out[c])


@njit(cache=True)
def finish_and_add(y, bias, ratio, residual, floor, out):
    """The same of y · ratio + bias + residual."""
    for c in range(bias.shape[0]):
        value = widen(y[c]) * ratio + bias[c] + widen(residual[c])
        out[c] = narrow(floor if value < floor else value, out[c])


@njit(cache=True, parallel=True)
def finish(
    y, out, bias, images, holes, origins, size, kernel, stride, padding, floor, added, base, window, corners
):
    """Ratio, bias, residual and activation of every window.

    Parameters: y and out [P, h, w, O], bias [O], size and kernel (height, width) of the input map and of
    the weight; where ``added``, the residual's base [N, H', W', O], window [P, r_h, r_w, O] and corners.
    """
    for p in prange(y.shape[0]):
        hole = holes[p]
        hole_top, hole_left = max(hole[0], 0), max(hole[1], 0)
        hole_bottom, hole_right = min(hole[2], size[0]), min(hole[3], size[1])
        no_y, no_bias = np.zeros(y.shape[3], y.dtype), np.zeros_like(bias)
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
                pixel, shift = y[p, i, j], bias
                if seen == 0:
                    pixel, shift, seen = no_y, no_bias, 1
                ratio = bias.dtype.type(kernel[0] * kernel[1]) / bias.dtype.type(seen)
                if not added:
                    finish_pixel(pixel, shift, ratio, floor, out[p, i, j])
                    continue
                residual, window_column = base[images[p], row, column], column - corners[p, 1]
                if 0 <= window_row < window.shape[1] and 0 <= window_column < window.shape[2]:
                    residual = window[p, window_row, window_column]
                finish_and_add(pixel, shift, ratio, residual, floor, out[p, i, j])


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


def window_conv2d_cpu(
    source: WindowedMap,
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
    """Windows [P, O, h, w] of the layer's output; see ``window_conv2d``."""
    dtype = source.base.dtype
    if dtype == torch.float16:
        # Numba has no such type, and oneDNN is slow at it.
        added = None if residual is None else _widened(residual)
        shift = None if bias is None else bias.float()
        layer = holes, images, origins, size, stride, padding, added, relu
        return window_conv2d_cpu(_widened(source), weight.float(), shift, *layer).half()

    count, outputs, channels = len(images), *weight.shape[:2]
    extent, kernel = tuple(source.base.shape[2:]), tuple(weight.shape[2:])
    # What numbers are computed in, which bfloat16 is not.
    real = torch.promote_types(dtype, torch.float32)
    shifts = (torch.zeros(outputs, dtype=real) if bias is None else bias.to(real)).numpy()
    floor = shifts.dtype.type(0 if relu else -np.inf)
    index, boxes, first = integers(images), integers(holes), integers(origins)
    base = rows_of(source.base)
    window, corners = _windows(source, rows_of, np.empty((count, 0, 0), base.dtype))
    nothing = np.empty((count, 0, 0, 0), base.dtype)
    added_base = nothing if residual is None else pixels_of(residual.base)
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
        where = index[part], boxes[part], first[part]
        gather(rows_of(field), base, window[part], corners[part], *where, stride, padding, channels)
        y = F.conv2d(field, weight, None, stride).contiguous(memory_format=last)
        finish(
            pixels_of(y), pixels_of(out[part]), shifts, *where, extent, kernel, stride, padding,
            floor, residual is not None, added_base, laid[part], laid_corners[part],
        )  # fmt: skip
    return out


def even_step(step: int, count: int) -> int:
    """Windows in one step: at least one, and steps of about one size."""
    steps = -(-count // max(step, 1))
    return max(-(-count // max(steps, 1)), 1)


def _widened(source: WindowedMap) -> WindowedMap:
    window = None if source.window is None else source.window.float()
    return WindowedMap(source.base.float(), window, source.origins)


def _windows(source: WindowedMap | None, view, nothing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows as an array, and where they lie; of no extent if there are none."""
    if source is None or source.window is None or source.origins is None:
        return nothing, np.zeros((len(nothing), 2), np.int64)
    return view(source.window), integers(source.origins)
