"""Resamples against their reference, and against the ranking of the images repeated."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.kernels import ranking, resampling
from glance_fast.kernels.resampling import cpu

FEW = settings(max_examples=40, deadline=None)
FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
# Few distinct values make ties, also of the two zeros.
TIED = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38])
LIMITS = (0.3, 0.05, 1.0)


@st.composite
def images(draw):
    """Images of odd sizes with two regions each at most, numbered on; the first has all kinds of pixels."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=0, max_size=5))
    values = draw(st.sampled_from([FLOATS, TIED]))
    scores, classes, regions = [], [], 0
    for size in (3, *sizes):
        scores.append(np.array(draw(st.lists(values, min_size=size, max_size=size)), np.float32))
        kinds = np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
        if not classes:
            kinds[:] = 0, 1, 2
        classes.append(np.where(kinds > 0, kinds + regions, 0))
        regions += 2
    return scores, classes


def weights_of(classes):
    return np.append(0.0, 1 / np.arange(1, max(int(label.max()) for label in classes) + 1))


def draws(scores, seed, resamples=3):
    """How often images are drawn: never, once, several times; the first image always is."""
    counts = np.random.default_rng(seed).integers(0, 4, (resamples, len(scores)))
    counts[:, 0] += counts[:, 0] == 0
    return counts


def repeated(scores, classes, weights, drawn):
    """The metrics of the images written out as often as they are drawn, each with regions of its own."""
    order = np.repeat(np.arange(len(scores)), drawn)
    highest = len(weights) - 1
    labels = [np.where(classes[i] > 0, classes[i] + n * highest, 0) for n, i in enumerate(order)]
    ranked = ranking.rank([scores[i] for i in order], labels)
    many = np.append(0.0, np.tile(weights[1:], len(order)))
    precise = ranking.precision(ranked)
    areas = [ranking.area(ranked, many, limit) for limit in LIMITS]
    return [*areas, ranking.area(ranked, np.append(0.0, np.ones(len(many) - 1))), *precise[:2]]


def flat(found):
    return np.array([*found.areas, *found[1:]]).T


def check_equal(scores, classes, counts):
    weights = weights_of(classes)
    ranked = resampling.rank(scores, classes)
    got = flat(resampling.sweep(ranked, weights[: len(ranked.owners)], counts, LIMITS))
    expected = [repeated(scores, classes, weights, drawn) for drawn in counts]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    assert (got >= 0).all() and (got <= 1).all()


@FEW
@given(images(), st.integers(0, 2**32 - 1))
def test_equals_the_images_written_out(data, seed):
    check_equal(*data, draws(data[0], seed))


