"""Ranking on the CPU: one sort of bare integers, then one pass that keeps only running sums.

A float32 score becomes a uint32 of the same order, so equal scores are equal integers and ties need no
tolerance. Background pixels are nothing but that integer and go through a radix sort, several times
faster here than a comparison sort of pairs; pixels of regions, usually few, are a uint64 with their class
in the low half.

Memory: one buffer of 8 bytes a pixel, twice a float32 map. Background keys (4 bytes) grow from its start,
region keys (8 bytes) from its end; what is left between them is exactly the scratch of the radix sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit, uint32, uint64

SIGN_BIT = 0x80000000
ALL_BITS = 0xFFFFFFFF
LARGEST_EXACT = 1 << 24  # up to here float32 holds every integer
DIGIT_BITS = 11  # three digits cover 32 bits, and 2048 counters stay in the first cache
DIGITS = 1 << DIGIT_BITS


@njit(cache=True)
def ordered_bits(bits):
    """Map the bit pattern of a finite float32 to an integer below 2**32 that sorts as the float does.

    -0.0 and 0.0 are equal as floats and get the same integer.
    """
    wide = uint64(bits)
    if wide > uint64(SIGN_BIT):
        return wide ^ uint64(ALL_BITS)
    return wide | uint64(SIGN_BIT)


@njit(cache=True)
def region_key(score, label):
    """A uint64 of an ordered score and a class."""
    return (uint64(score) << uint64(32)) | uint64(label)


@njit(cache=True)
def score_of(key):
    """The ordered score of a region's key."""
    return uint64(key) >> uint64(32)


@njit(cache=True)
def class_of(key):
    """The class of a region's key."""
    return uint64(key) & uint64(ALL_BITS)


@njit(cache=True)
def pack(bits, classes, low, room, backgrounds, regions):
    """Append an image's keys to both ends of the buffer; return how many each end holds then.

    Parameters: bits uint32 [n], classes uint32 [n], room uint64 [N] and low uint32 [2 N], the same memory
    (output), and how many background and region keys it holds already.
    """
    for i in range(bits.shape[0]):
        score = ordered_bits(bits[i])
        if classes[i] == 0:
            low[backgrounds] = uint32(score)
            backgrounds += 1
        else:
            regions += 1
            room[room.shape[0] - regions] = region_key(score, classes[i])
    return backgrounds, regions


@njit(cache=True)
def pack_ranks(scores, order, classes, low, room):
    """As ``pack`` for all pixels at once, with the dense rank from an argsort as the ordered score.

    Parameters: scores [N] (any ordered dtype), order int64 [N], classes uint32 [N], low and room.
    """
    backgrounds = 0
    regions = 0
    dense = 0
    for i in range(order.shape[0]):
        pixel = order[i]
        if i > 0 and scores[pixel] != scores[order[i - 1]]:
            dense += 1
        if classes[pixel] == 0:
            low[backgrounds] = dense
            backgrounds += 1
        else:
            regions += 1
            room[room.shape[0] - regions] = region_key(dense, classes[pixel])
    return backgrounds, regions


@njit(cache=True)
def digit(key, place):
    """The ``place``-th digit of a uint32 key, from the lowest."""
    return (uint64(key) >> uint64(place * DIGIT_BITS)) & uint64(DIGITS - 1)


@njit(cache=True)
def move_by_digit(source, target, place, starts):
    """Copy keys to ``target``, stably ordered by one digit; ``starts`` int64 [DIGITS] moves along."""
    for i in range(source.shape[0]):
        bucket = digit(source[i], place)
        target[starts[bucket]] = source[i]
        starts[bucket] += 1


@njit(cache=True)
def count_digits(keys, starts):
    """Write where each bucket of each digit starts: starts int64 [3, DIGITS], zeroed before."""
    for i in range(keys.shape[0]):
        for place in range(3):
            starts[place, digit(keys[i], place)] += 1
    for place in range(3):
        position = 0
        for bucket in range(DIGITS):
            count = starts[place, bucket]
            starts[place, bucket] = position
            position += count


