"""Partial convolution on a GPU: an implicit matrix product, with all that Eq. 5 adds in its ends.

    y  = act((W · (X ⊙ M)) · k_h k_w / sum(M) + b + R)   where sum(M) > 0, act(R) elsewhere
    g  = dy · k_h k_w / sum(M)                           where sum(M) > 0, 0 elsewhere
    dX = M ⊙ (Wᵀ · g)      dW = g ⊙ (X ⊙ M)      db = Σ dy where sum(M) > 0      dR = dy

A row of the product is a pixel of the output. Channels lie last, so what a row of the kernel sees is one
run of KW · C numbers, and the sum walks over these runs, KH of them: a net's first layer with its three
channels takes the same way as the deep ones. With boxes for holes M and sum(M) are integer comparisons
and products; no mask is read. Between the layers of a net (INNER) X is 0 in its holes already.

Nothing is summed by atomics: two runs give the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from glance_fast.geometry import output_size
from glance_fast.kernels.dispatch import configuration, memory_format, on_its_device, table_of, tf32_allowed
from glance_fast.kernels.partial_conv.reference import check_holes, clip, inside

# Programs that fill the multiprocessors of a large GPU about twice.
PROGRAMS = 264
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def overlap(start, stop, first, LENGTH: tl.constexpr):
    """Length that [start, stop) and [first, first + LENGTH) share."""
    return tl.maximum(tl.minimum(stop, first + LENGTH) - tl.maximum(start, first), 0)


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
        b_seen = overlap(0, H, o_h, KH) * overlap(0, W, o_w, KW)
        for i_k in range(K):
            p_box = m_ptr + (i_n * K + i_k) * 4
            # Clipped as they come, in 64 bits; within the image 32 are enough.
            b_top = tl.maximum(tl.load(p_box), 0).to(tl.int32)
            b_left = tl.maximum(tl.load(p_box + 1), 0).to(tl.int32)
            b_bottom = tl.minimum(tl.load(p_box + 2), H).to(tl.int32)
            b_right = tl.minimum(tl.load(p_box + 3), W).to(tl.int32)
            b_seen -= overlap(b_top, b_bottom, o_h, KH) * overlap(b_left, b_right, o_w, KW)
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
def pixel_of(o_m, ROWS, COLS):
    """Image, row and column of each index into [N, ROWS, COLS]."""
    return o_m // (ROWS * COLS), o_m // COLS % ROWS, o_m % COLS


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


def by_library(x: Tensor, weight: Tensor, stride: int, route: str, direction: str) -> bool:
    """Whether a library convolution is to do the sum, in the direction "fwd" or "bwd".

    Where the route is "auto" the device's table says so of the shape, else a guess. Forward, one kernel
    spares a trip of y through memory, which counts where matrix units make the sum cheap; without them (fp32
    with tf32 switched off) the library's sum is the faster one. Backward, it is until measured.
    """
    if route != "auto":
        return route == "cudnn"
    entry = table_of(x).get(f"partial_conv_{direction}_route", {}).get(shape_of(x, weight, stride))
    if entry is not None:
        return not entry["triton"]
    return direction == "bwd" or not (x.element_size() < 4 or tf32_allowed())


def shape_of(x: Tensor, weight: Tensor, stride: int) -> str:
    """The name of a shape in the table of tuned configurations: batch and map enter by magnitude."""
    pixels = max(x.shape[0] * x.shape[2] * x.shape[3], 1).bit_length()
    o, c, kh, kw = weight.shape
    return f"{str(x.dtype).removeprefix('torch.')} {c}-{o} {kh}x{kw}/{stride} 2^{pixels}"


def blocks(rows: int, outputs: int, depth: int, channels: int, size: int) -> dict[str, int]:
    """Tile of a matrix product of [rows, depth] and [depth, outputs] of numbers of ``size`` bytes.

    ``depth`` is a run of pixels of ``channels`` each.
    """
    block_n = min(max(triton.next_power_of_2(outputs), 16), 128)
    block_k = min(max(triton.next_power_of_2(depth), 16), 64 if size < 4 else 32)
    few = triton.cdiv(rows, 128) * triton.cdiv(outputs, block_n) < PROGRAMS // 2
    # A place of its own for each number of a tile takes registers: more warps share them.
    ragged = channels % block_k != 0
    return {
        "BLOCK_M": 64 if few or ragged else 128,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": 8 if ragged or (block_n == 128 and not few) else 4,
        "num_stages": 3,
    }


def precision() -> str:
    """How matrix units round float32: torch's own switch for convolutions."""
    return "tf32" if tf32_allowed() else "ieee"


