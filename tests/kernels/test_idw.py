"""The interpolated map against its reference, its definition and what must hold of any average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.kernels.idw import cpu, idw_map, reference

FEW = settings(max_examples=40, deadline=None)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy says in Triton's interpreter what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")


def naive_pixel(scores, centers_y, centers_x, y, x, power, neighbours):
    """One pixel of one image, straight from the definition."""
    centres = [(cy, cx) for cy in centers_y for cx in centers_x]
    squared = [(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centres]
    chosen = sorted(range(len(centres)), key=lambda i: (squared[i], i))[:neighbours]
    flat = scores.ravel()
    if squared[chosen[0]] == 0:
        return flat[chosen[0]]
    weights = [(squared[chosen[0]] / squared[i]) ** (power / 2) for i in chosen]
    return sum(w * flat[i] for w, i in zip(weights, chosen, strict=True)) / sum(weights)


@st.composite
def grids(draw):
    """Centres at multiples of a half, so that distances are exact and often equal; also outside."""

    def axis():
        steps = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
        return draw(st.integers(-6, 12)) / 2 + np.cumsum(steps) / 2

    centers_y, centers_x = axis(), axis()
    shape = (draw(st.sampled_from([0, 1, 3, 4, 5])), len(centers_y), len(centers_x))
    scores = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    size = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    count = len(centers_y) * len(centers_x)
    neighbours = draw(st.one_of(st.none(), st.integers(1, count)))
    power = draw(st.sampled_from([0, 0.5, 1, 2, 2.5, 3, 5, 8, 20, 100]))
    return scores, centers_y, centers_x, *size, power, neighbours


@FEW
@given(grids(), st.sampled_from([np.float32, np.float64]))
def test_equals_reference(grid, dtype):
    scores, *geometry = grid
    got = idw_map(scores.astype(dtype), *geometry)
    assert got.dtype == dtype and got.shape == (scores.shape[0], *geometry[2:4])
    expected = idw_map(scores.astype(dtype).astype(np.float64), *geometry, backend="reference")
    tolerance = 1e-12 if dtype == np.float64 else 2e-6 * max(1.0, geometry[4] / 5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * 4)


def triton_map(scores, *geometry):
    """The map of float32 scores by Triton's kernels, as an array."""
    scores = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32)).to(DEVICE)
    maps = idw_map(scores, *geometry, backend="triton")
    assert maps.device == scores.device and maps.dtype == torch.float32
    return maps.cpu().numpy()


@FEW
@given(grids())
def test_triton_equals_reference(grid):
    scores, *geometry = grid
    expected = idw_map(scores.astype(np.float32).astype(np.float64), *geometry, backend="reference")
    got = triton_map(scores, *geometry)
    tolerance = 2e-6 * max(1.0, geometry[4] / 5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * 4)


@pytest.mark.parametrize("neighbours", [None, 1, 7])
@pytest.mark.parametrize(
    ("images", "rows", "columns", "height", "width"),
    # Around the sizes of blocks: images 16 and 32, columns 32, pixels 64 a row and 256 in all.
    [(1, 3, 4, 2, 65), (17, 2, 33, 3, 64), (35, 3, 5, 4, 65), (16, 5, 32, 5, 63)],
)
def test_triton_at_the_ends_of_its_blocks(images, rows, columns, height, width, neighbours):
    scores = np.random.default_rng(7).standard_normal((images, rows, columns)).astype(np.float32)
    geometry = np.arange(rows) * 2 + 0.5, np.arange(columns) * 3 - 1.0, height, width, 2.0, neighbours
    expected = idw_map(scores.astype(np.float64), *geometry, backend="reference")
    np.testing.assert_allclose(triton_map(scores, *geometry), expected, rtol=0, atol=1e-5)


