"""Inverse-distance-weighted maps on the CPU. The equation stands in ``reference.py``.

All neighbours: a row of pixels a thread; the weights of one pixel are built in a buffer of P numbers and
serve every image before the next pixel. k neighbours: indices and weights of a grid's pixels are tabled
once, and a map is a weighted sum of k rows a pixel with the images side by side. That is what embedding_bag
computes; its vector code is three times as fast as what Numba makes of the loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange

# Associative sums, so that they vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
TABLES_KEPT = 4
IMAGES_A_STEP = 4
# Numbers of rows at a time, 2 MiB of float32: larger buffers go back to the system each time, and come anew.
NUMBERS_A_STEP = 1 << 19
# What the rows of so many pixels and 16 images take stays in the first cache.
PIXELS_A_BLOCK = 64


@njit(cache=True)
def squared_distances(position, centers, out):
    """Write (position - centre)**2, float64 [n], into ``out``; return the smallest."""
    smallest = np.inf
    for i in range(centers.shape[0]):
        difference = position - centers[i]
        out[i] = difference * difference
        smallest = min(smallest, out[i])
    return smallest


@njit(cache=True)
def nearest_index(position, centers):
    """Index of the centre nearest to ``position`` on one ascending axis; the lower one of two."""
    best = 0
    for i in range(1, centers.shape[0]):
        if abs(position - centers[i]) < abs(position - centers[best]):
            best = i
    return best


@njit(cache=True)
def comes_before(distance, index, other_distance, other_index):
    """Whether a centre is nearer, or as near and of lower raster index."""
    return distance < other_distance or (distance == other_distance and index < other_index)


@njit(cache=True)
def insert_neighbour(distance, index, distances, indices, found):
    """Insert a centre into the ascending list of the nearest; return how many it holds then.

    Parameters: distances float64 [k], indices int32 [k] (both updated), found <= k.
    """
    k = distances.shape[0]
    if found == k:
        if not comes_before(distance, index, distances[k - 1], indices[k - 1]):
            return found
        slot = k - 1
    else:
        slot = found
        found += 1
    while slot > 0 and comes_before(distance, index, distances[slot - 1], indices[slot - 1]):
        distances[slot] = distances[slot - 1]
        indices[slot] = indices[slot - 1]
        slot -= 1
    distances[slot] = distance
    indices[slot] = index
    return found


@njit(cache=True)
def scan_row(row, columns, dy2, dx2, near_x, distances, indices, found):
    """Offer a row's centres outwards from the nearest column, until they are all too far."""
    k = distances.shape[0]
    for i in range(near_x, columns):
        if found == k and dy2 + dx2[i] > distances[k - 1]:
            break
        found = insert_neighbour(dy2 + dx2[i], row * columns + i, distances, indices, found)
    for i in range(near_x - 1, -1, -1):
        if found == k and dy2 + dx2[i] > distances[k - 1]:
            break
        found = insert_neighbour(dy2 + dx2[i], row * columns + i, distances, indices, found)
    return found


@njit(cache=True)
def nearest_centres(dy2, dx2, near_y, near_x, distances, indices):
    """Find the k nearest centres of one pixel, nearest first.

    Parameters: dy2 float64 [gh], dx2 float64 [gw], the nearest row and column, distances float64 [k]
    (squared), indices int32 [k] (outputs). Rounding is monotone, so a row farther off than the k-th
    centre can hold none of the k.
    """
    rows, columns = dy2.shape[0], dx2.shape[0]
    k = distances.shape[0]
    found = 0
    for row in range(near_y, rows):
        if found == k and dy2[row] > distances[k - 1]:
            break
        found = scan_row(row, columns, dy2[row], dx2, near_x, distances, indices, found)
    for row in range(near_y - 1, -1, -1):
        if found == k and dy2[row] > distances[k - 1]:
            break
        found = scan_row(row, columns, dy2[row], dx2, near_x, distances, indices, found)


@njit(cache=True)
def neighbour_weights(distances, half_power, weights):
    """Write the normalised weights of ascending squared distances, [k] each."""
    nearest = distances[0]
    total = 0.0
    for i in range(distances.shape[0]):
        if nearest == 0.0:
            weight = 1.0 if distances[i] == 0.0 else 0.0
        else:
            weight = (nearest / distances[i]) ** half_power
        distances[i] = weight
        total += weight
    for i in range(distances.shape[0]):
        weights[i] = distances[i] / total


