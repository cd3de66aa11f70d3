"""Triton kernels of the forward pass of partial convolution; what they compute stands in ``gpu.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from glance_fast.kernels.conv_common import overlap, pixel_of


@triton.jit
def in_boxes(
    m_ptr,  # [N, K, 4]
    i_n,  # [M, 1] image of each row
    o_h,  # [M, 1]
    o_w,  # [M, 1] or [M, R]
    K,
):
    """Whether places lie in a hole of their image, as the shape of ``o_w``."""
    b_in = o_w != o_w
    for i_k in range(K):
        p_box = m_ptr + (i_n * K + i_k) * 4
        b_top, b_bottom = tl.load(p_box), tl.load(p_box + 2)
        b_left, b_right = tl.load(p_box + 1), tl.load(p_box + 3)
        b_in |= (o_h >= b_top) & (o_h < b_bottom) & (o_w >= b_left) & (o_w < b_right)
    return b_in


@triton.jit
def count_seen(
    m_ptr,  # holes [N, K, 4], or mask [N, H, W]
    i_n,  # [M] image of each row
    o_h,  # [M] first row of its window
    o_w,  # [M] first column
    H,
    W,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BOXES: tl.constexpr,
):
    """sum(M) of each row's window: int32 [M]."""
    if BOXES:
        b_seen = overlap(0, H, o_h, o_h + KH) * overlap(0, W, o_w, o_w + KW)
        for i_k in range(K):
            p_box = m_ptr + (i_n * K + i_k) * 4
            # Clipped as they come, in 64 bits; within the image 32 are enough.
            b_top = tl.maximum(tl.load(p_box), 0).to(tl.int32)
            b_left = tl.maximum(tl.load(p_box + 1), 0).to(tl.int32)
            b_bottom = tl.minimum(tl.load(p_box + 2), H).to(tl.int32)
            b_right = tl.minimum(tl.load(p_box + 3), W).to(tl.int32)
            b_down = overlap(b_top, b_bottom, o_h, o_h + KH)
            b_seen -= b_down * overlap(b_left, b_right, o_w, o_w + KW)
    else:
        b_seen = tl.zeros_like(o_h)
        for i_tap in range(KH * KW):
            h, w = o_h + i_tap // KW, o_w + i_tap % KW
            m_in = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            b_seen += tl.load(m_ptr + (i_n * H + h) * W + w, mask=m_in, other=0).to(tl.int32)
    return b_seen


