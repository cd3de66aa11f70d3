"""Partial convolution of windows in Triton: one launch a layer, an implicit matrix product.

    raw[m, o] = base.raw[m, o] + Σ_k D[m, k] W[o, k]
    δ[m, o]   = act(raw[m, o] · k_h k_w / seen[m] + b[o] + R[m, o]) - base.out[m, o]

A row m is a pixel of a window, k runs over the weight's taps and channels. D is what differs from the
unmasked image: the window of the layer before, or minus what the hole hides, 0 outside. So one masked load
from one map feeds the products, and the base comes in where they begin and end. sum(M) comes from the hole's
four numbers. No backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from glance_fast.kernels.conv_common import overlap
from glance_fast.kernels.dispatch import configuration, on_its_device, tf32_allowed
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap

# Bytes of the widest load, which pixels of a multiple of so many channels allow in every type. Others are
# loaded element by element, and then the products run over taps and channels alike (PACKED): 3 channels by
# themselves would leave the matrix units mostly idle.
ALIGNMENT = tl.constexpr(16)
CHANNELS = 16


@triton.jit
def load_side(pointers, mask, size):
    """Sides of holes, cut off at the map's border while they have the width they came in."""
    return tl.minimum(tl.maximum(tl.load(pointers, mask, other=0), 0), size).to(tl.int32)


@triton.jit
def pixel_pointers(
    maps_ptr,  # [maps, height, width, channels]
    i_map,  # 64-bit
    y,
    x,
    height,
    width,
    channels,
):
    """Where the pixels (y, x) of maps lie; also of those outside, which are not to be loaded."""
    return maps_ptr + ((i_map * height + y) * width + x) * channels


