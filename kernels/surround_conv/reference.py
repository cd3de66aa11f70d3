"""Partial convolution around a hole (Eq. 5) as it is defined: a loop over the kernel's places.

    y = (Σ_o W_o x(p + o)) · T / #{o : p + o inside} + b    where a place is inside
    y = 0                                                    elsewhere

o runs over the T places: the kernel without the hole in its middle, and the far places.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.geometry import output_size


def places(
    kernel: tuple[int, int], hole: tuple[int, int], dilations: tuple[int, ...]
) -> list[tuple[int, int]]:
    """(row, column) of every place, from the kernel's first: the ring in raster order, then the far ones."""
    (kh, kw), (hh, hw) = kernel, hole
    top, left = (kh - hh) // 2, (kw - hw) // 2
    ring = [
        (y, x) for y in range(kh) for x in range(kw) if not (top <= y < top + hh and left <= x < left + hw)
    ]
    far = [(kh // 2 + y, kw // 2 + x) for d in dilations for y in (-d, 0, d) for x in (-d, 0, d) if y or x]
    return ring + far


def surround_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    far_weight: Tensor | None,
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    relu: bool,
) -> Tensor:
    """y [N, O, H', W'] of x [N, C, H, W], weight [O, C, T] and far_weight [O, C, 8 a dilation]."""
    where = places(kernel, hole, dilations)
    size = x.shape[-2], x.shape[-1]
    rows, cols = output_sizes(size, kernel, stride, padding)
    beyond = max(dilations, default=0)
    top, left = padding[0] + beyond, padding[1] + beyond
    frame = (left, left, top, top)
    x, inside = F.pad(x, frame), F.pad(x.new_ones(size), frame)
    weights = weight if far_weight is None else torch.cat([weight, far_weight], 2)
    y, seen = x.new_zeros(()), inside.new_zeros(())
    for (dy, dx), w in zip(where, weights.unbind(2), strict=True):
        first, left = dy + beyond, dx + beyond
        window = (
            ...,
            slice(first, first + (rows - 1) * stride + 1, stride),
            slice(left, left + (cols - 1) * stride + 1, stride),
        )
        y = y + torch.einsum("nchw,oc->nohw", x[window], w)
        seen = seen + inside[window]
    y = y * (len(where) / seen.clamp_min(1))
    if bias is not None:
        y = y + bias[:, None, None]
    y = torch.where(seen > 0, y, 0)
    return y.relu() if relu else y


def output_sizes(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of y."""
    rows, cols = (output_size(s, k, stride, p) for s, k, p in zip(size, kernel, padding, strict=True))
    return rows, cols


@lru_cache(maxsize=256)
def count_seen(
    size: tuple[int, int],
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """int32 [H', W']: how many of its places each output sees; kept, so not to be written to."""
    first = [
        torch.arange(n) * stride - p
        for n, p in zip(output_sizes(size, kernel, stride, padding), padding, strict=True)
    ]

    def inside(axis: int, start: int, length: int) -> Tensor:
        # Of an interval of places, how many lie within the input.
        low = first[axis] + start
        return ((low + length).clamp(max=size[axis]) - low.clamp(min=0)).clamp(min=0)

    def box(top: int, left: int, rows: int, cols: int) -> Tensor:
        return inside(0, top, rows)[:, None] * inside(1, left, cols)

    (kh, kw), (hh, hw) = kernel, hole
    middle = kh // 2, kw // 2
    seen = box(0, 0, kh, kw) - box((kh - hh) // 2, (kw - hw) // 2, hh, hw)
    for d in dilations:
        down, across = (torch.stack([inside(a, middle[a] + o, 1) for o in (-d, 0, d)]).sum(0) for a in (0, 1))
        seen += down[:, None] * across - box(middle[0], middle[1], 1, 1)
    return seen.to(device, torch.int32)