@njit(cache=True)
def radix_sort(keys, scratch):
    """Sort uint32 [n]; the result lies in ``scratch`` [n], ``keys`` is used up."""
    starts = np.zeros((3, DIGITS), np.int64)
    count_digits(keys, starts)
    move_by_digit(keys, scratch, 0, starts[0])
    move_by_digit(scratch, keys, 1, starts[1])
    move_by_digit(keys, scratch, 2, starts[2])


@njit(cache=True)
def interpolate(x0, y0, x1, y1, x):
    """y at x on the straight line through two points with x0 < x1."""
    return y0 + (y1 - y0) * ((x - x0) / (x1 - x0))


@njit(cache=True)
def trapezoid(x0, y0, x1, y1):
    """Area below the straight line between two points."""
    return 0.5 * (y0 + y1) * (x1 - x0)


@njit(cache=True)
def total_weight(regions, weights):
    """Sum of the weights of all region pixels, from the highest score down as in the sweep."""
    total = 0.0
    for i in range(regions.shape[0] - 1, -1, -1):
        total += weights[class_of(regions[i])]
    return total


@njit(cache=True)
def next_tie(background, regions, weights, below, left, y):
    """Lower the threshold to the next score of a region pixel.

    Parameters: background uint32 [N0] and regions uint64 [N1] ascending, weights float64 [classes]; how
    many of each still lie below the threshold (left > 0), and the weight found so far.

    Returns the background pixels below when the score is reached and when it is passed, the region
    pixels left then, and the weight found then.
    """
    score = score_of(regions[left - 1])
    while below > 0 and background[below - 1] > score:
        below -= 1
    reached = below
    while below > 0 and background[below - 1] == score:
        below -= 1
    while left > 0 and score_of(regions[left - 1]) == score:
        y += weights[class_of(regions[left - 1])]
        left -= 1
    return reached, below, left, y


@njit(cache=True)
def area_below(background, regions, weights, limit):
    """Area below (background count, summed weight) for counts from 0 to ``limit`` <= N0.

    The curve is level between the scores of region pixels, so only those are visited.
    """
    count = background.shape[0]
    below = count
    left = regions.shape[0]
    area = 0.0
    x = 0.0
    y = 0.0
    while left > 0:
        reached, below, left, y_tie = next_tie(background, regions, weights, below, left, y)
        x_reached = float(count - reached)
        x_tie = float(count - below)
        if x_reached >= limit:
            break
        area += y * (x_reached - x)
        if x_tie > limit:
            return area + trapezoid(x_reached, y, limit, interpolate(x_reached, y, x_tie, y_tie, limit))
        area += trapezoid(x_reached, y, x_tie, y_tie)
        x = x_tie
        y = y_tie
    return area + y * (limit - x)


@njit(cache=True)
def keep_point(x, y, x_step, y_step, out_x, out_y, kept):
    """Append a point that moved a step from the last one kept, while there is room for one more."""
    moved = x - out_x[kept - 1] >= x_step or y - out_y[kept - 1] >= y_step
    if moved and kept < out_x.shape[0] - 1:
        out_x[kept] = x
        out_y[kept] = y
        return kept + 1
    return kept


@njit(cache=True)
def thin_curve(background, regions, weights, limit, x_step, y_step, out_x, out_y):
    """Write the curve's start, each corner that moved a step from the last one kept, and its end.

    Parameters: as for ``area_below``; out_x, out_y float64 [room] (outputs). Returns the points written.
    """
    count = background.shape[0]
    below = count
    left = regions.shape[0]
    out_x[0] = 0.0
    out_y[0] = 0.0
    kept = 1
    y = 0.0
    while left > 0:
        reached, below, left, y_tie = next_tie(background, regions, weights, below, left, y)
        x_reached = float(count - reached)
        x_tie = float(count - below)
        if x_reached > limit:
            break
        kept = keep_point(x_reached, y, x_step, y_step, out_x, out_y, kept)
        if x_tie > limit:
            y = interpolate(x_reached, y, x_tie, y_tie, limit)
            break
        kept = keep_point(x_tie, y_tie, x_step, y_step, out_x, out_y, kept)
        y = y_tie
    if out_x[kept - 1] < limit or out_y[kept - 1] < y:
        out_x[kept] = limit
        out_y[kept] = y
        kept += 1
    return kept


