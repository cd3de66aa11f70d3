"""What the convolutions' Triton kernels and their launchers share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Programs that fill the multiprocessors of a large GPU about twice.
PROGRAMS = 264


@triton.jit
def overlap(start, stop, first, last):
    """Length that [start, stop) and [first, last) share."""
    return tl.maximum(tl.minimum(stop, last) - tl.maximum(start, first), 0)


@triton.jit
def pixel_of(o_m, ROWS, COLS):
    """Image, row and column of each index into [N, ROWS, COLS]."""
    return o_m // (ROWS * COLS), o_m // COLS % ROWS, o_m % COLS


def split(tiles: int, rows: int, block: int) -> tuple[int, int]:
    """How many shares of whole blocks a sum over ``rows`` is cut into, and the rows of each."""
    steps = triton.cdiv(rows, block)
    share = triton.cdiv(steps, max(1, min(steps, PROGRAMS // tiles)))
    return triton.cdiv(steps, share), share * block


def dense_pixels(x: Tensor) -> Tensor:
    """[N, H, W, C] of a tensor [N, C, H, W], dense; a copy unless x is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()
