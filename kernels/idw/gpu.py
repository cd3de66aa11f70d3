"""Inverse-distance-weighted maps on a GPU. The equation stands in ``reference.py``.

All neighbours: a program makes the weights of a piece of a row of pixels, one row of centres after the other,
and multiplies them by the scores of the batch as a matrix. Squared distances are taken in float64 and divided
by the smallest of their pixel before float32 sees them, so nothing over- or underflows that matters; they
are sums of one number an axis, which keeps the float64 arithmetic to the edges of a block.

k neighbours: the table of ``cpu.py``, uploaded once a geometry and device, and a weighted sum over it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from glance_fast.kernels import tf32
from glance_fast.kernels.dispatch import configuration, on_its_device
from glance_fast.kernels.idw import cpu

# tl.dot's least columns.
LEAST = 16
NOT_WHOLE = -1


@triton.jit
def _raise(b_ratio, half_power, WHOLE: tl.constexpr):
    """ratio**(power / 2): by products for an integer power, a root more for an odd one."""
    if WHOLE < 0:
        return tl.exp2(half_power * tl.log2(b_ratio))
    EXPONENT: tl.constexpr = WHOLE // 2 if WHOLE % 2 == 0 else WHOLE
    b_square = b_ratio if WHOLE % 2 == 0 else tl.sqrt(b_ratio)
    b_result = tl.full(b_ratio.shape, 1.0, tl.float32)
    # Powers are at most 100.
    for bit in tl.static_range(7):
        if (EXPONENT >> bit) & 1:
            b_result = b_result * b_square
        b_square = b_square * b_square
    return b_result


@triton.jit
def idw_all_fwd_kernel(
    scores_ptr,  # [B, gh, gw]
    maps_ptr,  # [B, H, W]
    centers_y_ptr,  # [gh], float64, and the three others that are not int32
    centers_x_ptr,  # [gw]
    least_y_ptr,  # [H], squared distance to the nearest row of centres
    least_x_ptr,  # [W]
    near_y_ptr,  # [H], which that is, int32
    near_x_ptr,  # [W], int32
    images,
    rows,
    columns,
    height,
    width,
    half_power,
    WHOLE: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    pieces = tl.cdiv(width, BLOCK_X)
    i_x = tl.program_id(0) % pieces
    i_y = (tl.program_id(0) // pieces) % height
    i_b = tl.program_id(0) // pieces // height
    o_x = i_x * BLOCK_X + tl.arange(0, BLOCK_X)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B)
    m_x = o_x < width
    m_b = o_b < images
    p_s = scores_ptr + o_b.to(tl.int64) * rows * columns  # [B]
    b_least = tl.load(least_x_ptr + o_x, mask=m_x, other=1.0) + tl.load(least_y_ptr + i_y)
    # At a centre its score is copied below; any other divisor will do.
    b_scale = tl.where(b_least == 0, 1.0, b_least)
    b_sum = tl.zeros([BLOCK_X, BLOCK_B], tl.float32)
    b_total = tl.zeros([BLOCK_X], tl.float32)
    for c in range(0, columns, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < columns
        b_dx = o_x.to(tl.float64)[:, None] - tl.load(centers_x_ptr + o_c, mask=m_c, other=0.0)[None, :]
        b_across = (b_dx * b_dx / b_scale[:, None]).to(tl.float32)  # [X, C]
        for r in range(rows):
            dy = i_y.to(tl.float64) - tl.load(centers_y_ptr + r)
            b_along = (dy * dy / b_scale).to(tl.float32)  # [X]
            b_weight = _raise(1.0 / (b_along[:, None] + b_across), half_power, WHOLE)
            b_weight = tl.where(m_c[None, :], b_weight, 0.0)  # [X, C]
            m_s = m_c[:, None] & m_b[None, :]
            b_score = tl.load(p_s[None, :] + r * columns + o_c[:, None], mask=m_s, other=0.0)  # [C, B]
            b_sum = tf32.dot(b_weight, b_score, b_sum)
            b_total += tl.sum(b_weight, 1)
    b_near = tl.load(near_y_ptr + i_y) * columns + tl.load(near_x_ptr + o_x, mask=m_x, other=0)  # [X]
    m_xb = m_x[:, None] & m_b[None, :]
    b_exact = tl.load(p_s[None, :] + b_near[:, None], mask=m_xb, other=0.0)
    b_map = tl.where((b_least == 0)[:, None], b_exact, b_sum / b_total[:, None])
    o_m = o_b.to(tl.int64)[None, :] * height * width + (i_y.to(tl.int64) * width + o_x)[:, None]
    tl.store(maps_ptr + o_m, b_map, mask=m_xb)


@triton.jit
def idw_nearest_fwd_kernel(
    scores_ptr,  # [B, P]
    maps_ptr,  # [B, N]
    indices_ptr,  # [k, N], int32
    weights_ptr,  # [k, N]
    images,
    centres,
    pixels,
    neighbours,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    # The images of a piece of the map follow each other, so that later ones find the table in the cache.
    steps = tl.cdiv(images, BLOCK_B)
    o_n = (tl.program_id(0) // steps).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_b = ((tl.program_id(0) % steps) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    m_n = o_n < pixels
    m_bn = (o_b < images)[:, None] & m_n[None, :]
    p_s = scores_ptr + (o_b * centres)[:, None]  # [B, 1]
    b_sum = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    for j in range(neighbours):
        b_index = tl.load(indices_ptr + j * pixels.to(tl.int64) + o_n, mask=m_n, other=0)
        b_weight = tl.load(weights_ptr + j * pixels.to(tl.int64) + o_n, mask=m_n, other=0.0)
        b_sum += b_weight[None, :] * tl.load(p_s + b_index[None, :], mask=m_bn, other=0.0)
    tl.store(maps_ptr + (o_b * pixels)[:, None] + o_n[None, :], b_sum, mask=m_bn)


@lru_cache(maxsize=cpu.TABLES_KEPT)
def _axes(
    centers_y: bytes, centers_x: bytes, height: int, width: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Centres, squared distances to the nearest, and their indices, of both axes, on the device."""
    found = []
    for packed, length in ((centers_y, height), (centers_x, width)):
        centers = np.frombuffer(packed).copy()
        squared = (np.arange(length)[:, None] - centers) ** 2
        found.append((centers, squared.min(axis=1), squared.argmin(axis=1).astype(np.int32)))
    return tuple(torch.from_numpy(a).to(device) for pair in zip(*found, strict=True) for a in pair)


