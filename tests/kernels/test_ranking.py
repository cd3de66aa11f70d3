"""The ranking against its reference, and its small functions without the JIT."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.kernels import ranking
from glance_fast.kernels.ranking import cpu, reference

FEW = settings(max_examples=40, deadline=None)
FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
# Few distinct values make ties, also of the two zeros.
TIED = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38])


@st.composite
def images(draw):
    """Images of odd sizes, classes from 0 to 3, at least one background and one region pixel."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    if sum(sizes) < 2:
        sizes.append(1)
    total = sum(sizes)
    values = draw(st.lists(draw(st.sampled_from([FLOATS, TIED])), min_size=total, max_size=total))
    labels = draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    labels[0], labels[-1] = 0, 2
    cuts = np.cumsum(sizes)[:-1]
    scores = np.split(np.array(values, np.float32), cuts)
    return scores, np.split(np.array(labels, np.int32), cuts)


WEIGHTS = np.array([0.0, 0.5, 0.125, 1.0 / 3.0])


def groups(ranked):
    """Background counts and sorted classes of each distinct score, ascending: what a ranking means."""
    high = ranked.regions >> np.uint64(32)
    low = ranked.regions & np.uint64(0xFFFFFFFF)
    scores = np.union1d(ranked.background.astype(np.uint64), high)
    return [(int((ranked.background == s).sum()), sorted(low[high == s].tolist())) for s in scores]


@FEW
@given(images(), st.sampled_from([1.0, 0.3, 0.05, 0.5, 1 / 3]))
def test_equals_reference(data, limit):
    scores, classes = data
    fast, exact = ranking.rank(scores, classes), ranking.rank(scores, classes, backend="reference")
    assert groups(fast) == groups(exact)
    assert (np.diff(fast.background.astype(np.int64)) >= 0).all()
    got = ranking.area(fast, WEIGHTS, limit)
    assert got == pytest.approx(ranking.area(exact, WEIGHTS, limit, backend="reference"), abs=1e-12)
    assert 0.0 <= got <= 1.0


@FEW
@given(images())
def test_precision_equals_the_reference(data):
    fast, exact = (
        ranking.precision(ranking.rank(*data, backend=b), backend=b) for b in ("auto", "reference")
    )
    assert fast == pytest.approx(exact, abs=1e-12)
    assert 0 < fast.average <= 1 and 0 < fast.f1_max <= 1
    harmonic = 2 * fast.precision * fast.recall / (fast.precision + fast.recall)
    assert fast.f1_max == pytest.approx(harmonic)


def test_precision_says_what_is_wrong():
    with pytest.raises(TypeError, match="ranked must come from rank"):
        ranking.precision((1, 2))
    with pytest.raises(ValueError, match="no region pixel"):
        ranking.precision(ranking.rank([np.ones(3)], [np.zeros(3, int)]))
    with pytest.raises(ValueError, match="backend must be"):
        ranking.precision(ranking.rank([np.ones(3)], [np.arange(3)]), backend="gpu")


@FEW
@given(images(), st.randoms(use_true_random=False))
def test_order_of_pixels_does_not_matter(data, random):
    scores, classes = np.concatenate(data[0]), np.concatenate(data[1])
    order = list(range(len(scores)))
    random.shuffle(order)
    first = ranking.area(ranking.rank([scores], [classes]), WEIGHTS, 0.3)
    shuffled = ranking.rank([scores[order]], [classes[order]])
    assert ranking.area(shuffled, WEIGHTS, 0.3) == pytest.approx(first, abs=1e-12)


@FEW
@given(images(), st.sampled_from([1.0, 0.3]), st.sampled_from([3, 4, 10, 300]))
def test_curve_points_lie_on_the_whole_curve(data, limit, points):
    ranked = ranking.rank(*data)
    for backend in ("cpu", "reference"):
        x, y = ranking.curve(ranked, WEIGHTS, limit, points, backend=backend)
        assert len(x) <= points
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
        assert (x[0], y[0]) == (0.0, 0.0) and x[-1] == pytest.approx(limit)
        full_x, full_y = reference.cut_curve(*ranked, WEIGHTS, limit)
        distance = np.abs(full_x[:, None] - x) + np.abs(full_y[:, None] - y)
        assert distance.min(axis=0).max() < 1e-12


def test_curve_with_room_for_all_has_the_exact_area():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 30, 500).astype(np.float32)
    ranked = ranking.rank([scores], [rng.integers(0, 4, 500)])
    x, y = ranking.curve(ranked, WEIGHTS, 0.4, 100_000)
    area = np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x)) / 0.4
    assert area == pytest.approx(ranking.area(ranked, WEIGHTS, 0.4), abs=1e-12)


def test_float64_beyond_float32_is_ranked_exactly():
    step = 2.0**-40
    scores = np.array([1.0, 1.0 + step, 1.0 + 2 * step, 1.0 + step, -0.0, 0.0])
    classes = np.array([0, 1, 0, 0, 2, 0])
    ranked = ranking.rank([scores], [classes])
    assert groups(ranked) == [(1, [2]), (1, []), (1, [1]), (1, [])]
    assert groups(ranked) == groups(ranking.rank([scores], [classes], backend="reference"))


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.int32])
def test_large_integers_are_ranked_exactly(dtype):
    scores = np.array([2**24, 2**24 + 1, 2**24 + 2, 2**24 + 1], dtype)
    assert groups(ranking.rank([scores], [np.array([0, 1, 0, 0])])) == [(1, []), (1, [1]), (1, [])]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64, bool, np.int64])