@FEW
@given(images(), st.integers(0, 2**32 - 1))
def test_equals_reference(data, seed):
    scores, classes = data
    fast, exact = (resampling.rank(scores, classes, backend=b) for b in ("auto", "reference"))
    for name in ("reached", "passed", "starts", "owners", "pixels"):
        assert np.array_equal(getattr(fast, name), getattr(exact, name)), name
    edges = np.unique([0, *fast.reached, *fast.passed, len(fast.images)])
    for first, end in pairwise(edges):
        assert sorted(fast.images[first:end]) == sorted(exact.images[first:end])
    for first, end in pairwise(fast.starts):
        assert sorted(fast.classes[first:end]) == sorted(exact.classes[first:end])
    weights, counts = weights_of(classes)[: len(fast.owners)], draws(scores, seed)
    got = flat(resampling.sweep(fast, weights, counts, LIMITS))
    expected = flat(resampling.sweep(exact, weights, counts, LIMITS, backend="reference"))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def example(images=7, pixels=400, values=60, seed=0):
    """Many ties, some between background and regions, some not."""
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, values, pixels).astype(np.float32) for _ in range(images)]
    kinds = rng.integers(-8, 3, (images, pixels)).clip(0)
    return scores, [np.where(kind > 0, kind + 2 * i, 0) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("resamples", [1, cpu.LANES - 1, cpu.LANES, 2 * cpu.LANES + 5])
def test_any_number_of_resamples(resamples):
    scores, classes = example()
    check_equal(scores, classes, draws(scores, resamples, resamples))


def test_few_ties_with_the_background():
    rng = np.random.default_rng(1)
    scores, classes = example()
    check_equal([rng.random(score.shape) for score in scores], classes, draws(scores, 1))


def test_more_images_than_two_bytes_can_number(monkeypatch):
    scores, classes = example()
    monkeypatch.setattr(cpu, "FEW_IMAGES", 6)
    assert resampling.rank(scores, classes).images.dtype == np.uint32
    check_equal(scores, classes, draws(scores, 0))


def test_an_image_drawn_so_often_that_few_pixels_fill_a_counter():
    scores, classes = example(images=2, pixels=40, values=9)
    # 40 pixels of it would overflow int16 by far, and nothing else would tell.
    check_equal(scores, classes, np.array([[cpu.MOST, 1], [1, 1000], [0, cpu.MOST]]))
    with pytest.raises(ValueError, match="counts must lie in"):
        check_equal(scores, classes, np.array([[cpu.MOST + 1, 1]]))


def test_float64_beyond_float32_is_ranked_exactly():
    step = 2.0**-40
    scores = [np.array([1.0, 1.0 + step, 1.0 + 2 * step]), np.array([1.0 + step, -0.0, 0.0])]
    classes = [np.array([0, 1, 0]), np.array([0, 2, 0])]
    ranked = resampling.rank(scores, classes)
    assert ranked.reached.tolist() == [1, 3] and ranked.passed.tolist() == [2, 4]
    check_equal(scores, classes, draws(scores, 0))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_not_defined_is_nan(backend):
    # The first image is all background, the second all region.
    scores, classes = [np.arange(3.0), np.arange(2.0)], [np.zeros(3, int), np.ones(2, int)]
    ranked = resampling.rank(scores, classes, backend=backend)
    counts = np.array([[1, 1], [1, 0], [0, 2], [0, 0], [1, 3]])
    found = flat(resampling.sweep(ranked, [0, 0.5], counts, LIMITS, backend=backend))
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, True, False]
    assert not np.isnan(found[[0, 4]]).any()
    nothing = resampling.sweep(ranked, [0, 0.5], counts[:0], LIMITS, backend=backend)
    assert nothing.areas.shape == (3, 0) and nothing.auroc.shape == (0,)


def test_without_limits_there_are_no_areas():
    scores, classes = example()
    ranked = resampling.rank(scores, classes)
    found = resampling.sweep(ranked, weights_of(classes), draws(scores, 0), ())
    assert found.areas.shape == (0, 3) and (found.auroc > 0).all()


def test_inputs_stay_as_they_are():
    scores, classes = example()
    counts = draws(scores, 0)
    for array in (*scores, *classes, counts):
        array.setflags(write=False)
    ranked = resampling.rank(scores, classes)
    first = flat(resampling.sweep(ranked, weights_of(classes), counts, LIMITS))
    assert np.array_equal(first, flat(resampling.sweep(ranked, weights_of(classes), counts, LIMITS)))


