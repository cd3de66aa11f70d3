"""Partial convolution around a hole on a GPU: an implicit matrix product over the places outside it.

    y  = act(Σ_o W_o x(p + o) · T / seen + b)     where seen > 0, 0 elsewhere
    g  = dy · T / seen                            where seen > 0, 0 elsewhere
    dX(q) = Σ_o W_oᵀ g(q - o)      dW_o = Σ_p g(p) x(p + o)ᵀ      db = Σ dy where seen > 0

A row of the product is an output, its sum runs over places and channels. Where a place lies is worked out
from its index, on scalars; the hole has no index, so nothing of it is loaded. seen depends on the geometry
alone and comes as a table, counted once from integers (``count_seen``).

Nothing is summed by atomics: two runs give the same bits.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from glance_fast.kernels import tf32
from glance_fast.kernels.conv_common import PROGRAMS, dense_pixels, pixel_of, split
from glance_fast.kernels.dispatch import configuration, on_its_device, tf32_allowed
from glance_fast.kernels.surround_conv.reference import count_seen, output_sizes, places


@triton.jit
def place_of(
    i,  # scalar
    KH: tl.constexpr,
    KW: tl.constexpr,
    HH: tl.constexpr,
    HW: tl.constexpr,
    DILATIONS: tl.constexpr,
    FAR: tl.constexpr,
):
    """Row and column of the i-th place, from the kernel's first; see ``reference.places``."""
    ABOVE: tl.constexpr = (KH - HH) // 2
    BESIDE: tl.constexpr = KW - HW
    SIDE: tl.constexpr = ABOVE * KW
    BELOW: tl.constexpr = SIDE + HH * BESIDE
    whole = tl.where(i < BELOW, i, i - BELOW)
    row = whole // KW + tl.where(i < BELOW, 0, ABOVE + HH)
    col = whole % KW
    if BESIDE > 0:
        side = tl.maximum(i - SIDE, 0)
        beside = (i >= SIDE) & (i < BELOW)
        row = tl.where(beside, ABOVE + side // BESIDE, row)
        col = tl.where(beside, side % BESIDE + tl.where(side % BESIDE < BESIDE // 2, 0, HW), col)
    if FAR > 0:
        far = i - (KH * KW - HH * HW)
        d = far * 0
        for k in tl.static_range(FAR):
            d = tl.where(far // 8 == k, DILATIONS[k], d)
        # Of nine places the fifth is the middle.
        q = tl.maximum(far, 0) % 8
        q += tl.where(q < 4, 0, 1)
        row = tl.where(far >= 0, KH // 2 + (q // 3 - 1) * d, row)
        col = tl.where(far >= 0, KW // 2 + (q % 3 - 1) * d, col)
    return row, col


@triton.jit
def product(b_a, b_b, b_acc, TF32: tl.constexpr):
    """a @ b + acc; float32 to its own accuracy unless tf32 will do."""
    if b_a.dtype == tl.float32 and not TF32:
        return tf32.dot(b_a, b_b, b_acc)
    return tl.dot(b_a, b_b, b_acc, input_precision="tf32")


@triton.jit
def surround_conv_fwd_kernel(
    x_ptr,  # [N, H, W, C]
    w_ptr,  # [O, T, C]
    b_ptr,  # [O]
    s_ptr,  # int32 [OH, OW] seen
    y_ptr,  # [N, OH, OW, O]
    M,  # N * OH * OW
    H,
    W,
    C,
    OH,
    OW,
    O,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HH: tl.constexpr,
    HW: tl.constexpr,
    STRIDE: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DILATIONS: tl.constexpr,
    FAR: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    T: tl.constexpr = KH * KW - HH * HW + 8 * FAR
    i_m, i_o = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    m_m = o_m < M
    # Rows beyond the last repeat it, so that nothing is read outside.
    o_m = tl.minimum(o_m, M - 1)
    o_o = i_o * BLOCK_N + tl.arange(0, BLOCK_N)  # [O]
    m_o = o_o < O
    i_n, o_h, o_w = pixel_of(o_m, OH, OW)
    b_seen = tl.load(s_ptr + o_h * OW + o_w)  # [M]
    o_h, o_w = o_h * STRIDE - PH, o_w * STRIDE - PW
    # The kernel's first place; the others are the same way from it in every row.
    p_x = x_ptr + ((i_n * H + o_h) * W + o_w).to(tl.int64)[:, None] * C  # [M, 1]
    p_w = w_ptr + o_o.to(tl.int64)[None, :] * (T * C)  # [1, O]

    b_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    i_blocks = tl.cdiv(C, BLOCK_K)
    for i in range(0, T * i_blocks):
        i_place = i // i_blocks
        row, col = place_of(i_place, KH, KW, HH, HW, DILATIONS, FAR)
        o_c = i % i_blocks * BLOCK_K + tl.arange(0, BLOCK_K)  # [K]
        m_c = o_c < C
        h, w = o_h + row, o_w + col
        m_x = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        # Through the first cache, which a tile's other places and neighbours then find their pixels in.
        b_x = tl.load(
            p_x + ((row.to(tl.int64) * W + col) * C + o_c)[None, :],
            mask=m_x[:, None] & m_c[None, :],
            other=0.0,
            cache_modifier=".ca",
        )  # [M, K]
        b_w = tl.load(p_w + (i_place * C + o_c)[:, None], mask=m_c[:, None] & m_o[None, :], other=0.0)
        b_acc = product(b_x, b_w, b_acc, TF32)

    b_y = b_acc * (T / tl.maximum(b_seen, 1).to(tl.float32))[:, None]
    if BIAS:
        b_y += tl.load(b_ptr + o_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    b_y = tl.where((b_seen > 0)[:, None], b_y, 0.0)
    if RELU:
        # A comparison keeps NaN, the maximum would not.
        b_y = tl.where(b_y < 0, 0.0, b_y)
    p_y = y_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :]
    tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_m[:, None] & m_o[None, :])


@triton.jit
def surround_conv_bwd_scale_kernel(
    dy_ptr,  # [N, O, OH, OW], any strides
    s_ptr,  # int32 [OH, OW] seen
    g_ptr,  # [N, OH, OW, O]
    db_ptr,  # fp32 [SPLITS, O]
    stride_yn,
    stride_yo,
    stride_yh,
    stride_yw,
    M,  # N * OH * OW
    OH,
    OW,
    O,
    ROWS,  # of M that a split takes
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """g, which both gradients read many times, and each split's share of db."""
    i_s, i_o = tl.program_id(0), tl.program_id(1)
    o_o = i_o * BLOCK_N + tl.arange(0, BLOCK_N)  # [O]
    m_o = o_o < O
    last = tl.minimum((i_s + 1) * ROWS, M)
    b_db = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(i_s * ROWS, last, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)  # [M]
        m_m = o_m < last
        i_n, o_h, o_w = pixel_of(o_m, OH, OW)
        b_seen = tl.load(s_ptr + o_h * OW + o_w, mask=m_m, other=0)
        p_dy = dy_ptr + i_n.to(tl.int64) * stride_yn + o_h.to(tl.int64) * stride_yh
        p_dy = (p_dy + o_w.to(tl.int64) * stride_yw)[:, None] + o_o.to(tl.int64)[None, :] * stride_yo
        m_dy = (b_seen > 0)[:, None] & m_o[None, :]
        b_dy = tl.load(p_dy, mask=m_dy, other=0.0).to(tl.float32)  # [M, O]
        b_db += tl.sum(b_dy, 0)
        b_g = b_dy * (FULL / tl.maximum(b_seen, 1).to(tl.float32))[:, None]
        p_g = g_ptr + o_m.to(tl.int64)[:, None] * O + o_o[None, :]
        tl.store(p_g, b_g.to(g_ptr.dtype.element_ty), mask=m_m[:, None] & m_o[None, :])
    tl.store(db_ptr + i_s * O + o_o, b_db, mask=m_o)


@triton.jit
def surround_conv_bwd_dx_kernel(
    g_ptr,  # [N, OH, OW, O]
    w_ptr,  # [O, T, C]
    t_ptr,  # int32 [T] places, by what they leave modulo the stride
    f_ptr,  # int32 [STRIDE * STRIDE + 1] where in t_ptr each remainder begins
    dx_ptr,  # [N, H, W, C]
    M,  # N * ceil(H / STRIDE) * ceil(W / STRIDE)
    H,
    W,
    C,
    OH,
    OW,
    O,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HH: tl.constexpr,
    HW: tl.constexpr,
    STRIDE: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DILATIONS: tl.constexpr,
    FAR: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes pixels of one remainder modulo the stride: the same places meet them."""
    T: tl.constexpr = KH * KW - HH * HW + 8 * FAR
    i_m, i_c, i_r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    m_m = o_m < M
    o_m = tl.minimum(o_m, M - 1)
    o_c = i_c * BLOCK_N + tl.arange(0, BLOCK_N)  # [C]
    m_c = o_c < C
    i_n, o_h, o_w = pixel_of(o_m, tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE))
    o_h, o_w = o_h * STRIDE + i_r // STRIDE, o_w * STRIDE + i_r % STRIDE
    p_w = w_ptr + o_c[None, :]  # [1, C]
    # The output whose kernel's place in row ``over`` and column ``across`` is this pixel, the least that meet
    # it; others are the same way from it in every row.
    top, left = (o_h + PH) // STRIDE, (o_w + PW) // STRIDE
    over, across = (i_r // STRIDE + PH) % STRIDE, (i_r % STRIDE + PW) % STRIDE
    p_g = g_ptr + ((i_n * OH + top) * OW + left).to(tl.int64)[:, None] * O  # [M, 1]

    b_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    i_blocks = tl.cdiv(O, BLOCK_K)
    if STRIDE == 1:
        first = 0
        count = T
    else:
        first = tl.load(f_ptr + i_r)
        count = tl.load(f_ptr + i_r + 1) - first
    i_next = tl.load(t_ptr + first, mask=count > 0, other=0)
    for i in range(0, count * i_blocks):
        if STRIDE == 1:
            i_place = i // i_blocks
        else:
            # A step ahead: loads that wait for a load would not be pipelined as deep.
            i_place = i_next
            i_next = tl.load(t_ptr + first + tl.minimum((i + 1) // i_blocks, count - 1))
        row, col = place_of(i_place, KH, KW, HH, HW, DILATIONS, FAR)
        o_o = i % i_blocks * BLOCK_K + tl.arange(0, BLOCK_K)  # [K]
        m_o = o_o < O
        # These divisions are exact, by the choice of places.
        up, back = (row - over) // STRIDE, (col - across) // STRIDE
        m_g = (top >= up) & (top < OH + up) & (left >= back) & (left < OW + back)
        b_g = tl.load(
            p_g + (o_o - (up.to(tl.int64) * OW + back) * O)[None, :],
            mask=m_g[:, None] & m_o[None, :],
            other=0.0,
            cache_modifier=".ca",
        )  # [M, K]
        p_place = p_w + (o_o.to(tl.int64) * T + i_place)[:, None] * C
        b_w = tl.load(p_place, mask=m_o[:, None] & m_c[None, :], other=0.0)  # [K, C]
        b_acc = product(b_g, b_w, b_acc, TF32)

    p_dx = dx_ptr + ((i_n * H + o_h) * W + o_w).to(tl.int64)[:, None] * C + o_c[None, :]
    m_dx = (m_m & (o_h < H) & (o_w < W))[:, None] & m_c[None, :]
    tl.store(p_dx, b_acc.to(dx_ptr.dtype.element_ty), mask=m_dx)


@triton.jit
def surround_conv_bwd_dw_kernel(
    g_ptr,  # [N, OH, OW, O]
    x_ptr,  # [N, H, W, C]
    dw_ptr,  # fp32 [SPLITS, O, T, C]
    M,  # N * OH * OW
    H,
    W,
    C,
    OH,
    OW,
    O,
    ROWS,  # of M that a split sums
    KH: tl.constexpr,
    KW: tl.constexpr,
    HH: tl.constexpr,
    HW: tl.constexpr,
    STRIDE: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DILATIONS: tl.constexpr,
    FAR: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program sums a share of the outputs for BLOCK_M of O and BLOCK_N of C at one place."""
    T: tl.constexpr = KH * KW - HH * HW + 8 * FAR
    i_o, i_t, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_blocks = tl.cdiv(C, BLOCK_N)
    i_place = i_t // i_blocks
    row, col = place_of(i_place, KH, KW, HH, HW, DILATIONS, FAR)
    o_o = i_o * BLOCK_M + tl.arange(0, BLOCK_M)  # [O]
    o_c = i_t % i_blocks * BLOCK_N + tl.arange(0, BLOCK_N)  # [C]
    m_o, m_c = o_o < O, o_c < C
    last = tl.minimum((i_s + 1) * ROWS, M)

    p_g = g_ptr + tl.arange(0, BLOCK_K)[:, None] * O + o_o[None, :]  # [K, O]
    b_dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(i_s * ROWS, last, BLOCK_K):
        o_m = start + tl.arange(0, BLOCK_K)  # [K]
        m_m = o_m < last
        i_n, o_h, o_w = pixel_of(o_m, OH, OW)
        h, w = o_h * STRIDE - PH + row, o_w * STRIDE - PW + col
        m_x = m_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        b_g = tl.load(
            p_g + tl.cast(start, tl.int64) * O, mask=m_m[:, None] & m_o[None, :], other=0.0
        )  # [K, O]
        p_x = x_ptr + ((i_n * H + h) * W + w).to(tl.int64)[:, None] * C + o_c[None, :]
        b_x = tl.load(p_x, mask=m_x[:, None] & m_c[None, :], other=0.0)  # [K, C]
        b_dw = product(tl.trans(b_g), b_x, b_dw, TF32)

    p_dw = dw_ptr + ((i_s.to(tl.int64) * O + o_o[:, None]) * T + i_place) * C + o_c[None, :]
    tl.store(p_dw, b_dw, mask=m_o[:, None] & m_c[None, :])


def shape_of(x: Tensor, outputs: int, layer: dict) -> str:
    """The name of a shape in the table of tuned configurations: batch and map enter by magnitude."""
    pixels = max(x.shape[0] * x.shape[2] * x.shape[3], 1).bit_length()
    kernel = "{KH}x{KW}-{HH}x{HW}/{STRIDE}+{FAR}".format(**layer)
    return f"{str(x.dtype).removeprefix('torch.')} {x.shape[1]}-{outputs} {kernel} 2^{pixels}"


def blocks(rows: int, outputs: int, depth: int, size: int, exact: bool) -> dict[str, int]:
    """Tile of a matrix product of [rows, depth] and [depth, outputs] of numbers of ``size`` bytes.

    ``depth`` is the channels of a place; ``exact`` products of float32 take three, and registers for the
    halves of each number.
    """
    block_n = min(max(triton.next_power_of_2(outputs), 16), 64 if exact else 128)
    # 128 bytes of channels are a row of shared memory without bank conflicts.
    block_k = min(max(triton.next_power_of_2(depth), 16), 16 if exact else 128 // size)
    few = triton.cdiv(rows, 128) * triton.cdiv(outputs, block_n) < PROGRAMS // 2
    return {
        "BLOCK_M": 64 if few or exact else 128,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": 4 if few or exact or block_n < 64 else 8,
        "num_stages": 3,
    }


def weight_rows(weight: Tensor, far_weight: Tensor | None) -> Tensor:
    """[O, T, C] of both weights; a copy unless one alone lies like that."""
    if far_weight is None:
        return weight.permute(0, 2, 1).contiguous()
    return torch.cat([weight.permute(0, 2, 1), far_weight.permute(0, 2, 1)], 1)


@lru_cache(maxsize=64)
def by_remainder(
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    dilations: tuple[int, ...],
    padding: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """int32 [T] the places that meet pixels of each remainder modulo the stride, and [stride² + 1] where each
    remainder's begin.
    """
    found: list[list[int]] = [[] for _ in range(stride * stride)]
    for i, (row, col) in enumerate(places(kernel, hole, dilations)):
        found[(row - padding[0]) % stride * stride + (col - padding[1]) % stride].append(i)
    begins = [0]
    for part in found:
        begins.append(begins[-1] + len(part))
    order = torch.tensor([i for part in found for i in part], dtype=torch.int32)
    return order.to(device), torch.tensor(begins, dtype=torch.int32).to(device)


def options(kernel, hole, stride, padding, dilations) -> dict:
    """The geometry as the kernels take it."""
    (kh, kw), (hh, hw), (ph, pw) = kernel, hole, padding
    layer = {"KH": kh, "KW": kw, "HH": hh, "HW": hw, "STRIDE": stride, "PH": ph, "PW": pw}
    return layer | {"DILATIONS": dilations, "FAR": len(dilations)}


@on_its_device
def forward(
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
    """y [N, O, H', W']; see ``operator.py``."""
    (n, c, h, w), o = x.shape, len(weight)
    out = output_sizes((h, w), kernel, stride, padding)
    layer = options(kernel, hole, stride, padding, dilations)
    seen = count_seen((h, w), kernel, hole, stride, padding, dilations, x.device)
    y = torch.empty(n, *out, o, dtype=x.dtype, device=x.device)
    rows = n * out[0] * out[1]
    exact = x.dtype == torch.float32 and not tf32_allowed()
    tile = configuration(
        x, "surround_conv_fwd_kernel", shape_of(x, o, layer), blocks(rows, o, c, x.element_size(), exact)
    )
    if rows:
        surround_conv_fwd_kernel[triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(o, tile["BLOCK_N"])](
            dense_pixels(x), weight_rows(weight, far_weight), None if bias is None else bias.contiguous(),
            seen, y, rows, h, w, c, *out, o, **layer, BIAS=bias is not None, RELU=relu,
            TF32=tf32_allowed(), **tile,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


@on_its_device
def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    far_weight: Tensor | None,
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and far_weight; see ``operator.py``."""
    geometry = kernel, hole, stride, padding, dilations
    dx, dw, db, df = (dy.new_empty(0) for _ in range(4))
    g, db_all = scaled(dy, x, *geometry)
    if needs[0]:
        dx = input_gradient(g, x, weight_rows(weight, far_weight), *geometry)
    if needs[1] or needs[3]:
        every = weight_gradients(g, x, *geometry).to(weight.dtype).permute(0, 2, 1)  # [O, C, T]
        ring, far = every.split([weight.shape[2], 8 * len(dilations)], 2)
        # Copies also where both lie ready, with one channel and one output: they must not share memory.
        dw = ring.clone(memory_format=torch.contiguous_format) if needs[1] else dw
        df = far.clone(memory_format=torch.contiguous_format) if needs[3] else df
    if needs[2]:
        db = db_all.to(weight.dtype)
    return dx, dw, db, df


def scaled(dy: Tensor, x: Tensor, kernel, hole, stride, padding, dilations) -> tuple[Tensor, Tensor]:
    """g [N, OH, OW, O] and db fp32 [O] of dy [N, O, OH, OW]."""
    n, o, oh, ow = dy.shape
    layer = options(kernel, hole, stride, padding, dilations)
    seen = count_seen(tuple(x.shape[-2:]), kernel, hole, stride, padding, dilations, x.device)
    g = torch.empty(n, oh, ow, o, dtype=x.dtype, device=x.device)
    rows = n * oh * ow
    if not rows:
        return g, torch.zeros(o, dtype=torch.float32, device=x.device)
    block_n = min(triton.next_power_of_2(o), 64)
    tile = configuration(
        x,
        "surround_conv_bwd_scale_kernel",
        shape_of(x, o, layer),
        {"BLOCK_M": 2048 // block_n, "BLOCK_N": block_n, "num_warps": 4},
    )
    across = triton.cdiv(o, tile["BLOCK_N"])
    splits, share = split(across, rows, tile["BLOCK_M"])
    db = torch.empty(splits, o, dtype=torch.float32, device=x.device)
    surround_conv_bwd_scale_kernel[splits, across](
        dy, seen, g, db, *dy.stride(), rows, oh, ow, o, share,
        FULL=len(places(kernel, hole, dilations)), **tile,
    )  # fmt: skip
    return g, db.sum(0)


def input_gradient(g: Tensor, x: Tensor, weight: Tensor, kernel, hole, stride, padding, dilations) -> Tensor:
    """dX [N, C, H, W] of g [N, OH, OW, O] and the weights [O, T, C]."""
    (n, c, h, w), (_, oh, ow, o) = x.shape, g.shape
    layer = options(kernel, hole, stride, padding, dilations)
    dx = torch.empty(n, h, w, c, dtype=x.dtype, device=x.device)
    rows = n * triton.cdiv(h, stride) * triton.cdiv(w, stride)
    exact = x.dtype == torch.float32 and not tf32_allowed()
    otherwise = blocks(rows, c, o, x.element_size(), exact)
    # Longer ones spill on some cards: each row has remainders and places of its own.
    otherwise["BLOCK_K"] = min(otherwise["BLOCK_K"], 32)
    tile = configuration(x, "surround_conv_bwd_dx_kernel", shape_of(x, o, layer), otherwise)
    if rows:
        grid = triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(c, tile["BLOCK_N"]), stride * stride
        surround_conv_bwd_dx_kernel[grid](
            g, weight, *by_remainder(kernel, hole, stride, dilations, padding, x.device), dx, rows,
            h, w, c, oh, ow, o, **layer, TF32=tf32_allowed(), **tile,
        )  # fmt: skip
    return dx.permute(0, 3, 1, 2)


def weight_gradients(g: Tensor, x: Tensor, kernel, hole, stride, padding, dilations) -> Tensor:
    """dW fp32 [O, T, C] of g [N, OH, OW, O]: the ring's places, then the far ones."""
    (n, c, h, w), (_, oh, ow, o) = x.shape, g.shape
    layer = options(kernel, hole, stride, padding, dilations)
    count = len(places(kernel, hole, dilations))
    exact = x.dtype == torch.float32 and not tf32_allowed()
    rows = n * oh * ow
    if not rows:
        return torch.zeros(o, count, c, dtype=torch.float32, device=x.device)
    tile = configuration(
        x,
        "surround_conv_bwd_dw_kernel",
        shape_of(x, o, layer),
        {
            "BLOCK_M": min(max(triton.next_power_of_2(o), 16), 64),
            "BLOCK_N": min(max(triton.next_power_of_2(c), 16), 64),
            "BLOCK_K": 64 if x.element_size() < 4 else 16 if exact else 32,
            "num_warps": 4,
            "num_stages": 3,
        },
    )
    tiles = triton.cdiv(o, tile["BLOCK_M"]), count * triton.cdiv(c, tile["BLOCK_N"])
    # Few tiles and a long sum: shares of it, summed up afterwards in order.
    splits, share = split(tiles[0] * tiles[1], rows, tile["BLOCK_K"])
    dw = torch.empty(splits, o, count, c, dtype=torch.float32, device=x.device)
    surround_conv_bwd_dw_kernel[(*tiles, splits)](
        g, dense_pixels(x), dw, rows, h, w, c, oh, ow, o, share, **layer, TF32=tf32_allowed(), **tile
    )
    return dw.sum(0)