@triton.jit
def load_runs(
    x_ptr,  # [N, H, W, C]
    m_ptr,  # holes [N, K, 4], or mask [N, H, W]
    i_n,  # [M] image of each row
    o_h,  # [M] the row of the image
    o_w,  # [M] first column of its window
    o_r,  # [R] place in the run of KW * C numbers
    H,
    W,
    C,
    K,
    KW: tl.constexpr,
    BOXES: tl.constexpr,
    INNER: tl.constexpr,
    ONE_TAP: tl.constexpr,
):
    """X ⊙ M along a row of each window: [M, R]."""
    i_n, o_h = i_n[:, None], o_h[:, None]
    # Where a block never crosses from one pixel to the next, its places are as many as its rows.
    if ONE_TAP:
        w = o_w[:, None] + tl.min(o_r, 0) // C
    else:
        w = o_w[:, None] + (o_r // C)[None, :]
    m_x = (o_h >= 0) & (o_h < H) & (w >= 0) & (w < W)
    if BOXES:
        if not INNER:
            m_x &= ~in_boxes(m_ptr, i_n, o_h, w, K)
    else:
        m_x &= tl.load(m_ptr + (i_n * H + o_h) * W + w, mask=m_x, other=0) != 0
    p_x = x_ptr + ((i_n * H + o_h) * W + o_w[:, None]).to(tl.int64) * C + o_r[None, :]
    # Through the first cache, which a tile's other taps and neighbours then find their pixels in.
    return tl.load(p_x, mask=m_x & (o_r < KW * C)[None, :], other=0.0, cache_modifier=".ca")


@triton.jit
def finish(
    b_y,  # [M, O] fp32 W · (X ⊙ M)
    b_seen,  # [M]
    o_m,  # [M] clamped row
    o_o,  # [O]
    b_ptr,  # [O]
    r_ptr,  # [N * OH * OW, O]
    O,
    FULL: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Ratio, bias, validity, residual and ReLU: fp32 [M, O]."""
    b_y *= (FULL / tl.maximum(b_seen, 1).to(tl.float32))[:, None]
    if BIAS:
        b_y += tl.load(b_ptr + o_o, mask=o_o < O, other=0.0).to(tl.float32)[None, :]
    b_y = tl.where((b_seen > 0)[:, None], b_y, 0.0)
    if RESIDUAL:
        p_r = r_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :]
        b_y += tl.load(p_r, mask=(o_o < O)[None, :], other=0.0).to(tl.float32)
    if RELU:
        # A comparison keeps NaN, the maximum would not.
        b_y = tl.where(b_y < 0, 0.0, b_y)
    return b_y


@triton.jit
def partial_conv_fwd_kernel(
    x_ptr,  # [N, H, W, C]
    w_ptr,  # [O, KH, KW, C]
    b_ptr,  # [O]
    r_ptr,  # [N, OH, OW, O] residual
    m_ptr,  # int64 holes [N, K, 4], or uint8 mask [N, H, W]
    y_ptr,  # [N, OH, OW, O]
    s_ptr,  # int16 [N, OH, OW] sum(M)
    M,  # N * OH * OW
    H,
    W,
    C,
    OH,
    OW,
    O,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BOXES: tl.constexpr,
    INNER: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ONE_TAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_m, i_o = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    m_m = o_m < M
    # Rows beyond the last repeat it, so that nothing is read outside.
    o_m = tl.minimum(o_m, M - 1)
    o_o = i_o * BLOCK_N + tl.arange(0, BLOCK_N)  # [O]
    i_n, o_h, o_w = pixel_of(o_m, OH, OW)
    o_h, o_w = o_h * STRIDE - PADDING, o_w * STRIDE - PADDING

    b_seen = count_seen(m_ptr, i_n, o_h, o_w, H, W, K, KH, KW, BOXES)
    if i_o == 0:
        tl.store(s_ptr + o_m, b_seen.to(tl.int16), mask=m_m)

    b_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    i_blocks = tl.cdiv(KW * C, BLOCK_K)
    # A tile that lies wholly in a hole has nothing to sum.
    for i in range(0, tl.where(tl.max(b_seen, 0) > 0, KH * i_blocks, 0)):
        i_kh = i // i_blocks
        o_r = i % i_blocks * BLOCK_K + tl.arange(0, BLOCK_K)  # [K]
        b_x = load_runs(
            x_ptr, m_ptr, i_n, o_h + i_kh, o_w, o_r, H, W, C, K, KW, BOXES, INNER, ONE_TAP
        )  # [M, K]
        p_w = w_ptr + (o_o.to(tl.int64)[None, :] * KH + i_kh) * (KW * C) + o_r[:, None]
        b_w = tl.load(p_w, mask=(o_o < O)[None, :] & (o_r < KW * C)[:, None], other=0.0)  # [K, O]
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision=PRECISION)

    b_y = finish(b_acc, b_seen, o_m, o_o, b_ptr, r_ptr, O, KH * KW, BIAS, RESIDUAL, RELU)
    p_y = y_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :]
    tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_m[:, None] & (o_o < O)[None, :])


@triton.jit
def renormalise_fwd_kernel(
    y_ptr,  # [N, OH, OW, O] W · (X ⊙ M), and the result
    b_ptr,  # [O]
    r_ptr,  # [N, OH, OW, O]
    m_ptr,  # int64 holes [N, K, 4], or uint8 mask [N, H, W]
    s_ptr,  # int16 [N, OH, OW]
    M,
    H,
    W,
    OH,
    OW,
    O,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BOXES: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What a library convolution leaves to be done, in place."""
    i_m, i_o = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    o_m = tl.minimum(o_m, M - 1)
    o_o = i_o * BLOCK_N + tl.arange(0, BLOCK_N)
    i_n, o_h, o_w = pixel_of(o_m, OH, OW)
    b_seen = count_seen(m_ptr, i_n, o_h * STRIDE - PADDING, o_w * STRIDE - PADDING, H, W, K, KH, KW, BOXES)
    if i_o == 0:
        tl.store(s_ptr + o_m, b_seen.to(tl.int16), mask=m_m)
    p_y = y_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :]
    m_y = m_m[:, None] & (o_o < O)[None, :]
    b_y = tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)
    b_y = finish(b_y, b_seen, o_m, o_o, b_ptr, r_ptr, O, KH * KW, BIAS, RESIDUAL, RELU)
    tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def holes_after_kernel(
    m_ptr,  # int64 [N, K, 4]
    a_ptr,  # int64 [N, K, 4]
    BOXES,  # N * K
    H,
    W,
    OH,
    OW,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Holes of the output: ``geometry.shrink`` on both axes, cut off at the border, the empty ones 0."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < BOXES
    top = tl.maximum(tl.load(m_ptr + o * 4, mask=m, other=0), 0)
    left = tl.maximum(tl.load(m_ptr + o * 4 + 1, mask=m, other=0), 0)
    bottom = tl.minimum(tl.load(m_ptr + o * 4 + 2, mask=m, other=0), H)
    right = tl.minimum(tl.load(m_ptr + o * 4 + 3, mask=m, other=0), W)
    some = (bottom > top) & (right > left)
    # Numerators are positive where their quotient is taken, for integer division rounds towards 0.
    end_y = tl.where(bottom >= H, OH, tl.maximum(bottom + PADDING - KH + STRIDE, 0) // STRIDE)
    end_x = tl.where(right >= W, OW, tl.maximum(right + PADDING - KW + STRIDE, 0) // STRIDE)
    top = tl.where(top > 0, tl.cdiv(top + PADDING, STRIDE), 0)
    left = tl.where(left > 0, tl.cdiv(left + PADDING, STRIDE), 0)
    some &= (end_y > top) & (end_x > left)
    tl.store(a_ptr + o * 4, tl.where(some, top, 0), mask=m)
    tl.store(a_ptr + o * 4 + 1, tl.where(some, left, 0), mask=m)
    tl.store(a_ptr + o * 4 + 2, tl.where(some, end_y, 0), mask=m)
    tl.store(a_ptr + o * 4 + 3, tl.where(some, end_x, 0), mask=m)
