"""Resamples on the CPU: one sort of all pixels, then one pass a group of resamples.

Scores become integers of the same order, as in ``glance_fast.kernels.ranking.cpu``, here of the opposite one:
the highest score comes first. After the sort only the image of each background pixel is kept (2 bytes; 4 with
more than 65,536 images), and where among them each score of a region pixel lies: between those scores no
metric moves. What is counted there is a sum of rows of a table, one a pixel, which holds how often each of
``LANES`` resamples drew the pixel's image.

Memory: 12 bytes a pixel, three times a float32 map: the keys and their scratch as in ``ranking``, the images
and theirs. 2 bytes a pixel once they are sorted, and nothing that grows with pixels times resamples.

Notation of a resample at a threshold: x background pixels and f region pixels found, B and R of them in all.
A region pixel of weight w that is found there adds ``w * max(L - x, 0)`` to the area up to x = L: it is found
at every later threshold, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numba import njit, prange, uint32

from glance_fast.kernels.ranking.cpu import (
    ALL_BITS,
    DIGITS,
    class_of,
    count_digits,
    digit,
    fits_float32,
    flat,
    ordered_bits,
    region_key,
    score_of,
)

# Resamples that go together. Fewer would be unrolled into scalar code instead of vectors.
LANES = 64
MOST = np.iinfo(np.int16).max  # how often one image can be drawn
FEW_IMAGES = 1 << 16

# Where the running numbers of a group of resamples begin, [LANES] each. All are one array, which lets the
# compiler see that they do not overlap.
FALSE, BEFORE, FOUND, GAINED, WEIGHED, SUMMED, BEST, BEST_OF, TOTAL, AREAS = (LANES * i for i in range(10))


@njit(cache=True)
def order_descending(bits, out):
    """Write uint32 integers that are smaller where scores are larger, of the bits of float32 scores."""
    for i in range(bits.shape[0]):
        out[i] = uint32(ALL_BITS - ordered_bits(bits[i]))


@njit(cache=True)
def pack(ordered, classes, image, low, images, room, backgrounds, regions):
    """Append an image's pixels; return how many of background and of regions there are then.

    Parameters: ordered uint32 [n], classes uint32 [n], the image's number, room uint64 [N] and low uint32
    [2 N], the same memory, images [N] (outputs), and how many pixels they hold already. Background keys grow
    from the start of ``low``, with their images beside them, region keys from the end of ``room``.
    """
    for i in range(ordered.shape[0]):
        if classes[i] == 0:
            low[backgrounds] = ordered[i]
            images[backgrounds] = image
            backgrounds += 1
        else:
            regions += 1
            room[room.shape[0] - regions] = region_key(ordered[i], classes[i])
    return backgrounds, regions


@njit(cache=True)
def move_by_digit(keys, images, to_keys, to_images, place, starts):
    """Copy keys and their images, stably ordered by one digit of the keys; ``starts`` moves along."""
    for i in range(keys.shape[0]):
        bucket = digit(keys[i], place)
        to_keys[starts[bucket]] = keys[i]
        to_images[starts[bucket]] = images[i]
        starts[bucket] += 1


@njit(cache=True)
def radix_sort(keys, images, to_keys, to_images, starts):
    """Sort uint32 [n] with the images beside them into ``to_keys`` and ``to_images``; the others are used up.

    Parameters: starts int64 [3, digits], zeros.
    """
    count_digits(keys, starts)
    move_by_digit(keys, images, to_keys, to_images, 0, starts[0])
    move_by_digit(to_keys, to_images, keys, images, 1, starts[1])
    move_by_digit(keys, images, to_keys, to_images, 2, starts[2])


@njit(cache=True)
def count_ties(regions):
    """How many distinct scores sorted region keys have."""
    ties = 0
    for i in range(regions.shape[0]):
        if i == 0 or score_of(regions[i]) != score_of(regions[i - 1]):
            ties += 1
    return ties


@njit(cache=True)
def find_ties(background, regions, reached, passed, starts, classes):
    """Write where the score of each tie begins and ends.

    Parameters: background uint32 [N0] and regions uint64 [N1] ascending; reached, passed uint32 [T], starts
    uint32 [T + 1] and classes uint32 [N1] (outputs), as in ``Ranking``.
    """
    below = 0
    tie = 0
    for i in range(regions.shape[0]):
        classes[i] = uint32(class_of(regions[i]))
        score = score_of(regions[i])
        if i > 0 and score == score_of(regions[i - 1]):
            continue
        starts[tie] = i
        while below < background.shape[0] and background[below] < score:
            below += 1
        reached[tie] = below
        while below < background.shape[0] and background[below] == score:
            below += 1
        passed[tie] = below
        tie += 1
    starts[tie] = regions.shape[0]


@njit(cache=True)
def add_background(images, first, end, table, most, counted, state):
    """Add background pixels from ``first`` to ``end`` to x.

    Parameters: images [N0], table int16 [images * LANES], the pixels that int16 can count for sure, counted
    int16 [LANES] (scratch), state float64.
    """
    while first < end:
        stop = min(end, first + most)
        for k in range(LANES):
            counted[k] = 0
        for i in range(first, stop):
            row = np.int64(images[i]) * LANES
            for k in range(LANES):
                counted[k] += table[row + k]
        for k in range(LANES):
            state[FALSE + k] += counted[k]
        first = stop


@njit(cache=True)
def add_region_pixel(image, weight, table, state):
    """Add a region pixel to what its tie gains: pixels, and weight."""
    row = np.int64(image) * LANES
    for k in range(LANES):
        drawn = float(table[row + k])
        state[GAINED + k] += drawn
        state[WEIGHED + k] += weight * drawn


@njit(cache=True)
def add_area(state, gain, area):
    """Add a tie that has no background pixel to an area: what is gained at x counts for all of L - x."""
    for k in range(LANES):
        state[area + k] += state[gain + k] * max(state[area + LANES + k] - state[FALSE + k], 0.0)


@njit(cache=True)
def add_tied_area(state, gain, area):
    """As ``add_area``, gained evenly from x before the tie to x after it: the mean of max(L - x, 0)."""
    for k in range(LANES):
        before = max(state[area + LANES + k] - state[BEFORE + k], 0.0)
        after = max(state[area + LANES + k] - state[FALSE + k], 0.0)
        width = max(state[FALSE + k] - state[BEFORE + k], 1.0)
        # Where L lies within the tie, only the triangle before it counts; a tie of no width is a point.
        mean = 0.5 * (before + after) if after > 0.0 else 0.5 * before * before / width
        inside = state[FALSE + k] > state[BEFORE + k]
        state[area + k] += state[gain + k] * (mean if inside else before)


@njit(cache=True, error_model="numpy")
def add_tie(state):
    """Add a tie to f, to the sum of precisions, and to the highest F1; it has gained nothing after that.

    F1 = 2 f / (R + f + x), compared without a division; its parts are kept.
    """
    for k in range(LANES):
        gained = state[GAINED + k]
        found = state[FOUND + k] + gained
        called = found + state[FALSE + k]
        whole = called + state[TOTAL + k]
        better = found * state[BEST_OF + k] > state[BEST + k] * whole
        state[FOUND + k] = found
        state[SUMMED + k] += gained * (found / max(called, 1.0))
        state[BEST + k] = found if better else state[BEST + k]
        state[BEST_OF + k] = whole if better else state[BEST_OF + k]
        state[GAINED + k] = 0.0
        state[WEIGHED + k] = 0.0


@njit(cache=True)
def sweep_lanes(images, reached, passed, starts, classes, owners, weights, table, most, state):
    """Lower the threshold from the first tie to the last, for one group of resamples.

    Parameters: as in ``Ranking`` and for ``sweep``; table and most as for ``add_background``; state float64
    (updated). From ``AREAS`` on it holds areas and their limits in turn, the first that of the ROC curve, in
    which all pixels weigh the same.
    """
    counted = np.zeros(LANES, np.int16)
    first = 0
    for tie in range(reached.shape[0]):
        reach = np.int64(reached[tie])
        end = np.int64(passed[tie])
        add_background(images, first, reach, table, most, counted, state)
        for i in range(starts[tie], starts[tie + 1]):
            add_region_pixel(owners[classes[i]], weights[classes[i]], table, state)
        if end > reach:
            for k in range(LANES):
                state[BEFORE + k] = state[FALSE + k]
            add_background(images, reach, end, table, most, counted, state)
            add_tied_area(state, GAINED, AREAS)
            for area in range(AREAS + 2 * LANES, state.shape[0], 2 * LANES):
                add_tied_area(state, WEIGHED, area)
        else:
            add_area(state, GAINED, AREAS)
            for area in range(AREAS + 2 * LANES, state.shape[0], 2 * LANES):
                add_area(state, WEIGHED, area)
        add_tie(state)
        first = end


@njit(cache=True, parallel=True)
def sweep_groups(images, reached, passed, starts, classes, owners, weights, tables, most, states):
    """``sweep_lanes``, a group of resamples a thread: tables int16 [groups, images * LANES], states float64
    [groups, ...] (updated).
    """
    for group in prange(tables.shape[0]):
        table, state = tables[group], states[group]
        sweep_lanes(images, reached, passed, starts, classes, owners, weights, table, most, state)


def _in_order(scores: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield uint32 [n] of each image, smaller where the score is larger."""
    if all(map(fits_float32, scores)):
        for score in scores:
            bits = flat(score, np.float32).view(np.uint32)
            ordered = np.empty_like(bits)
            order_descending(bits, ordered)
            yield ordered
        return
    _, dense = np.unique(np.concatenate([np.ravel(score) for score in scores]), return_inverse=True)
    ordered = (ALL_BITS - dense).astype(np.uint32)
    yield from np.split(ordered, np.cumsum([score.size for score in scores])[:-1])


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The first five fields of ``Ranking``."""
    room = np.empty(sum(score.size for score in scores), np.uint64)
    low = room.view(np.uint32)
    images = np.empty(len(room), np.uint16 if len(scores) <= FEW_IMAGES else np.uint32)
    backgrounds = regions = 0
    for image, (ordered, label) in enumerate(zip(_in_order(scores), classes, strict=True)):
        label = flat(label, np.uint32)
        backgrounds, regions = pack(ordered, label, image, low, images, room, backgrounds, regions)
    keys, scratch = low[:backgrounds], low[backgrounds : 2 * backgrounds]
    region_keys = room[len(room) - regions :]
    region_keys.sort()
    sorted_images = np.empty(backgrounds, images.dtype)
    radix_sort(keys, images[:backgrounds], scratch, sorted_images, np.zeros((3, DIGITS), np.int64))
    ties = count_ties(region_keys)
    reached, passed, starts = (np.empty(ties + extra, np.uint32) for extra in (0, 0, 1))
    labels = np.empty(regions, np.uint32)
    find_ties(scratch, region_keys, reached, passed, starts, labels)
    return sorted_images, reached, passed, starts, labels


def sweep(
    ranked: tuple[np.ndarray, ...],
    owners: np.ndarray,
    weights: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    limits: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Areas, AUROC, average precision and highest F1 of every resample.

    Parameters
    ----------
    ranked : tuple of ndarray
        From ``rank``.
    owners, weights : ndarray
        Image and weight of each class, [classes].
    counts : ndarray
        int16 [resamples, images].
    totals : ndarray
        float64 [3, resamples]: background pixels, region pixels and their weight, all above 0.
    limits : sequence of float
        Of the areas.
    """
    resamples = len(counts)
    groups = -(-resamples // LANES)
    lanes = np.zeros((groups * LANES, counts.shape[1]), np.int16)
    lanes[:resamples] = counts
    tables = np.ascontiguousarray(lanes.reshape(groups, LANES, -1).swapaxes(1, 2)).reshape(groups, -1)
    ends = np.array([1.0, *limits])
    rows = AREAS // LANES
    states = np.zeros((groups, rows + 2 * len(ends), LANES))

    def by_lane(values: np.ndarray) -> np.ndarray:
        padded = np.ones((*values.shape[:-1], groups * LANES))
        padded[..., :resamples] = values
        return padded.reshape(*values.shape[:-1], groups, LANES)

    backgrounds, regions, weight = totals
    states[:, BEST_OF // LANES] = 1.0
    states[:, TOTAL // LANES] = by_lane(regions)
    states[:, rows + 1 :: 2] = by_lane(ends[:, None] * backgrounds).swapaxes(0, 1)
    most = MOST // max(int(counts.max()), 1)
    images, reached, passed, starts, classes = ranked
    sweep_groups(
        images, reached, passed, starts, classes, owners, weights, tables, most, states.reshape(groups, -1)
    )

    found = states.swapaxes(0, 1).reshape(states.shape[1], -1)[:, :resamples]
    whole = np.concatenate([[regions], np.broadcast_to(weight, (len(limits), resamples))])
    # The sums round; a perfect ranking must not come out above 1.
    roc, *areas = np.minimum(found[rows::2] / (found[rows + 1 :: 2] * whole), 1.0)
    average = found[SUMMED // LANES] / regions
    f1_max = 2 * found[BEST // LANES] / found[BEST_OF // LANES]
    return np.array(areas).reshape(len(limits), resamples), roc, average, f1_max