def test_small_functions_without_the_jit(monkeypatch):
    bits = np.array([-1.0, 0.0, 2.0], np.float32).view(np.uint32)
    ordered = np.empty(3, np.uint32)
    cpu.order_descending.py_func(bits, ordered)
    assert ordered[0] > ordered[1] > ordered[2]

    # Falling scores: a region of image 1, background of 0, a tie of both, background of 1.
    room, low, owned = np.empty(5, np.uint64), np.empty(10, np.uint32), np.empty(5, np.uint16)
    low = room.view(np.uint32)
    ordered, classes = np.array([7, 9, 9], np.uint32), np.array([0, 0, 1], np.uint32)
    assert cpu.pack.py_func(ordered, classes, 0, low, owned, room, 0, 0) == (2, 1)
    ordered, classes = np.array([5, 12], np.uint32), np.array([2, 0], np.uint32)
    assert cpu.pack.py_func(ordered, classes, 1, low, owned, room, 2, 1) == (3, 2)
    assert low[:3].tolist() == [7, 9, 12] and owned[:3].tolist() == [0, 0, 1]
    regions = np.sort(room[3:])
    assert cpu.count_ties.py_func(regions) == 2
    reached, passed, starts, labels = (np.empty(n, np.uint32) for n in (2, 2, 3, 2))
    cpu.find_ties.py_func(low[:3], regions, reached, passed, starts, labels)
    assert (reached.tolist(), passed.tolist()) == ([0, 1], [0, 2])
    assert (starts.tolist(), labels.tolist()) == ([0, 1, 2], [2, 1])

    # Both images once, in every lane: the region of image 1 is above all three, the other ties with one.
    rows = np.ones(2 * cpu.LANES, np.int16)
    state = np.zeros(cpu.AREAS + 4 * cpu.LANES)
    state[cpu.BEST_OF : cpu.BEST_OF + cpu.LANES] = 1
    state[cpu.TOTAL : cpu.TOTAL + cpu.LANES] = 2
    state[cpu.AREAS + cpu.LANES : cpu.AREAS + 2 * cpu.LANES] = 3  # all background
    state[cpu.AREAS + 3 * cpu.LANES :] = 1.5
    weights, owners = np.array([0, 0.25, 0.5]), np.array([0, 0, 1])
    for name in ("add_background", "add_region_pixel", "add_area", "add_tied_area", "add_tie"):
        monkeypatch.setattr(cpu, name, getattr(cpu, name).py_func)
    cpu.sweep_lanes.py_func(owned[:3], reached, passed, starts, labels, owners, weights, rows, 1, state)
    lane = state[:: cpu.LANES]
    assert lane[cpu.AREAS // cpu.LANES :].tolist() == [
        3 + (2 + 1) / 2, 3, 0.5 * 1.5 + 0.25 * 0.5 * 0.5 * 0.5, 1.5
    ]  # fmt: skip
    assert lane[cpu.SUMMED // cpu.LANES] == 1 + 2 / 4
    assert lane[cpu.BEST // cpu.LANES] / lane[cpu.BEST_OF // cpu.LANES] == 1 / 3

    keys, images = np.array([5, 1 << 31, 1 << 12, 0], np.uint32), np.arange(4, dtype=np.uint16)
    to_keys, to_images = np.empty_like(keys), np.empty_like(images)
    monkeypatch.setattr(cpu, "move_by_digit", cpu.move_by_digit.py_func)
    cpu.radix_sort.py_func(keys, images, to_keys, to_images, np.zeros((3, cpu.DIGITS), np.int64))
    assert to_keys.tolist() == [0, 5, 1 << 12, 1 << 31] and to_images.tolist() == [3, 0, 2, 1]


ONE, SPLIT = np.array([0.0, 1.0]), [np.array([0, 1])]
RANKED = resampling.rank([ONE], SPLIT)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: resampling.rank([], []), ValueError, "scores"),
        (lambda: resampling.rank([ONE * np.nan], SPLIT), ValueError, "scores"),
        (lambda: resampling.rank([ONE * 1j], SPLIT), TypeError, "scores"),
        (lambda: resampling.rank([ONE], [[0, 1, 1]]), ValueError, "classes"),
        (lambda: resampling.rank([ONE, ONE], SPLIT), ValueError, "classes"),
        (lambda: resampling.rank([ONE, ONE], SPLIT * 2), ValueError, r"classes\[1\] holds class 1 after"),
        (lambda: resampling.rank([ONE], SPLIT, backend="gpu"), ValueError, "backend"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[1]], backend="gpu"), ValueError, "backend"),
        (lambda: resampling.sweep((ONE, ONE), [0, 1], [[1]]), TypeError, "ranked"),
        (lambda: resampling.sweep(RANKED, [0, 0], [[1]]), ValueError, "weights"),
        (lambda: resampling.sweep(RANKED, [0, 1, 1], [[1]]), ValueError, "weights"),
        (lambda: resampling.sweep(RANKED, [1, 1], [[1]]), ValueError, "weights"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[1.0]]), TypeError, "counts"),
        (lambda: resampling.sweep(RANKED, [0, 1], [1]), ValueError, "counts"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[1, 1]]), ValueError, "counts"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[-1]]), ValueError, "counts"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[1]], [0.0]), ValueError, "limit"),
        (lambda: resampling.sweep(RANKED, [0, 1], [[1]], ["1"]), TypeError, "limit"),
    ],
)
def test_says_what_is_wrong(call, error, word):
    with pytest.raises(error, match=word):
        call()
