"""Triton kernels of the gradients of partial convolution; what they compute stands in ``gpu.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from glance_fast.kernels.conv_common import pixel_of
from glance_fast.kernels.partial_conv.gpu_forward import in_boxes, load_runs


@triton.jit
def scaled_gradient(
    p_dy,  # pointers [M, O]
    m_dy,  # [M, O]
    p_s,  # pointers [M] to sum(M)
    m_s,  # [M]
    FULL: tl.constexpr,
):
    """g and dy, both fp32 [M, O], 0 where nothing is seen or a mask is off."""
    b_seen = tl.load(p_s, mask=m_s, other=0)
    b_dy = tl.load(p_dy, mask=m_dy, other=0.0, cache_modifier=".ca").to(tl.float32)
    b_dy = tl.where((b_seen > 0)[:, None], b_dy, 0.0)
    return b_dy * (FULL / tl.maximum(b_seen, 1).to(tl.float32))[:, None], b_dy


@triton.jit
def partial_conv_bwd_dx_kernel(
    dy_ptr,  # [N, OH, OW, O]
    w_ptr,  # [O, KH, KW, C]
    m_ptr,  # int64 holes [N, K, 4], or uint8 mask [N, H, W]
    s_ptr,  # int16 [N, OH, OW]
    dx_ptr,  # [N, H, W, C]
    M,  # N * ceil(H / STRIDE) * ceil(W / STRIDE)
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
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes pixels of one remainder modulo the stride: they meet the same taps."""
    i_m, i_c = tl.program_id(0), tl.program_id(1)
    i_h, i_w = tl.program_id(2) // STRIDE, tl.program_id(2) % STRIDE
    o_m = tl.minimum(i_m * BLOCK_M + tl.arange(0, BLOCK_M), M - 1)
    m_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M) < M
    o_c = i_c * BLOCK_N + tl.arange(0, BLOCK_N)
    i_n, o_h, o_w = pixel_of(o_m, tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE))
    o_h, o_w = o_h * STRIDE + i_h, o_w * STRIDE + i_w
    i_kh, i_kw = (i_h + PADDING) % STRIDE, (i_w + PADDING) % STRIDE  # the first tap that meets them

    b_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    i_blocks = tl.cdiv(O, BLOCK_K)
    i_cols = tl.cdiv(KW - i_kw, STRIDE)
    for i in range(0, tl.cdiv(KH - i_kh, STRIDE) * i_cols * i_blocks):
        kh, kw = i_kh + i // (i_cols * i_blocks) * STRIDE, i_kw + i // i_blocks % i_cols * STRIDE
        o_o = i % i_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        # The division is exact, by the choice of taps; below 0 it is not taken.
        oh, ow = (o_h + PADDING - kh) // STRIDE, (o_w + PADDING - kw) // STRIDE
        m_y = m_m & (o_h + PADDING >= kh) & (oh < OH) & (o_w + PADDING >= kw) & (ow < OW)
        row = (i_n * OH + oh) * OW + ow
        b_g, _ = scaled_gradient(
            dy_ptr + row.to(tl.int64)[:, None] * O + o_o[None, :],
            m_y[:, None] & (o_o < O)[None, :],
            s_ptr + row,
            m_y,
            KH * KW,
        )  # [M, K]
        p_w = w_ptr + ((o_o.to(tl.int64)[:, None] * KH + kh) * KW + kw) * C + o_c[None, :]
        b_w = tl.load(p_w, mask=(o_o < O)[:, None] & (o_c < C)[None, :], other=0.0)  # [K, C]
        b_acc = tl.dot(b_g.to(b_w.dtype), b_w, b_acc, input_precision=PRECISION)

    m_m &= (o_h < H) & (o_w < W)
    if BOXES:
        b_hidden = in_boxes(m_ptr, i_n[:, None], o_h[:, None], o_w[:, None], K)
    else:
        b_hidden = tl.load(m_ptr + (i_n * H + o_h) * W + o_w, mask=m_m, other=0)[:, None] == 0
    p_dx = dx_ptr + ((i_n * H + o_h) * W + o_w).to(tl.int64)[:, None] * C + o_c[None, :]
    b_dx = tl.where(b_hidden, 0.0, b_acc).to(dx_ptr.dtype.element_ty)
    tl.store(p_dx, b_dx, mask=m_m[:, None] & (o_c < C)[None, :])


@triton.jit
def partial_conv_bwd_dw_kernel(
    dy_ptr,  # [N, OH, OW, O]
    x_ptr,  # [N, H, W, C]
    m_ptr,  # int64 holes [N, K, 4], or uint8 mask [N, H, W]
    s_ptr,  # int16 [N, OH, OW]
    dw_ptr,  # fp32 [SPLITS, O, KH, KW * C]
    db_ptr,  # fp32 [SPLITS, O]
    M,  # N * OH * OW
    H,
    W,
    C,
    OH,
    OW,
    O,
    K,
    ROWS,  # of M that a split sums
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BOXES: tl.constexpr,
    INNER: tl.constexpr,
    ONE_TAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program sums a share of the pixels for BLOCK_M outputs and BLOCK_N numbers of a kernel's row."""
    i_o, i_r, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_blocks = tl.cdiv(KW * C, BLOCK_N)
    i_kh = i_r // i_blocks
    o_o = i_o * BLOCK_M + tl.arange(0, BLOCK_M)  # [O]
    o_r = i_r % i_blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [R]
    last = tl.minimum((i_s + 1) * ROWS, M)

    b_dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_db = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(i_s * ROWS, last, BLOCK_K):
        o_m = start + tl.arange(0, BLOCK_K)
        m_m = o_m < last
        o_m = tl.minimum(o_m, M - 1)
        i_n, o_h, o_w = pixel_of(o_m, OH, OW)
        b_g, b_dy = scaled_gradient(
            dy_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :],
            m_m[:, None] & (o_o < O)[None, :],
            s_ptr + o_m,
            m_m,
            KH * KW,
        )  # [K, O]
        b_x = load_runs(
            x_ptr, m_ptr, i_n, o_h * STRIDE - PADDING + i_kh, o_w * STRIDE - PADDING, o_r,
            H, W, C, K, KW, BOXES, INNER, ONE_TAP,
        )  # [K, R]  # fmt: skip
        b_dw = tl.dot(tl.trans(b_g.to(b_x.dtype)), b_x, b_dw, input_precision=PRECISION)
        if i_r == 0:
            b_db += tl.sum(b_dy, 0)

    p_dw = dw_ptr + ((i_s.to(tl.int64) * O + o_o[:, None]) * KH + i_kh) * (KW * C) + o_r[None, :]
    tl.store(p_dw, b_dw, mask=(o_o < O)[:, None] & (o_r < KW * C)[None, :])
    if i_r == 0:
        tl.store(db_ptr + i_s * O + o_o, b_db, mask=o_o < O)