def rows_of(x: Tensor) -> Tensor:
    """[N, H, W, C] of a tensor [N, C, H, W], dense; a copy unless x is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()


def mask_of(mask: Tensor) -> Tensor:
    """Holes as they are; a mask as dense uint8."""
    return mask.contiguous() if mask.dim() == 3 else (mask != 0).to(torch.uint8).contiguous()


def sizes(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the output."""
    return tuple(
        output_size(s, k, stride, padding) for s, k in zip(x.shape[-2:], weight.shape[-2:], strict=True)
    )


@on_its_device
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor,
    stride: int,
    padding: int,
    relu: bool,
    inner: bool,
    library: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, sum(M) and the holes of y; see ``operator.py``. ``library``: by a library convolution."""
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = sizes(x, weight, stride, padding)
    boxes = mask.dim() == 3
    count = mask.shape[1] if boxes else 0
    masks = mask_of(mask)
    seen = torch.empty(n, 1, oh, ow, dtype=torch.int16, device=x.device)
    flags = {
        "BOXES": boxes,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "RELU": relu,
    }
    layer = {"KH": kh, "KW": kw, "STRIDE": stride, "PADDING": padding}
    residual = None if residual is None else rows_of(residual)
    rows = n * oh * ow
    if library:
        if not inner:
            hidden = inside(mask, h, w) if boxes else mask == 0
            x = x.masked_fill(hidden, 0)
        y = rows_of(F.conv2d(x, weight, None, stride, padding))
        block_n = min(triton.next_power_of_2(o), 64)
        tile = configuration(
            x,
            "renormalise_fwd_kernel",
            shape_of(x, weight, stride),
            {"BLOCK_M": 4096 // block_n, "BLOCK_N": block_n, "num_warps": 4},
        )
        if rows:
            renormalise_fwd_kernel[triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(o, tile["BLOCK_N"])](
                y, bias, residual, masks, seen, rows, h, w, oh, ow, o, count, **layer, **flags, **tile
            )
    else:
        y = torch.empty(n, oh, ow, o, dtype=x.dtype, device=x.device)
        tile = configuration(
            x,
            "partial_conv_fwd_kernel",
            shape_of(x, weight, stride),
            blocks(rows, o, kw * c, c, x.element_size()),
        )
        if rows:
            partial_conv_fwd_kernel[triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(o, tile["BLOCK_N"])](
                rows_of(x), rows_of(weight), bias, residual, masks, y, seen, rows, h, w, c, oh, ow, o, count,
                **layer, **flags, INNER=inner, ONE_TAP=c % tile["BLOCK_K"] == 0, PRECISION=precision(),
                **tile,
            )  # fmt: skip
    y = y.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x, weight))
    after = holes_after(masks, (h, w), (oh, ow), layer) if boxes else mask.new_empty(0, dtype=torch.int64)
    if boxes and count > 1 and not inner:
        check_holes(clip(mask, h, w), seen, after)
    return y, seen, after


def holes_after(holes: Tensor, size: tuple[int, int], out: tuple[int, int], layer: dict[str, int]) -> Tensor:
    """Int64 [N, K, 4]: the holes of a convolution's output."""
    after = torch.empty(holes.shape, dtype=torch.int64, device=holes.device)
    count = holes.shape[0] * holes.shape[1]
    if count:
        tile = configuration(holes, "holes_after_kernel", "any", {"BLOCK": 128})
        holes_after_kernel[(triton.cdiv(count, tile["BLOCK"]),)](
            holes, after, count, *size, *out, **layer, **tile
        )
    return after


