"""Bilinear reading of windows in Triton: one launch a map, a window and some channels a program.

y[r, c] = Σ over the four places around cell r of share · (base + window, where it covers the place)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from glance_fast.kernels.dispatch import configuration, on_its_device
from glance_fast.kernels.window_conv.reference import WindowedMap

# Channels of a program, where no table has been measured.
HEURISTIC = {"BLOCK_C": 64, "num_warps": 4}


@triton.jit
def place_before(cell, size):
    """The place before a cell on an axis, and how far behind it that lies."""
    inside = tl.minimum(tl.maximum(cell, 0.0), (size - 1).to(tl.float32))
    first = tl.minimum(inside.to(tl.int32), tl.maximum(size - 2, 0))
    return first, inside - first.to(tl.float32)


@triton.jit
def window_sample_fwd_kernel(
    base_ptr,  # [N, H, W, C]
    window_ptr,  # [P, I_H, I_W, C] or None
    origins_ptr,  # [PLACES, 2] or None
    images_ptr,  # [P]
    cells_ptr,  # [PLACES, R, 2]
    y_ptr,  # [P, R, C], float32
    places,
    points,
    channels,
    height,
    width,
    window_height,
    window_width,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_p = tl.program_id(0).to(tl.int64)
    i_place = i_p % places
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_r, m_c = o_r < points, o_c < channels
    m_y = m_r[:, None] & m_c[None, :]
    i_image = tl.load(images_ptr + i_p).to(tl.int64)

    p_cell = cells_ptr + (i_place * points + o_r) * 2
    left, right = place_before(tl.load(p_cell, m_r, other=0.0), width)  # [BLOCK_R]
    top, down = place_before(tl.load(p_cell + 1, m_r, other=0.0), height)
    b_y = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for corner in tl.static_range(4):
        y = tl.minimum(top + corner // 2, height - 1)
        x = tl.minimum(left + corner % 2, width - 1)
        share = (down if corner // 2 else 1.0 - down) * (right if corner % 2 else 1.0 - right)
        p_x = base_ptr + ((i_image * height + y) * width + x)[:, None] * channels + o_c[None, :]
        b_x = tl.load(p_x, m_y, other=0.0).to(tl.float32)  # [BLOCK_R, BLOCK_C]
        if window_ptr is not None:
            row = y - tl.load(origins_ptr + i_place * 2).to(tl.int32)
            column = x - tl.load(origins_ptr + i_place * 2 + 1).to(tl.int32)
            inside = (row >= 0) & (row < window_height) & (column >= 0) & (column < window_width)
            p_w = window_ptr + ((i_p * window_height + row) * window_width + column)[:, None] * channels
            b_x += tl.load(p_w + o_c[None, :], m_y & inside[:, None], other=0.0).to(tl.float32)
        b_y += share[:, None] * b_x
    tl.store(y_ptr + (i_p * points + o_r)[:, None] * channels + o_c[None, :], b_y, m_y)


@on_its_device
def window_sample_triton(source: WindowedMap, images: Tensor, cells: Tensor) -> Tensor:
    """[P, R, C]; see ``window_sample``."""
    base, window, origins, _ = source
    count, points, channels = len(images), cells.shape[1], base.shape[1]
    out = torch.empty(count, points, channels, device=base.device)
    if out.numel() == 0:
        return out
    dtype = str(base.dtype).removeprefix("torch.")
    shape = f"{dtype} {channels} channels at {points} points"
    chosen = configuration(base, "window_sample_fwd_kernel", shape, HEURISTIC)
    grid = (count, triton.cdiv(channels, chosen["BLOCK_C"]))
    window_sample_fwd_kernel[grid](
        base,
        window,
        origins,
        images,
        cells,
        out,
        len(cells),
        points,
        channels,
        *base.shape[2:],
        *((0, 0) if window is None else window.shape[2:]),
        BLOCK_R=triton.next_power_of_2(points),
        **chosen,
    )
    return out