@lru_cache(maxsize=cpu.TABLES_KEPT)
def _table(
    centers_y: bytes, centers_x: bytes, height: int, width: int, power: float, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The table of ``cpu.py`` on the device, neighbour by neighbour: int32 and float32 [k, H * W]."""
    axes = np.frombuffer(centers_y), np.frombuffer(centers_x)
    indices, weights = cpu.table(*axes, height, width, power, k, np.float32)
    return indices.T.contiguous().to(device), weights.T.contiguous().to(device)


@on_its_device
def idw_map(
    scores: Tensor,
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int | None,
) -> Tensor:
    """float32 scores [B, gh, gw] -> [B, height, width]."""
    images, rows, columns = scores.shape
    scores = scores.contiguous()
    maps = scores.new_empty(images, height, width)
    if not images:
        return maps
    geometry = centers_y.tobytes(), centers_x.tobytes(), height, width
    block_b = min(triton.next_power_of_2(images), 32)
    if neighbours is not None and neighbours < rows * columns:
        table = _table(*geometry, power, neighbours, scores.device)
        otherwise = {"BLOCK_N": 256, "BLOCK_B": min(block_b, LEAST), "num_warps": 4}
        name = f"{images}x{rows * columns}x{height * width}x{neighbours}"
        blocks = configuration(scores, "idw_nearest_fwd_kernel", name, otherwise)
        grid = triton.cdiv(height * width, blocks["BLOCK_N"]) * triton.cdiv(images, blocks["BLOCK_B"])
        idw_nearest_fwd_kernel[(grid,)](
            scores, maps, *table, images, rows * columns, height * width, neighbours, **blocks
        )
        return maps
    axes = _axes(*geometry, scores.device)
    otherwise = {"BLOCK_X": 64, "BLOCK_C": 32, "BLOCK_B": max(block_b, LEAST), "num_warps": 4}
    name = f"{images}x{rows}x{columns}x{height}x{width}"
    blocks = configuration(scores, "idw_all_fwd_kernel", name, otherwise)
    pieces = triton.cdiv(width, blocks["BLOCK_X"]) * height * triton.cdiv(images, blocks["BLOCK_B"])
    whole = int(power) if power == int(power) else NOT_WHOLE
    idw_all_fwd_kernel[(pieces,)](
        scores, maps, *axes, images, rows, columns, height, width, 0.5 * power, WHOLE=whole, **blocks
    )
    return maps