@njit(cache=True, parallel=True)
def build_table(centers_y, centers_x, half_power, indices, weights):
    """Fill indices int32 [H, W, k] and weights [H, W, k] of the k nearest centres of each pixel."""
    height, width, k = indices.shape
    for y in prange(height):
        dy2 = np.empty(centers_y.shape[0])
        dx2 = np.empty(centers_x.shape[0])
        distances = np.empty(k)
        squared_distances(y, centers_y, dy2)
        near_y = nearest_index(y, centers_y)
        for x in range(width):
            squared_distances(x, centers_x, dx2)
            nearest_centres(dy2, dx2, near_y, nearest_index(x, centers_x), distances, indices[y, x])
            neighbour_weights(distances, half_power, weights[y, x])


@njit(cache=True)
def lay_out(rows, start, maps):
    """maps [B, H * W] from pixel ``start`` on, from rows [N, >= B] whose images lie side by side."""
    pixels = rows.shape[0]
    for block in range(-(-pixels // PIXELS_A_BLOCK)):
        first = block * PIXELS_A_BLOCK
        last = min(first + PIXELS_A_BLOCK, pixels)
        for b in range(maps.shape[0]):
            maps[b, start + first : start + last] = rows[first:last, b]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def distance_ratios(dy2, dx2, nearest, cutoff, out):
    """Write nearest / (dy2 + dx2), 0 where below ``cutoff``, for all P centres of a pixel.

    Parameters: dy2 float64 [gh], dx2 float64 [gw], nearest > 0, out float [P].
    """
    columns = dx2.shape[0]
    for i in range(columns):
        # Scaled in float64 first: float32 would lose a square of 1e-50, but never its share of another.
        out[i] = dx2[i] / nearest
    for row in range(dy2.shape[0] - 1, -1, -1):
        base = out.dtype.type(dy2[row] / nearest)
        line = out[row * columns : (row + 1) * columns]
        for i in range(columns):
            line[i] = base + out[i]
    # One flat loop, because rows are short and divisions slow.
    one, zero, near = out.dtype.type(1), out.dtype.type(0), out.dtype.type(cutoff)
    for i in range(out.shape[0]):
        ratio = one / out[i]
        out[i] = ratio if ratio > near else zero


@njit(cache=True, fastmath=FAST)
def multiply(values, factors):
    """values *= factors, both [P]."""
    for i in range(values.shape[0]):
        values[i] *= factors[i]


@njit(cache=True, fastmath=FAST)
def raise_in_place(values, exponent, scratch):
    """values **= exponent, for an integer exponent >= 0, by repeated squaring of whole buffers.

    Parameters: values and scratch float [P]; scratch is overwritten with the repeated squares.
    """
    for i in range(values.shape[0]):
        scratch[i] = values[i]
        if not exponent & 1:
            values[i] = 1
    exponent >>= 1
    while exponent:
        multiply(scratch, scratch)
        if exponent & 1:
            multiply(values, scratch)
        exponent >>= 1


@njit(cache=True, fastmath=FAST)
def ratios_to_weights(values, power, scratch):
    """values **= power / 2, in place: by products for an integer power, a root more for an odd one."""
    whole = int(power)
    if power != whole:
        half = values.dtype.type(0.5 * power)
        for i in range(values.shape[0]):
            values[i] = values[i] ** half
    elif whole % 2:
        for i in range(values.shape[0]):
            values[i] = np.sqrt(values[i])
        raise_in_place(values, whole, scratch)
    elif whole != 2:
        raise_in_place(values, whole // 2, scratch)


@njit(cache=True, fastmath=FAST)
def total(values):
    """Sum of values [P]."""
    result = values.dtype.type(0)
    for i in range(values.shape[0]):
        result += values[i]
    return result


@njit(cache=True, fastmath=FAST)
def dot_four(weights, a, b, c, d):
    """Four dot products with the same weights, all [P]."""
    zero = weights.dtype.type(0)
    sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
    for i in range(weights.shape[0]):
        weight = weights[i]
        sum_a += weight * a[i]
        sum_b += weight * b[i]
        sum_c += weight * c[i]
        sum_d += weight * d[i]
    return sum_a, sum_b, sum_c, sum_d


@njit(cache=True, parallel=True, error_model="numpy")
def weigh_all(scores, centers_y, centers_x, power, cutoff, maps):
    """maps [B, H, W] from scores [B, P] by all centres; B is a multiple of 4."""
    batch, height, width = maps.shape
    for y in prange(height):
        dy2 = np.empty(centers_y.shape[0])
        dx2 = np.empty(centers_x.shape[0])
        weights = np.empty(scores.shape[1], scores.dtype)
        scratch = np.empty(scores.shape[1], scores.dtype)
        nearest_y = squared_distances(y, centers_y, dy2)
        near_y = nearest_index(y, centers_y)
        row = np.empty((batch, width), scores.dtype)
        for x in range(width):
            nearest = nearest_y + squared_distances(x, centers_x, dx2)
            if nearest == 0.0:
                centre = near_y * centers_x.shape[0] + nearest_index(x, centers_x)
                for b in range(batch):
                    row[b, x] = scores[b, centre]
                continue
            distance_ratios(dy2, dx2, nearest, cutoff, weights)
            ratios_to_weights(weights, power, scratch)
            scale = scores.dtype.type(1) / total(weights)
            for b in range(0, batch, 4):
                sums = dot_four(weights, scores[b], scores[b + 1], scores[b + 2], scores[b + 3])
                row[b, x] = sums[0] * scale
                row[b + 1, x] = sums[1] * scale
                row[b + 2, x] = sums[2] * scale
                row[b + 3, x] = sums[3] * scale
        for b in range(batch):
            for x in range(width):
                maps[b, y, x] = row[b, x]


class Table(NamedTuple):
    """The k nearest centres of every pixel.

    Attributes
    ----------
    indices : Tensor, int32 [H * W, k]
        Raster indices.
    weights : Tensor, float [H * W, k]
        They sum to 1 over the k of a pixel.
    """

    indices: torch.Tensor
    weights: torch.Tensor


@lru_cache(maxsize=TABLES_KEPT)
def _table(
    centers_y: bytes, centers_x: bytes, height: int, width: int, power: float, neighbours: int, dtype: str
) -> Table:
    indices = np.empty((height, width, neighbours), np.int32)
    weights = np.empty((height, width, neighbours), dtype)
    # A copy, because a read-only array would be another type, and everything compiled twice.
    axes = np.frombuffer(centers_y).copy(), np.frombuffer(centers_x).copy()
    build_table(*axes, 0.5 * power, indices, weights)
    return Table(*(torch.from_numpy(a.reshape(-1, neighbours)) for a in (indices, weights)))


def table(
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int,
    dtype: np.dtype,
) -> Table:
    """The table of a geometry, kept for the next call."""
    axes = centers_y.tobytes(), centers_x.tobytes()
    return _table(*axes, height, width, power, neighbours, np.dtype(dtype).str)


@torch.no_grad()
def weighted_rows(scores: torch.Tensor, table: Table, first: int, pixels: int) -> np.ndarray:
    """Rows [<= pixels, B] of the maps of scores [P, B], from pixel ``first`` on in raster order."""
    indices, weights = (t[first : first + pixels].flatten() for t in table)
    starts = torch.arange(0, indices.numel(), table.indices.shape[1], dtype=indices.dtype)
    return F.embedding_bag(indices, scores, starts, mode="sum", per_sample_weights=weights).numpy()


def idw_map(
    scores: np.ndarray,
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int | None,
) -> np.ndarray:
    """scores [B, gh, gw] -> [B, height, width], in the dtype of the scores."""
    batch = scores.shape[0]
    centres = len(centers_y) * len(centers_x)
    flat = scores.reshape(batch, centres)
    if neighbours is not None and neighbours < centres:
        nearest = table(centers_y, centers_x, height, width, power, neighbours, scores.dtype)
        # Rows of a single number take another, slower way.
        side_by_side = np.zeros((centres, max(batch, 2)), scores.dtype)
        side_by_side[:, :batch] = flat.T
        maps = np.empty((batch, height * width), scores.dtype)
        step = max(NUMBERS_A_STEP // side_by_side.shape[1], PIXELS_A_BLOCK)
        for first in range(0, height * width, step):
            rows = weighted_rows(torch.from_numpy(side_by_side), nearest, first, step)
            lay_out(rows, first, maps)
        return maps.reshape(batch, height, width)
    padded = np.zeros((-(-batch // IMAGES_A_STEP) * IMAGES_A_STEP, centres), scores.dtype)
    padded[:batch] = flat
    maps = np.empty((len(padded), height, width), scores.dtype)
    # Weights this small change no sum, and their products would become slow subnormal numbers.
    smallest = 1e-30 if scores.dtype == np.float32 else 1e-290
    cutoff = smallest ** (2.0 / power) if power > 0 else -1.0
    weigh_all(padded, centers_y, centers_x, power, cutoff, maps)
    return maps[:batch]