@FEW
@given(grids())
def test_reference_equals_the_definition(grid):
    scores, centers_y, centers_x, height, width, power, neighbours = grid
    got = idw_map(*grid, backend="reference")
    for b, y, x in [(b, y, x) for b in range(len(scores)) for y in (0, height - 1) for x in (0, width // 2)]:
        expected = naive_pixel(scores[b], centers_y, centers_x, y, x, power, neighbours)
        assert got[b, y, x] == pytest.approx(expected, abs=1e-12)


@FEW
@given(grids())
def test_torch_reference_equals_numpy_reference(grid):
    scores, *geometry = grid
    got = reference.idw_map_torch(torch.from_numpy(scores), *geometry)
    expected = reference.idw_map(scores, *geometry)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


@FEW
@given(grids())
def test_neighbours_and_ties_equal_reference(grid):
    """One-hot scores show which centres a pixel uses."""
    _, centers_y, centers_x, height, width, _, neighbours = grid
    count = len(centers_y) * len(centers_x)
    one_hot = np.eye(count).reshape(count, len(centers_y), len(centers_x))
    for k in {1, min(2, count), neighbours or count}:
        fast = idw_map(one_hot, centers_y, centers_x, height, width, 1.0, k)
        exact = idw_map(one_hot, centers_y, centers_x, height, width, 1.0, k, backend="reference")
        assert np.array_equal(fast > 0, exact > 0)


def test_of_two_as_near_the_lower_index_wins_on_either_side():
    scores = np.array([1.0, 10.0, 100.0])
    # At 2, the centre at 3 is nearest; those at 0 and 4 are equally far. Weights 4 : 1.
    expected = pytest.approx((4 * 10 + 1) / 5)
    assert idw_map(scores.reshape(1, 3, 1), [0, 3, 4], [5], 6, 6, 2, 2)[0, 2, 5] == expected
    assert idw_map(scores.reshape(1, 1, 3), [5], [0, 3, 4], 6, 6, 2, 2)[0, 5, 2] == expected


@pytest.mark.parametrize("neighbours", [None, 1, 5])
@pytest.mark.parametrize("power", [0, 1, 2, 7.3, 20])
def test_exact_at_centres(power, neighbours):
    rows, columns = np.array([1.0, 4.0, 9.0]), np.array([0.0, 2.0, 3.0, 11.0])
    scores = np.random.default_rng(0).standard_normal((3, 3, 4)).astype(np.float32)
    for run in (idw_map, triton_map):
        maps = run(scores, rows, columns, 10, 12, power, neighbours)
        assert np.array_equal(maps[:, rows.astype(int)][:, :, columns.astype(int)], scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("neighbours", [None, 3])
@pytest.mark.parametrize("power", [0, 2, 20, 19, 100, 99.5])
@pytest.mark.parametrize("offset", [1e-7, 0.5, 1e5])
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_extremes_stay_finite_and_within_the_scores(power, neighbours, offset, dtype, backend):
    scores = np.random.default_rng(1).standard_normal((2, 3, 3)).astype(dtype)
    run = idw_map if backend == "cpu" else triton_map
    maps = run(scores, offset + np.array([0.0, 40, 900]), offset + np.arange(3), 31, 17, power, neighbours)
    assert np.isfinite(maps).all()
    assert (maps.max(axis=(1, 2)) <= scores.max(axis=(1, 2)) + 1e-5).all()
    assert (maps.min(axis=(1, 2)) >= scores.min(axis=(1, 2)) - 1e-5).all()


@pytest.mark.parametrize("neighbours", [None, 4])
def test_constant_scores_give_a_constant_map(neighbours):
    maps = idw_map(
        np.full((2, 5, 6), 3.7), np.arange(5) * 8 + 3.5, np.arange(6) * 8 + 3.5, 40, 50, 2, neighbours
    )
    np.testing.assert_allclose(maps, 3.7, rtol=1e-14)


@pytest.mark.parametrize("neighbours", [None, 6])
def test_images_do_not_touch_each_other(neighbours):
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((6, 4, 5)).astype(np.float32)
    grid = np.arange(4) * 3 + 1.5, np.arange(5) * 3 + 1.5, 14, 17, 2.0, neighbours
    together = idw_map(scores, *grid)
    for image, expected in zip(scores, together, strict=True):
        np.testing.assert_allclose(idw_map(image[None], *grid)[0], expected, rtol=1e-5, atol=1e-6)


def test_flipping_the_scores_flips_the_map():
    scores = np.random.default_rng(4).standard_normal((1, 4, 7))
    grid = np.arange(4) * 4 + 1.5, np.arange(7) * 4 + 1.5, 16, 28
    flipped = idw_map(scores[:, ::-1, ::-1].copy(), *grid)
    np.testing.assert_allclose(flipped[:, ::-1, ::-1], idw_map(scores, *grid), rtol=1e-12)


@pytest.mark.parametrize("neighbours", [None, 1])
def test_smallest_cases(neighbours):
    one = np.full((1, 1, 1), 2.5, np.float32)
    assert idw_map(one, [7.25], [-3.0], 1, 1, 20, neighbours).tolist() == [[[2.5]]]
    assert (idw_map(one, [7.25], [-3.0], 9, 5, 2, neighbours) == 2.5).all()
    assert idw_map(np.zeros((0, 2, 3)), [1, 2], [1, 2, 3], 4, 5, 2, neighbours).shape == (0, 4, 5)


# What Triton's kernels say of float64, which they have not, is tested below.
@pytest.mark.parametrize(
    ("backend", "given_dtype", "result"),
    [
        (backend, given_dtype, result)
        for backend in ("auto", "cpu", "reference", "triton")
        for given_dtype, result in (
            (torch.float64, torch.float64),
            (torch.bfloat16, torch.float32),
            (torch.int32, torch.float32),
        )
        if (backend, given_dtype) != ("triton", torch.float64)
    ],
    ids=str,
)
def test_tensors_come_back_as_tensors(backend, given_dtype, result):
    scores = torch.arange(12).reshape(2, 2, 3).to(given_dtype)
    scores = scores.to(DEVICE if backend == "triton" else "cpu")
    maps = idw_map(scores, torch.tensor([0.5, 4.5]), torch.tensor([0.5, 3.5, 9]), 6, 8, backend=backend)
    assert isinstance(maps, torch.Tensor) and maps.dtype == result and maps.device == scores.device
    maps, scores = maps.cpu(), scores.cpu()
    expected = idw_map(scores.double().numpy(), [0.5, 4.5], [0.5, 3.5, 9], 6, 8, backend="reference")
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_views_and_strides_and_unchanged_inputs():
    scores = np.random.default_rng(5).standard_normal((8, 6, 10)).astype(np.float32)
    view = scores[::2, ::2, ::-1][:, :, :4]
    view.setflags(write=False)
    for neighbours in (None, 3):
        got = idw_map(view, np.arange(3) + 0.5, np.arange(4) * 2 + 0.5, 5, 9, 3, neighbours)
        expected = idw_map(view.copy(), np.arange(3) + 0.5, np.arange(4) * 2 + 0.5, 5, 9, 3, neighbours)
        assert np.array_equal(got, expected)


def test_tables_are_kept_by_geometry_and_bounded():
    scores = np.random.default_rng(6).standard_normal((1, 3, 3))
    cpu._table.cache_clear()
    first = idw_map(scores, [0, 2, 4], [0, 2, 4], 6, 6, 2, 3)
    other = idw_map(scores, [0, 2, 4], [0, 2, 5], 6, 6, 2, 3)
    again = idw_map(scores, [0, 2, 4], [0, 2, 4], 6, 6, 2, 3)
    assert cpu._table.cache_info().hits == 1
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    for width in range(1, 9):
        idw_map(scores, [0, 2, 4], [0, 2, 4], 6, width, 2, 3)
    assert cpu._table.cache_info().currsize == cpu.TABLES_KEPT


def test_nan_stays_with_the_pixels_that_use_it():
    scores = np.random.default_rng(8).standard_normal((2, 1, 6)).astype(np.float32)
    scores[1, 0, 4] = np.nan
    for run in (idw_map, triton_map):
        maps = run(scores, [0.5], np.arange(6) * 4.0 + 0.5, 2, 22, 2.0, 2)
        assert np.array_equal(np.isnan(maps[1, 0]), np.arange(22) > 12.5) and np.isfinite(maps[0]).all()


def test_pixels_in_several_steps(monkeypatch):
    scores = np.random.default_rng(9).standard_normal((3, 4, 5)).astype(np.float32)
    grid = np.arange(4) * 3 + 1.5, np.arange(5) * 3 + 1.5, 14, 17, 2.0, 6
    expected = idw_map(scores, *grid)
    monkeypatch.setattr(cpu, "NUMBERS_A_STEP", 1)
    assert np.array_equal(idw_map(scores, *grid), expected)


def test_small_functions_without_the_jit():
    out = np.empty(3)
    assert cpu.squared_distances.py_func(2.0, np.array([0.0, 1.5, 4.0]), out) == 0.25
    assert out.tolist() == [4.0, 0.25, 4.0]
    assert cpu.nearest_index.py_func(2.0, np.array([0.0, 1.0, 3.0])) == 1
    assert cpu.comes_before.py_func(1.0, 5, 2.0, 0) and cpu.comes_before.py_func(1.0, 4, 1.0, 5)
    assert not cpu.comes_before.py_func(1.0, 5, 1.0, 5)
    distances, indices, found = np.empty(2), np.empty(2, np.int32), 0
    for distance, index in ((4.0, 9), (4.0, 3), (1.0, 7), (4.0, 5)):
        found = cpu.insert_neighbour.py_func(distance, index, distances, indices, found)
    assert (found, distances.tolist(), indices.tolist()) == (2, [1.0, 4.0], [7, 3])
    weights = np.empty(2)
    cpu.neighbour_weights.py_func(np.array([1.0, 4.0]), 1.0, weights)
    assert weights.tolist() == [0.8, 0.2]
    cpu.neighbour_weights.py_func(np.array([0.0, 4.0]), 1.0, weights)
    assert weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("power", [0, 1, 2, 3, 4, 7, 10, 20, 2.5])
def test_weights_are_powers_without_the_jit(power):
    ratios = np.array([1.0, 0.5, 0.3, 0.01])
    values, scratch = ratios.copy(), np.empty(4)
    cpu.ratios_to_weights.py_func(values, float(power), scratch)
    np.testing.assert_allclose(values, ratios ** (power / 2), rtol=1e-13)


def test_nearest_centres_without_the_jit():
    dy2, dx2 = np.array([1.0, 1.0, 9.0]), np.array([4.0, 0.0, 4.0])
    distances, indices = np.empty(4), np.empty(4, np.int32)
    cpu.nearest_centres.py_func(dy2, dx2, 0, 1, distances, indices)
    assert indices.tolist() == [1, 4, 0, 2] and distances.tolist() == [1.0, 1.0, 5.0, 5.0]


S = np.zeros((1, 2, 2))
GOOD = {"scores": S, "centers_y": [0, 1], "centers_x": [0, 1], "height": 4, "width": 4}


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"scores": S.tolist()}, TypeError, "scores"),
        ({"scores": S[0]}, ValueError, "scores"),
        ({"scores": S[:, :0]}, ValueError, "scores"),
        ({"scores": S * 1j}, TypeError, "scores"),
        ({"scores": torch.zeros(1, 2, 2, requires_grad=True)}, ValueError, "gradient"),
        ({"centers_y": [0, 1, 2]}, ValueError, "centers_y"),
        ({"centers_x": [1, 1]}, ValueError, "centers_x must ascend"),
        ({"centers_x": [0, np.nan]}, ValueError, "centers_x"),
        ({"centers_x": [0, 1e300]}, ValueError, "centers_x"),
        ({"centers_x": ["0", "1"]}, TypeError, "centers_x"),
        ({"height": 0}, ValueError, "height"),
        ({"width": 2.0}, TypeError, "width"),
        ({"power": -1}, ValueError, "power"),
        ({"power": np.nan}, ValueError, "power"),
        ({"power": "2"}, TypeError, "power"),
        ({"neighbours": 0}, ValueError, "neighbours"),
        ({"neighbours": 5}, ValueError, "neighbours"),
        ({"neighbours": True}, TypeError, "neighbours"),
        ({"backend": "numba"}, ValueError, "backend"),
        ({"backend": "triton"}, (TypeError, ValueError), "backend"),
        ({"backend": "triton", "scores": torch.zeros(1, 2, 2).double()}, (TypeError, ValueError), "backend"),
        ({"backend": "cpu", "scores": torch.zeros(1, 2, 2, device="meta")}, ValueError, "backend"),
    ],
)
def test_says_what_is_wrong(change, error, word):
    with pytest.raises(error, match=word):
        idw_map(**(GOOD | change))