@njit(cache=True)
def precision_sweep(background, regions):
    """Average precision, and the highest F1, over all thresholds from the highest score down.

    Parameters: as for ``area_below``. Recall moves, and F1 can be highest, only at scores of region pixels.
    Returns the sum of precision over region pixels, and the background and region pixels found at that F1.
    """
    total = regions.shape[0]
    below = background.shape[0]
    left = total
    summed = 0.0
    best_false = 0
    best_found = 0
    while left > 0:
        before = left
        score = score_of(regions[left - 1])
        while below > 0 and background[below - 1] >= score:
            below -= 1
        while left > 0 and score_of(regions[left - 1]) == score:
            left -= 1
        false = background.shape[0] - below
        found = total - left
        summed += (before - left) * (found / (found + false))
        # F1 = 2 found / (total + found + false), compared without a division.
        if found * (total + best_found + best_false) > best_found * (total + found + false):
            best_false = false
            best_found = found
    return summed, best_false, best_found


def fits_float32(score: np.ndarray) -> bool:
    """Whether every value survives a conversion to float32."""
    if np.can_cast(score.dtype, np.float32, casting="safe"):
        return True
    if score.dtype.kind in "iu":
        return not score.size or (int(score.max()) <= LARGEST_EXACT and int(score.min()) >= -LARGEST_EXACT)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(score.astype(np.float32), score))


def flat(values: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1)


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Background uint32 [N0] and regions uint64 [N1], both ascending."""
    room = np.empty(sum(score.size for score in scores), dtype=np.uint64)
    low = room.view(np.uint32)
    backgrounds = regions = 0
    if all(map(fits_float32, scores)):
        for score, label in zip(scores, classes, strict=True):
            bits = flat(score, np.float32).view(np.uint32)
            backgrounds, regions = pack(bits, flat(label, np.uint32), low, room, backgrounds, regions)
    else:
        values = np.concatenate([np.ravel(score) for score in scores])
        labels = np.concatenate([flat(label, np.uint32) for label in classes])
        backgrounds, regions = pack_ranks(values, np.argsort(values), labels, low, room)
    region_keys = room[len(room) - regions :]
    region_keys.sort()
    ordered = low[backgrounds : 2 * backgrounds]
    radix_sort(low[:backgrounds], ordered)
    return ordered, region_keys


def area(background: np.ndarray, regions: np.ndarray, weights: np.ndarray, limit: float) -> float:
    """Area under the curve for x in [0, limit], divided by the limit."""
    scaled = limit * len(background)
    found = area_below(background, regions, weights, scaled)
    # The sums round; a perfect ranking must not come out above 1.
    return min(found / (scaled * total_weight(regions, weights)), 1.0)


def precision(background: np.ndarray, regions: np.ndarray) -> tuple[float, float, float, float]:
    """Average precision; the highest F1, and precision and recall there."""
    summed, false, found = precision_sweep(background, regions)
    total = len(regions)
    return summed / total, 2 * found / (total + found + false), found / (found + false), found / total


def curve(
    background: np.ndarray, regions: np.ndarray, weights: np.ndarray, limit: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the curve up to the limit, thinned to at most ``points``."""
    scaled, total = limit * len(background), total_weight(regions, weights)
    # x and y each cover at most one unit, so at most 2 / step points lie a step apart.
    step = 2.0 / max(points - 2, 1)
    out_x, out_y = np.empty(points), np.empty(points)
    kept = thin_curve(background, regions, weights, scaled, step * scaled, step * total, out_x, out_y)
    return np.minimum(out_x[:kept] / len(background), limit), np.minimum(out_y[:kept] / total, 1.0)