def test_narrow_values_take_the_short_way(dtype):
    assert cpu.fits_float32(np.array([0, 1, 1, 0], dtype))


def test_all_regions_and_all_background_fill_the_buffer():
    scores = np.arange(5, dtype=np.float32)[::-1]
    assert len(ranking.rank([scores], [np.ones(5, int)]).background) == 0
    assert ranking.rank([scores], [np.zeros(5, int)]).regions.size == 0


def test_large_random_sort():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(100_003).astype(np.float32)
    classes = rng.random(len(scores)) < 0.1
    ranked = ranking.rank([scores], [classes])
    expected = np.sort(scores[~classes])
    bits = ranked.background
    back = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).astype(np.uint32).view(np.float32)
    assert np.array_equal(back, expected)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.0), (-2.0, -1.0), (0.0, 1e-45), (1.0, 1.0000001)])
def test_ordered_bits_keep_order(low, high):
    bits = np.array([low, high], np.float32).view(np.uint32)
    assert cpu.ordered_bits.py_func(bits[0]) < cpu.ordered_bits.py_func(bits[1])
    assert int(cpu.ordered_bits.py_func(bits[1])) == int(cpu.ordered_bits(bits[1])) < 2**32


def test_zeros_tie():
    zeros = np.array([0.0, -0.0], np.float32).view(np.uint32)
    assert cpu.ordered_bits.py_func(zeros[0]) == cpu.ordered_bits.py_func(zeros[1])


def test_small_functions_without_the_jit():
    key = cpu.region_key.py_func(7, 9)
    assert (int(cpu.score_of.py_func(key)), int(cpu.class_of.py_func(key))) == (7, 9)
    assert cpu.interpolate.py_func(1.0, 2.0, 3.0, 6.0, 2.0) == 4.0
    assert cpu.trapezoid.py_func(1.0, 2.0, 3.0, 6.0) == 8.0
    assert [int(cpu.digit.py_func(0b11_00000000010_00000000001, place)) for place in range(3)] == [1, 2, 3]
    background = np.array([1, 2, 2, 5], np.uint32)
    regions = np.array([2 << 32 | 1, 5 << 32 | 1], np.uint64)
    weights = np.array([0.0, 1.0])
    assert cpu.next_tie.py_func(background, regions, weights, 4, 2, 0.0) == (4, 3, 1, 1.0)
    assert cpu.next_tie.py_func(background, regions, weights, 3, 1, 1.0) == (3, 1, 0, 2.0)
    assert cpu.total_weight.py_func(regions, weights) == 2.0
    assert cpu.area_below.py_func(background, regions, weights, 4.0) == 0.5 + 3.0 + 2.0
    keys, scratch = np.array([5, 1 << 31, 1 << 12, 0], np.uint32), np.empty(4, np.uint32)
    cpu.radix_sort.py_func(keys, scratch)
    assert scratch.tolist() == [0, 5, 1 << 12, 1 << 31]


ONE = np.array([0.0, 1.0])


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: ranking.rank([], []), ValueError, "scores"),
        (lambda: ranking.rank([ONE * np.nan], [[0, 1]]), ValueError, "scores"),
        (lambda: ranking.rank([ONE * 1j], [[0, 1]]), TypeError, "scores"),
        (lambda: ranking.rank([ONE], [[0, 1, 1]]), ValueError, "classes"),
        (lambda: ranking.rank([ONE], [[0, -1]]), ValueError, "classes"),
        (lambda: ranking.rank([ONE], [[0.0, 1.0]]), TypeError, "classes"),
        (lambda: ranking.rank([ONE, ONE], [[0, 1]]), ValueError, "classes"),
        (lambda: ranking.rank([ONE], [[0, 1], [0, 1]]), ValueError, "classes"),
        (lambda: ranking.rank([ONE], [[0, 1]], backend="gpu"), ValueError, "backend"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 1]]), [0.0]), ValueError, "weights"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 1]]), [1.0, 1.0]), ValueError, "weights"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 1]]), [0.0, -1.0]), ValueError, "weights"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 1]]), ONE, 0.0), ValueError, "limit"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 1]]), ONE, 1.1), ValueError, "limit"),
        (lambda: ranking.area(ranking.rank([ONE], [[0, 0]]), ONE), ValueError, "weight"),
        (lambda: ranking.area(ranking.rank([ONE], [[1, 1]]), ONE), ValueError, "background"),
        (lambda: ranking.area((ONE, ONE), ONE), TypeError, "ranked"),
        (lambda: ranking.curve(ranking.rank([ONE], [[0, 1]]), ONE, 1.0, 2), ValueError, "points"),
        (lambda: ranking.curve(ranking.rank([ONE], [[0, 1]]), ONE, 1.0, 9.5), TypeError, "points"),
    ],
)
def test_says_what_is_wrong(call, error, word):
    with pytest.raises(error, match=word):
        call()
