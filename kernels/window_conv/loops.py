"""What oneDNN's convolution of windows needs before and after, in Numba: where the package has no C code."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from glance_fast.kernels.bfloat16 import as_array, narrow, widen
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap, for_each_window


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


def _windows(source: WindowedMap | None, view, nothing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows as an array, and where they lie; of no extent if there are none."""
    if source is None or source.window is None or source.origins is None:
        return nothing, np.zeros((len(nothing), 2), np.int64)
    return view(source.window), integers(source.origins)


class NumbaLayer:
    """One layer; arguments as ``window_conv2d_cpu`` has them. Windows are whole, whatever their boxes are."""

    def __init__(
        self,
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
    ) -> None:
        count, dtype = len(images), source.base.dtype
        holes, origins, source, residual = for_each_window(count, holes, origins, source, residual)
        last = torch.channels_last
        self.out = torch.empty((count, len(weight), *size), dtype=dtype, memory_format=last)
        # What numbers are computed in, which bfloat16 is not.
        real = torch.promote_types(dtype, torch.float32)
        self.bias = (torch.zeros(len(weight), dtype=real) if bias is None else bias.to(real)).numpy()
        self.floor = self.bias.dtype.type(0 if relu else -np.inf)
        self.images, self.holes, self.origins = integers(images), integers(holes), integers(origins)
        self.base, self.channels = rows_of(source.base), weight.shape[1]
        self.raw, self.after = pixels_of(unmasked.raw), pixels_of(unmasked.out)
        self.window, self.corners = _windows(source, rows_of, np.empty((count, 0, 0), self.base.dtype))
        nothing = np.empty((count, 0, 0, 0), self.base.dtype)
        self.first, self.adds = source.window is None, residual is not None
        self.added = nothing if residual is None else pixels_of(residual.base)
        self.laid, self.laid_corners = _windows(residual, pixels_of, nothing)
        self.extent, self.kernel = tuple(source.base.shape[2:]), tuple(weight.shape[2:])
        self.stride, self.padding = stride, padding

    def fill(self, field: Tensor, part: slice) -> None:
        """What these windows read, into field [n, C, rows, columns]."""
        target, places = rows_of(field), (self.stride, self.padding, self.channels)
        if self.first:
            fill_holes(target, self.base, self.images[part], self.holes[part], self.origins[part], *places)
        else:
            fill(target, self.window[part], self.corners[part], self.origins[part], *places)

    def finish(self, y: Tensor, part: slice) -> None:
        """The rest, of their products y [n, O, h, w]; it goes to ``out``."""
        finish(
            pixels_of(y), self.raw, self.after, pixels_of(self.out[part]), self.bias, self.images[part],
            self.holes[part], self.origins[part], self.extent, self.kernel, self.stride, self.padding,
            self.floor, self.adds, self.added, self.laid[part], self.laid_corners[part],
        )  # fmt: skip