@on_its_device
def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
    library: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, those that ``needs`` asks for; see ``operator.py``."""
    if library:
        return backward_by_library(dy, x, weight, mask, seen, stride, padding, inner, needs)
    dx = dw = db = dy.new_empty(0)
    rows = seen.numel()
    if needs[0]:
        dx = input_gradient(rows_of(dy), x, weight, mask, seen, stride, padding)
    if needs[1] or needs[2]:
        if rows:
            dw, db = weight_gradients(rows_of(dy), x, weight, mask, seen, stride, padding, inner)
        else:
            dw, db = torch.zeros_like(weight), weight.new_zeros(len(weight))
    return dx, dw if needs[1] else dy.new_empty(0), db if needs[2] else dy.new_empty(0)


def input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, seen: Tensor, stride: int, padding: int
) -> Tensor:
    """dX [N, C, H, W] of dy [N, OH, OW, O]."""
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = dy.shape[1:3]
    dx = torch.empty(n, h, w, c, dtype=x.dtype, device=x.device)
    rows = n * triton.cdiv(h, stride) * triton.cdiv(w, stride)
    boxes = mask.dim() == 3
    tile = configuration(
        x, "partial_conv_bwd_dx_kernel", shape_of(x, weight, stride), blocks(rows, c, o, o, x.element_size())
    )
    if rows:
        grid = triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(c, tile["BLOCK_N"]), stride * stride
        partial_conv_bwd_dx_kernel[grid](
            dy, rows_of(weight), mask_of(mask), seen, dx, rows, h, w, c, oh, ow, o,
            mask.shape[1] if boxes else 0, KH=kh, KW=kw, STRIDE=stride, PADDING=padding, BOXES=boxes,
            PRECISION=precision(), **tile,
        )  # fmt: skip
    return dx.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x))


def weight_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, seen: Tensor, stride: int, padding: int, inner: bool
) -> tuple[Tensor, Tensor]:
    """dW [O, C, KH, KW] and db [O] of dy [N, OH, OW, O]."""
    (_, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = dy.shape[1:3]
    rows = seen.numel()
    boxes = mask.dim() == 3
    block_n = min(max(triton.next_power_of_2(kw * c), 16), 64)
    tile = configuration(
        x,
        "partial_conv_bwd_dw_kernel",
        shape_of(x, weight, stride),
        {
            "BLOCK_M": min(max(triton.next_power_of_2(o), 16), 64),
            "BLOCK_N": block_n,
            "BLOCK_K": 64 if x.element_size() < 4 else 32,
            # As in ``blocks``.
            "num_warps": 8 if c % block_n else 4,
            "num_stages": 3,
        },
    )
    tiles = triton.cdiv(o, tile["BLOCK_M"]), kh * triton.cdiv(kw * c, tile["BLOCK_N"])
    # Few tiles and a long sum: shares of it, each of whole blocks, summed up afterwards in order.
    steps = triton.cdiv(rows, tile["BLOCK_K"])
    share = triton.cdiv(steps, max(1, min(steps, PROGRAMS // (tiles[0] * tiles[1]))))
    splits = triton.cdiv(steps, share)
    dw = torch.empty(splits, o, kh, kw, c, dtype=torch.float32, device=x.device)
    db = torch.empty(splits, o, dtype=torch.float32, device=x.device)
    partial_conv_bwd_dw_kernel[(*tiles, splits)](
        dy, rows_of(x), mask_of(mask), seen, dw, db, rows, h, w, c, oh, ow, o,
        mask.shape[1] if boxes else 0, share * tile["BLOCK_K"], KH=kh, KW=kw, STRIDE=stride,
        PADDING=padding, BOXES=boxes, INNER=inner, ONE_TAP=c % tile["BLOCK_N"] == 0, PRECISION=precision(),
        **tile,
    )  # fmt: skip
    dw = dw.sum(0).to(weight.dtype).permute(0, 3, 1, 2).contiguous(memory_format=memory_format(weight))
    return dw, db.sum(0).to(weight.dtype)


def backward_by_library(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the library's two convolutions, dy scaled before."""
    hidden = inside(mask, *x.shape[-2:]) if mask.dim() == 3 else mask == 0
    dy = torch.where(seen > 0, dy, 0)
    db = dy.sum((0, 2, 3)) if needs[2] else dy.new_empty(0)
    scaled = (dy * (weight[0, 0].numel() / seen.clamp_min(1).float())).to(dy.dtype)
    if not inner:
        x = x.masked_fill(hidden, 0)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        scaled, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*needs[:2], False]
    )
    if needs[0]:
        dx = dx.masked_fill_(hidden, 0).contiguous(memory_format=memory_format(x))
    if needs[1]:
        dw = dw.contiguous(memory_format=memory_format(weight))
    return (*(dy.new_empty(0) if g is None else g for g in (dx, dw)), db)
