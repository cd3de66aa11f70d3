"""Matrix products to float32's accuracy on tensor cores, whose float32 is tf32: 10 bits of fraction."""

from __future__ import annotations

import triton
import triton.language as tl

# All but the lowest 13 bits of a float32's fraction.
KEPT = tl.constexpr(-(1 << 13))


@triton.jit
def split(b_x):
    """float32 as the sum of a tf32 and what is left of it, which tf32 holds but for 2**-22 of x."""
    b_high = (b_x.to(tl.int32, bitcast=True) & KEPT).to(tl.float32, bitcast=True)
    return b_high, b_x - b_high


@triton.jit
def dot(b_a, b_b, b_acc):
    """a @ b + acc for blocks [M, K], [K, N] and [M, N], all float32.

    Triton's own tf32x3 adds up in a second accumulator, which costs registers, and is not there on AMD.
    """
    b_a, b_a_low = split(b_a)
    b_b, b_b_low = split(b_b)
    b_acc = tl.dot(b_a_low, b_b, b_acc, input_precision="tf32")
    b_acc = tl.dot(b_a, b_b_low, b_acc, input_precision="tf32")
    return tl.dot(b_a, b_b, b_acc, input_precision="tf32")
