"""Partial convolution on the CPU: oneDNN's convolution, and an epilogue that touches few places.

    y = conv(x) + b                              where sum(M) = k_h k_w: nothing more to do
    y = (conv(x) + b - b) k_h k_w / sum(M) + b   on the ring around a hole and at the border

With boxes for holes, ``sum(M)`` is ``rows·cols - Σ_k overlap_rows_k·overlap_cols_k``: integers, no mask
is convolved. Backward, dy is scaled in the same few places before oneDNN's backward convolutions.

The loops run on one thread: they touch a few percent of y, and a second pool of threads would fight
oneDNN's for the cores.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from glance_fast.geometry import output_size
from glance_fast.kernels.bfloat16 import as_array, narrow, widen
from glance_fast.kernels.dispatch import memory_format
from glance_fast.kernels.partial_conv.reference import OVERLAP, TOGETHER

FAULTS = ("", OVERLAP, TOGETHER)


@njit(cache=True)
def overlap(start, stop, first, kernel):
    """Length that [start, stop) and [first, first + kernel) share."""
    return max(min(stop, first + kernel) - max(start, first), 0)


@njit(cache=True)
def reach(start, stop, kernel, stride, padding, outputs):
    """Half-open interval of the outputs whose window meets [start, stop), along one axis."""
    low = max(-(-(start + padding - kernel + 1) // stride), 0)
    return low, min((stop - 1 + padding) // stride + 1, outputs)


@njit(cache=True)
def shrunk(start, stop, size, kernel, stride, padding, outputs):
    """Half-open interval of the outputs that see nothing of the valid input; see ``geometry.shrink``."""
    low = -(-(start + padding) // stride) if start > 0 else 0
    high = outputs if stop >= size else (stop + padding - kernel) // stride + 1
    return low, high


@njit(cache=True)
def place_boxes(holes, size, kernel, stride, padding, check, seen, after):
    """Count what every output sees, and carry the holes to the output.

    Parameters: holes int64 [N, K, 4], size, kernel (height, width), seen int16 [N, H', W'] and after
    int64 [N, K, 4] (outputs). Returns the index in FAULTS of what ``check`` found.
    """
    images, count = holes.shape[:2]
    rows, cols = seen.shape[1:]
    fault = 0
    across = np.empty(cols, np.int16)
    for j in range(cols):
        across[j] = overlap(0, size[1], j * stride - padding, kernel[1])
    for n in range(images):
        hidden = 0
        for i in range(rows):
            down = np.int16(overlap(0, size[0], i * stride - padding, kernel[0]))
            for j in range(cols):
                seen[n, i, j] = down * across[j]
        for k in range(count):
            top, left = max(holes[n, k, 0], 0), max(holes[n, k, 1], 0)
            bottom, right = min(holes[n, k, 2], size[0]), min(holes[n, k, 3], size[1])
            after[n, k] = 0
            if bottom <= top or right <= left:
                continue
            if check:
                for other in range(k):
                    apart = min(bottom, holes[n, other, 2]) <= max(top, holes[n, other, 0])
                    apart |= min(right, holes[n, other, 3]) <= max(left, holes[n, other, 1])
                    fault = fault if apart else 1
            i_first, i_last = reach(top, bottom, kernel[0], stride, padding, rows)
            j_first, j_last = reach(left, right, kernel[1], stride, padding, cols)
            for i in range(i_first, i_last):
                down = np.int16(overlap(top, bottom, i * stride - padding, kernel[0]))
                for j in range(j_first, j_last):
                    seen[n, i, j] -= down * np.int16(overlap(left, right, j * stride - padding, kernel[1]))
            i_first, i_last = shrunk(top, bottom, size[0], kernel[0], stride, padding, rows)
            j_first, j_last = shrunk(left, right, size[1], kernel[1], stride, padding, cols)
            if i_first < i_last and j_first < j_last:
                after[n, k, 0], after[n, k, 1], after[n, k, 2], after[n, k, 3] = (
                    i_first, j_first, i_last, j_last,
                )  # fmt: skip
                hidden += (i_last - i_first) * (j_last - j_first)
        if check and fault == 0:
            for i in range(rows):
                for j in range(cols):
                    hidden -= seen[n, i, j] == 0
            fault = 2 if hidden else 0
    return fault


@njit(cache=True)
def renormalise(y, seen, full, bias):
    """Multiply what ``y`` has beyond its bias by full / seen, in place, where that is not 1.

    Parameters: y [N, H', W', O] (output), seen int16 [N, H', W'], bias [O], or empty for none, of the type
    that numbers are computed in.
    """
    for n in range(seen.shape[0]):
        for i in range(seen.shape[1]):
            for j in range(seen.shape[2]):
                if seen[n, i, j] == full:
                    continue
                if seen[n, i, j] == 0:
                    y[n, i, j] = 0
                    continue
                ratio = bias.dtype.type(full) / bias.dtype.type(seen[n, i, j])
                place = y[n, i, j]
                if bias.shape[0]:
                    for c in range(place.shape[0]):
                        place[c] = narrow((widen(place[c]) - bias[c]) * ratio + bias[c], place[c])
                else:
                    for c in range(place.shape[0]):
                        place[c] = narrow(widen(place[c]) * ratio, place[c])


@njit(cache=True)
def clear_unseen(y, seen):
    """Set y [N, H', W', O] to 0 where seen int16 [N, H', W'] is, in place."""
    for n in range(seen.shape[0]):
        for i in range(seen.shape[1]):
            for j in range(seen.shape[2]):
                if seen[n, i, j] == 0:
                    y[n, i, j] = 0


@njit(cache=True)
def any_in_boxes(x, holes):
    """Whether x [N, H, W, C] is anything but 0 in a hole; NaN is."""
    for n in range(holes.shape[0]):
        for k in range(holes.shape[1]):
            for i in range(max(holes[n, k, 0], 0), min(holes[n, k, 2], x.shape[1])):
                for j in range(max(holes[n, k, 1], 0), min(holes[n, k, 3], x.shape[2])):
                    for c in range(x.shape[3]):
                        if x[n, i, j, c] != 0:
                            return True
    return False


@njit(cache=True)
def clear_boxes(x, holes):
    """Set x [N, H, W, C] to 0 in the holes, in place."""
    for n in range(holes.shape[0]):
        for k in range(holes.shape[1]):
            for i in range(max(holes[n, k, 0], 0), min(holes[n, k, 2], x.shape[1])):
                for j in range(max(holes[n, k, 1], 0), min(holes[n, k, 3], x.shape[2])):
                    x[n, i, j] = 0


def pixels_of(x: Tensor) -> np.ndarray:
    """[N, H, W, C] of a tensor [N, C, H, W], as a NumPy view."""
    return as_array(x).transpose(0, 2, 3, 1)


def wide_array(bias: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """The bias [O], or [0] if there is none, in the type that numbers of ``dtype`` are computed in."""
    wide = torch.promote_types(dtype, torch.float32)
    return (torch.empty(0, dtype=wide) if bias is None else bias.detach().to(wide)).numpy()


def cleared(x: Tensor, holes: np.ndarray) -> Tensor:
    """x with 0 in the holes: itself if it is 0 there already, else a copy."""
    if not any_in_boxes(pixels_of(x), holes):
        return x
    x = x.clone()
    clear_boxes(pixels_of(x), holes)
    return x


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    holes: Tensor,
    stride: int,
    padding: int,
    relu: bool,
    inner: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, what each output sees, and the holes of y; see ``operator.py``."""
    if x.dtype == torch.float16:
        # Numba has no such type, and oneDNN is slow at it.
        shift, added = (None if t is None else t.float() for t in (bias, residual))
        wide = forward(x.float(), weight.float(), shift, added, holes, stride, padding, relu, inner)
        return wide[0].half(), wide[1], wide[2]
    size, kernel = tuple(x.shape[-2:]), tuple(weight.shape[-2:])
    full = kernel[0] * kernel[1]
    rows, cols = (output_size(s, k, stride, padding) for s, k in zip(size, kernel, strict=True))
    boxes = holes.numpy()
    seen = np.empty((len(boxes), rows, cols), np.int16)
    after = np.empty(boxes.shape, np.int64)
    check = not inner and boxes.shape[1] > 1
    fault = place_boxes(boxes, size, kernel, stride, padding, check, seen, after)
    if fault:
        raise ValueError(FAULTS[fault])
    if not inner:
        x = cleared(x, boxes)
    # It is that already, but where torch reads something into strides that mean nothing.
    y = F.conv2d(x, weight, bias, stride, padding).contiguous(memory_format=memory_format(x, weight))
    renormalise(pixels_of(y), seen, full, wide_array(bias, y.dtype))
    if residual is not None:
        y += residual
    return y.relu_() if relu else y, torch.from_numpy(seen)[:, None], torch.from_numpy(after)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    holes: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, those that ``needs`` asks for; see ``operator.py``."""
    if dy.dtype == torch.float16:
        wide = dy.float(), x.float(), weight.float()
        dx, dw, db = backward(*wide, holes, seen, stride, padding, inner, needs)
        return dx.half(), dw.half(), db.half()
    boxes = holes.numpy()
    if not inner:
        x = cleared(x, boxes)
    counts = seen[:, 0].numpy()
    dy = dy.clone()
    clear_unseen(pixels_of(dy), counts)
    sums = dy.sum((0, 2, 3)) if needs[2] else None
    renormalise(pixels_of(dy), counts, weight[0, 0].numel(), wide_array(None, dy.dtype))
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*needs[:2], False]
    )
    if needs[0]:
        clear_boxes(pixels_of(dx), boxes)
        dx = dx.contiguous(memory_format=memory_format(x))
    if needs[1]:
        dw = dw.contiguous(memory_format=memory_format(weight))
    dx, dw, db = (dy.new_empty(0) if g is None else g for g in (dx, dw, sums))
    return dx, dw, db