@triton.jit
def covers(y, x, height, width):
    """Whether (y, x) lies in [0, height) x [0, width)."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def window_conv_fwd_kernel(
    base_ptr,  # [N, H, W, C], read where there is no window
    window_ptr,  # [P, I_H, I_W, C] or None
    window_origins_ptr,  # [PLACES, 2] or None
    raw_ptr,  # [N, H_OUT, W_OUT, O], float32
    after_ptr,  # [N, H_OUT, W_OUT, O]
    weight_ptr,  # [O, K_H, K_W, C]
    bias_ptr,  # [O] or None
    residual_base_ptr,  # [N, H_OUT, W_OUT, O] or None
    residual_window_ptr,  # [P, R_H, R_W, O] or None
    residual_origins_ptr,  # [PLACES, 2] or None
    holes_ptr,  # [PLACES, 4]
    images_ptr,  # [P]
    origins_ptr,  # [PLACES, 2]
    y_ptr,  # [P, h, w, O]
    rows,  # P * h * w
    places,
    y_height,
    y_width,
    height,
    width,
    window_height,
    window_width,
    out_height,
    out_width,
    residual_height,
    residual_width,
    outputs,
    C: tl.constexpr,
    K_H: tl.constexpr,
    K_W: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TAPS: tl.constexpr = K_H * K_W
    # Steps of a tap; packed, taps and channels are one run.
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (TAPS * C + BLOCK_K - 1) // BLOCK_K if PACKED else TAPS * CHUNKS

    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < rows, o_n < outputs
    m_y = m_m[:, None] & m_n[None, :]

    # [BLOCK_M]: which window, and which pixel of the output's map.
    o_p = o_m // (y_height * y_width)
    o_place = o_p % places
    o_y = o_m // y_width % y_height + tl.load(origins_ptr + o_place * 2, m_m, other=0).to(tl.int32)
    o_x = o_m % y_width + tl.load(origins_ptr + o_place * 2 + 1, m_m, other=0).to(tl.int32)
    i_image = tl.load(images_ptr + o_p, m_m, other=0).to(tl.int64)
    i_window = o_p.to(tl.int64)
    p_out = ((i_image * out_height + o_y) * out_width + o_x)[:, None] * outputs + o_n[None, :]

    # [BLOCK_M, 1]: the first tap in what differs, of which everything outside counts as 0.
    row, column = o_y * STRIDE - PADDING, o_x * STRIDE - PADDING
    if window_ptr is None:
        top = load_side(holes_ptr + o_place * 4, m_m, height)
        left = load_side(holes_ptr + o_place * 4 + 1, m_m, width)
        in_height = load_side(holes_ptr + o_place * 4 + 2, m_m, height) - top
        in_width = load_side(holes_ptr + o_place * 4 + 3, m_m, width) - left
        in_height, in_width = in_height[:, None], in_width[:, None]
        p_x = pixel_pointers(base_ptr, i_image, row, column, height, width, C)
        across = width
    else:
        top = tl.load(window_origins_ptr + o_place * 2, m_m, other=0).to(tl.int32)
        left = tl.load(window_origins_ptr + o_place * 2 + 1, m_m, other=0).to(tl.int32)
        in_height, in_width, across = window_height, window_width, window_width
        p_x = pixel_pointers(window_ptr, i_window, row - top, column - left, window_height, window_width, C)
    row, column, p_x = (row - top)[:, None], (column - left)[:, None], p_x[:, None]

    # What the hole hides is taken away, so that the sum is minus what is wanted.
    b_acc = tl.load(raw_ptr + p_out, m_y, other=0.0)  # [BLOCK_M, BLOCK_N]
    if window_ptr is None:
        b_acc = -b_acc
    for step in range(0, STEPS):
        # Tap (k_y, k_x) and channel of the products' k: [1, BLOCK_K] if packed, else one tap for all of it.
        if PACKED:
            o_w = step * BLOCK_K + o_k
            m_k = o_w < TAPS * C
            c = (o_w % C)[None, :]
            k_y, k_x = (o_w // (K_W * C))[None, :], (o_w // C % K_W)[None, :]
        else:
            tap = step // CHUNKS
            o_c = step % CHUNKS * BLOCK_K + o_k
            o_w = tap * C + o_c
            m_k = o_c < C
            c = o_c[None, :]
            k_y, k_x = tap // K_W, tap % K_W
        m_x = covers(row + k_y, column + k_x, in_height, in_width) & m_m[:, None] & m_k[None, :]
        # Through the first cache, which a tile's other taps and neighbours then find their pixels in.
        b_x = tl.load(p_x + (k_y * across + k_x) * C + c, m_x, other=0.0, cache_modifier=".ca")
        p_w = weight_ptr + o_n[None, :] * (TAPS * C) + o_w[:, None]
        b_w = tl.load(p_w, m_k[:, None] & m_n[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision=PRECISION)
    if window_ptr is None:
        b_acc = -b_acc

    # [BLOCK_M]: sum(M), from integers.
    top, left = o_y * STRIDE - PADDING, o_x * STRIDE - PADDING
    bottom, right = top + K_H, left + K_W
    hole_top = load_side(holes_ptr + o_place * 4, m_m, height)
    hole_left = load_side(holes_ptr + o_place * 4 + 1, m_m, width)
    hole_bottom = load_side(holes_ptr + o_place * 4 + 2, m_m, height)
    hole_right = load_side(holes_ptr + o_place * 4 + 3, m_m, width)
    hidden = overlap(hole_top, hole_bottom, top, bottom) * overlap(hole_left, hole_right, left, right)
    seen = overlap(0, height, top, bottom) * overlap(0, width, left, right) - hidden
    b_y = b_acc * ((K_H * K_W) / tl.maximum(seen, 1).to(tl.float32))[:, None]
    if bias_ptr is not None:
        b_y += tl.load(bias_ptr + o_n, m_n, other=0.0).to(tl.float32)[None, :]
    b_y = tl.where((seen > 0)[:, None], b_y, 0.0)
    if residual_base_ptr is not None:
        b_y += tl.load(residual_base_ptr + p_out, m_y, other=0.0).to(tl.float32)
        if residual_window_ptr is not None:
            row = o_y - tl.load(residual_origins_ptr + o_place * 2, m_m, other=0).to(tl.int32)
            column = o_x - tl.load(residual_origins_ptr + o_place * 2 + 1, m_m, other=0).to(tl.int32)
            inside = covers(row, column, residual_height, residual_width)
            p_r = pixel_pointers(
                residual_window_ptr, i_window, row, column, residual_height, residual_width, outputs
            )
            b_y += tl.load(p_r[:, None] + o_n[None, :], m_y & inside[:, None], other=0.0).to(tl.float32)
    if RELU:
        # Not a maximum, which would lose a NaN.
        b_y = tl.where(b_y < 0.0, 0.0, b_y)
    b_y -= tl.load(after_ptr + p_out, m_y, other=0.0).to(tl.float32)
    p_y = y_ptr + o_m.to(tl.int64)[:, None] * outputs + o_n[None, :]
    tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), m_y)


def aligned(*tensors: Tensor | None) -> bool:
    """Whether the first pixel of each begins at a multiple of ALIGNMENT bytes."""
    return all(t is None or t.data_ptr() % ALIGNMENT.value == 0 for t in tensors)


def heuristic(channels: int, outputs: int, itemsize: int, packed: bool, matrix: bool) -> dict[str, int]:
    """Block sizes where no table has been measured: the largest that spill no registers."""
    block_n = min(max(triton.next_power_of_2(outputs), 16), 64)
    if not matrix:
        # Sums and products in registers, and all of both blocks there too.
        return {"BLOCK_M": 32, "BLOCK_N": block_n, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
    if packed:
        # Each element has its own address and mask, which many threads must share.
        block_k = 64 if block_n == 64 else 32
        return {"BLOCK_M": 64, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 8, "num_stages": 3}
    # 128 bytes of channels are a row of shared memory without bank conflicts.
    block_k = min(triton.next_power_of_2(channels), 128 // itemsize)
    # Of float32, what the base gives takes as many registers as the sums, and spilled with more pixels.
    block_m, warps = (64, 8) if itemsize == 4 else (128, 4)
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": 3}


def shape_of(weight: Tensor, stride: int, size: tuple[int, int], packed: bool) -> str:
    """The name of a shape in the table of tuned configurations."""
    outputs, channels, *kernel = weight.shape
    layer = f"{channels}>{outputs} {kernel[0]}x{kernel[1]}/{stride} to {size[0]}x{size[1]}"
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{dtype} {layer}{' packed' if packed else ''}"


@on_its_device
def window_conv2d_triton(
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
) -> Tensor:
    """Windows [P, O, h, w] of the difference of the layer's output; see ``window_conv2d``."""
    base, window, window_origins, _ = source
    added, added_window, added_origins, _ = residual or (None, None, None, None)
    outputs, channels, *kernel = weight.shape
    out = torch.empty(
        (len(images), outputs, *size), dtype=base.dtype, device=base.device, memory_format=torch.channels_last
    )
    rows = len(images) * size[0] * size[1]
    if rows == 0:
        return out
    packed = channels % CHANNELS != 0 or not aligned(base if window is None else window)
    # As torch has it for convolutions.
    precision = "tf32" if tf32_allowed() else "ieee"
    matrix = base.itemsize < 4 or precision == "tf32"
    chosen = configuration(
        base,
        "window_conv_fwd_kernel",
        shape_of(weight, stride, size, packed),
        heuristic(channels, outputs, base.itemsize, packed, matrix),
    )
    grid = (triton.cdiv(rows, chosen["BLOCK_M"]), triton.cdiv(outputs, chosen["BLOCK_N"]))
    window_conv_fwd_kernel[grid](
        base,
        window,
        window_origins,
        unmasked.raw,
        unmasked.out,
        weight,
        bias,
        added,
        added_window,
        added_origins,
        holes,
        images,
        origins,
        out,
        rows,
        len(holes),
        *size,
        *base.shape[2:],
        *((0, 0) if window is None else window.shape[2:]),
        *unmasked.raw.shape[2:],
        *((0, 0) if added_window is None else added_window.shape[2:]),
        outputs,
        C=channels,
        K_H=kernel[0],
        K_W=kernel[1],
        STRIDE=stride,
        PADDING=padding,
        RELU=relu,
        PACKED=packed,
        PRECISION=precision,
        **chosen,
    )
    return out
