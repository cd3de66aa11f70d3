"""Patch grids, and holes against masks that are convolved and pooled for real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glance_fast.geometry import OVERLAP, Hole, PatchGrid, TileGrid, fitting_size, output_size, shrink

FEW = settings(max_examples=60, deadline=None)
MANY = settings(max_examples=300, deadline=None)


@st.composite
def grids(draw):
    patch = draw(st.integers(1, 9))
    stride = draw(st.integers(1, patch))
    frame = draw(st.one_of(st.just(0), st.integers(0, patch // 2)))
    # Steps that bring the last patch to the far side of the frame.
    least = -(-2 * frame // stride)
    height, width = (patch - 2 * frame + stride * (least + draw(st.integers(0, 6))) for _ in range(2))
    return PatchGrid(height, width, patch, stride, frame)


def pixels_of(box, grid):
    """Every pixel of the image that a box shows, by itself or in the mirror: bool [height, width]."""
    shown = np.zeros((grid.height, grid.width), bool)
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            # The outermost pixel is repeated: -1 shows 0, and height shows height - 1.
            y_ = y if 0 <= y < grid.height else -1 - y if y < 0 else 2 * grid.height - 1 - y
            x_ = x if 0 <= x < grid.width else -1 - x if x < 0 else 2 * grid.width - 1 - x
            shown[y_, x_] = True
    return shown


def intervals(size):
    """Half-open intervals within [0, size]; the ends are drawn far oftener than a uniform choice would."""
    place = st.one_of(st.sampled_from([0, size]), st.integers(0, size))
    return st.tuples(place, place).map(sorted).map(tuple)


@st.composite
def layers(draw):
    kernel, stride = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    return kernel, stride, draw(st.integers(0, kernel - 1))


def seen_of(valid, kernel, stride, padding):
    """sum(M) of Eq. 5 at every output of a mask bool [h, w], by a real convolution."""
    ones = torch.ones(1, 1, kernel, kernel)
    return F.conv2d(valid[None, None].float(), ones, None, stride, padding)[0, 0]


def valid_of(size, hole):
    valid = torch.ones(size, dtype=torch.bool)
    valid[max(hole.top, 0) : max(hole.bottom, 0), max(hole.left, 0) : max(hole.right, 0)] = False
    return valid


# Patch grids


@pytest.mark.parametrize(
    ("height", "width", "patch", "stride", "rows", "cols"),
    [
        pytest.param(256, 256, 32, 8, 29, 29, id="square"),
        pytest.param(64, 40, 32, 8, 5, 2, id="tall"),
        pytest.param(32, 96, 32, 16, 1, 5, id="one-row"),
        pytest.param(32, 32, 32, 32, 1, 1, id="one-patch"),
        pytest.param(96, 64, 32, 32, 3, 2, id="without-overlap"),
        pytest.param(256, 256, (32, 8), 8, 31, 31, id="frame"),
        pytest.param(64, 32, (32, 16), 16, 5, 3, id="frame-of-half-a-patch"),
    ],
)
def test_grid_counts_rows_and_columns(height, width, patch, stride, rows, cols):
    patch, *frame = patch if isinstance(patch, tuple) else (patch,)
    grid = PatchGrid(height, width, patch, stride, *frame)
    assert (grid.rows, grid.cols, len(grid)) == (rows, cols, rows * cols)
    assert grid.holes.shape == (rows * cols, 4) and grid.holes.dtype == np.int64


@FEW
@given(grids())
def test_patches_stand_in_raster_order_and_reach_every_border(grid):
    frame = grid.frame
    expected = [
        (top, left, top + grid.patch, left + grid.patch)
        for top in range(-frame, grid.height + frame - grid.patch + 1, grid.stride)
        for left in range(-frame, grid.width + frame - grid.patch + 1, grid.stride)
    ]
    assert [tuple(hole) for hole in grid.holes.tolist()] == expected
    assert expected[0][:2] == (-frame, -frame)
    assert expected[-1][2:] == (grid.height + frame, grid.width + frame)


@FEW
@given(grids())
def test_patches_cover_every_pixel(grid):
    covered = np.zeros((grid.height, grid.width), bool)
    for top, left, bottom, right in grid.holes:
        covered[max(top, 0) : bottom, max(left, 0) : right] = True
    assert covered.all()


@FEW
@given(grids())
def test_hidden_and_surrounded_by_the_pixels_that_patches_show(grid):
    shown = np.stack([pixels_of(box, grid).ravel() for box in grid.holes.tolist()]).astype(np.float32)
    shares = (shown @ shown.T > 0).reshape(grid.rows, grid.cols, grid.rows, grid.cols)
    half = grid.hidden // 2
    assert grid.hidden % 2 == 1
    row, col = np.arange(grid.rows), np.arange(grid.cols)
    near = np.abs(row[:, None] - row) <= half, np.abs(col[:, None] - col) <= half
    # Whatever the mirror shows of a patch, it shares pixels with those near it alone, and with all of them.
    np.testing.assert_array_equal(shares, near[0][:, None, :, None] & near[1][None, :, None, :])
    assert grid.surrounded == (~shares).any((2, 3)).all()


@pytest.mark.parametrize(
    ("grid", "hidden", "surrounded"),
    [
        pytest.param(PatchGrid(256, 256, 32, 8, 8), 7, True, id="32"),
        pytest.param(PatchGrid(256, 256, 64, 16, 16), 7, True, id="64"),
        pytest.param(PatchGrid(64, 64, 32, 16, 8), 3, True, id="small"),
        pytest.param(PatchGrid(64, 64, 32, 16), 3, False, id="small-without-frame"),
        pytest.param(PatchGrid(48, 80, 32, 16), 3, True, id="one-long-side"),
        pytest.param(PatchGrid(96, 96, 32, 32), 1, True, id="without-overlap"),
        pytest.param(PatchGrid(32, 32, 32, 32), 1, False, id="one-patch"),
        pytest.param(PatchGrid(100, 100, 32, 12, 2), 5, True, id="stride-that-does-not-divide"),
    ],
)
def test_hidden_and_surrounded_examples(grid, hidden, surrounded):
    assert (grid.hidden, grid.surrounded) == (hidden, surrounded)


@FEW
@given(grids())
def test_centres_are_the_mean_coordinate_of_the_patch(grid):
    y, x = np.meshgrid(grid.centers_y, grid.centers_x, indexing="ij")
    for (top, left, bottom, right), cy, cx in zip(grid.holes, y.ravel(), x.ravel(), strict=True):
        assert cy == np.arange(top, bottom).mean()
        assert cx == np.arange(left, right).mean()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param((64, 64, 0, 1), "at least 1", id="no-patch"),
        pytest.param((64, 64, 8, 0), "at least 1", id="no-stride"),
        pytest.param((64, 64, 8, 9), "leaves gaps", id="gaps"),
        pytest.param((31, 64, 32, 8), "height 31 is smaller", id="low-image"),
        pytest.param((64, 31, 32, 8), "width 31 is smaller", id="narrow-image"),
        pytest.param((65, 64, 32, 8), "height 65 leaves a strip.* 64 fits", id="strip-below"),
        pytest.param((64, 71, 32, 8), "width 71 leaves a strip.* 72 fits", id="strip-right"),
        pytest.param((64, 64, 32, 8, 2), "height 64 leaves a strip.* 60 fits", id="strip-of-a-frame"),
        pytest.param((64, 64, 32, 8, -4), "between 0 and half a patch of 32, got -4", id="frame-negative"),
        pytest.param((64, 64, 32, 8, 20), "between 0 and half a patch of 32, got 20", id="frame-too-wide"),
    ],
)
def test_grid_refuses(values, words):
    with pytest.raises(ValueError, match=words):
        PatchGrid(*values)


@FEW
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 60), st.integers(0, 60), st.integers(0, 4))
def test_the_size_that_a_refusal_names_is_accepted(patch, stride, height, width, frame):
    assume(stride <= patch <= min(height, width) and 2 * frame <= patch)
    for _ in range(2):
        try:
            PatchGrid(height, width, patch, stride, frame)
            return
        except ValueError as error:
            named = int(str(error).rsplit(";", 1)[1].split()[0])
            height, width = (named, width) if "height" in str(error) else (height, named)
    PatchGrid(height, width, patch, stride, frame)


@FEW
@given(grids(), st.integers(0, 25))
def test_lattices_partition_the_grid_and_keep_their_spacing(grid, extra):
    spacing = grid.patch + extra
    groups = grid.lattices(spacing)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(grid)))
    for group in groups:
        corners = grid.holes[group, :2]
        apart = np.abs(corners[:, None] - corners[None]).max(-1)
        np.fill_diagonal(apart, spacing)
        assert apart.min() >= spacing


@pytest.mark.parametrize("spacing", [16, 17, 32])
def test_lattices_are_as_few_as_the_spacing_allows(spacing):
    groups = PatchGrid(64, 64, 16, 4).lattices(spacing)
    assert len(groups) == (-(-spacing // 4)) ** 2


def test_lattices_that_would_overlap_are_refused():
    with pytest.raises(ValueError, match="spacing 15"):
        PatchGrid(64, 64, 16, 4).lattices(15)


# Holes through layers


@pytest.mark.parametrize(
    ("hole", "empty"),
    [((0, 0, 1, 1), False), ((2, 0, 2, 5), True), ((0, 4, 9, 4), True), ((5, 0, 3, 9), True)],
    ids=["pixel", "no-rows", "no-columns", "turned-over"],
)
def test_empty(hole, empty):
    assert Hole(*hole).empty is empty


@st.composite
def masked_inputs(draw):
    kernel, stride, padding = draw(layers())
    least = max(1, kernel - 2 * padding)
    size = tuple(draw(st.integers(least, least + 14)) for _ in range(2))
    (top, bottom), (left, right) = (draw(intervals(s)) for s in size)
    return size, Hole(top, left, bottom, right), (kernel, stride, padding)


@MANY
@given(masked_inputs())
def test_hole_through_a_layer_is_where_the_convolved_mask_is_zero(case):
    size, hole, layer = case
    seen = seen_of(valid_of(size, hole), *layer)
    after = hole.through(size, *layer)
    assert torch.equal(seen > 0, valid_of(seen.shape, after))
    # One form of "nothing", so that holes can be compared.
    assert not after.empty or after == Hole(0, 0, 0, 0)


@MANY
@given(masked_inputs())
def test_hole_through_a_layer_is_where_the_max_pooled_mask_is_zero(case):
    size, hole, (kernel, stride, padding) = case
    assume(padding <= kernel // 2)  # max_pool2d takes no more
    pooled = F.max_pool2d(valid_of(size, hole)[None].float(), kernel, stride, padding)[0]
    after = hole.through(size, kernel, stride, padding)
    assert torch.equal(pooled > 0, valid_of(pooled.shape, after))


@FEW
@given(masked_inputs())
def test_parts_of_a_hole_outside_the_image_change_nothing(case):
    size, hole, layer = case
    assume(not hole.empty)
    beyond = Hole(
        hole.top - 3 * (hole.top == 0),
        hole.left - 3 * (hole.left == 0),
        hole.bottom + 3 * (hole.bottom == size[0]),
        hole.right + 3 * (hole.right == size[1]),
    )
    assert beyond.through(size, *layer) == hole.through(size, *layer)


@FEW
@given(masked_inputs(), st.lists(layers(), min_size=1, max_size=4))
def test_chain_of_layers(case, more):
    size, hole, first = case
    valid = valid_of(size, hole)
    for kernel, stride, padding in [first, *more]:
        if min(valid.shape) + 2 * padding < kernel:
            break
        hole = hole.through(tuple(valid.shape), kernel, stride, padding)
        valid = seen_of(valid, kernel, stride, padding) > 0
        assert torch.equal(valid, valid_of(valid.shape, hole))


@pytest.mark.parametrize("whole", [True, False], ids=["all-hidden", "all-seen"])
def test_chain_keeps_nothing_hidden_and_everything_hidden(whole):
    size, hole = (40, 56), Hole(0, 0, 40, 56) if whole else Hole(7, 7, 7, 30)
    for kernel, stride, padding in [(8, 4, 2), (3, 1, 1), (3, 2, 1), (3, 1, 1)]:
        hole = hole.through(size, kernel, stride, padding)
        size = tuple(output_size(s, kernel, stride, padding) for s in size)
        assert hole == (Hole(0, 0, *size) if whole else Hole(0, 0, 0, 0))


@FEW
@given(layers(), st.integers(0, 20), st.data())
def test_shrink_takes_arrays_of_numpy_and_torch_alike(layer, extra, data):
    kernel, _, padding = layer
    size = max(1, kernel - 2 * padding) + extra
    holes = np.array(data.draw(st.lists(intervals(size), min_size=1, max_size=6)))
    start, stop = shrink(holes[:, 0], holes[:, 1], size, *layer)
    for i, (low, high) in enumerate(holes.tolist()):
        if low == high:
            continue
        valid = torch.ones(size, dtype=torch.bool)
        valid[low:high] = False
        seen = F.conv1d(valid[None, None].float(), torch.ones(1, 1, kernel), None, *layer[1:])[0, 0]
        hidden = (seen == 0).nonzero()[:, 0].tolist()
        assert hidden == list(range(start[i], stop[i]))
    low, high = shrink(*torch.from_numpy(holes).unbind(1), size, *layer)
    np.testing.assert_array_equal(low.numpy(), start)
    np.testing.assert_array_equal(high.numpy(), stop)


@FEW
@given(layers(), st.integers(0, 20))
def test_output_size_is_that_of_a_convolution(layer, extra):
    kernel, stride, padding = layer
    size = max(1, kernel - 2 * padding) + extra
    real = F.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, kernel), None, stride, padding).shape[-1]
    assert output_size(size, kernel, stride, padding) == real


# Sizes that fit


def fits(size, scales, least=1):
    scales = [(*scale, 0)[:3] for scale in scales]
    return size >= least and all(
        size >= patch and (size + 2 * frame - patch) % stride == 0 for patch, stride, frame in scales
    )


@st.composite
def scales(draw):
    """Patch and stride, with a frame or without."""
    patch, stride = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    return draw(st.sampled_from([(patch, stride), (patch, stride, draw(st.integers(0, patch // 2)))]))


@FEW
@given(
    st.integers(1, 150),
    st.lists(scales(), min_size=1, max_size=3),
    st.one_of(st.just(1), st.integers(1, 250)),
)
def test_fitting_size_is_the_nearest_that_fits_every_scale(size, scales, least):
    # A search far wider than any common period of small strides.
    possible = [s for s in range(1, 12 * 11 * 10 + 500) if fits(s, scales, least)]
    if not possible:
        with pytest.raises(ValueError, match="no image size fits"):
            fitting_size(size, scales, least)
        return
    assert fitting_size(size, scales, least) == min(possible, key=lambda s: (abs(s - size), s))


@pytest.mark.parametrize(
    ("size", "scales", "expected"),
    [
        pytest.param(256, [(32, 8), (64, 16)], 256, id="fits-already"),
        pytest.param(255, [(32, 8), (64, 16)], 256, id="up"),
        pytest.param(260, [(32, 8)], 256, id="tie-goes-down"),
        pytest.param(10, [(32, 8), (64, 16)], 64, id="below-the-largest-patch"),
        pytest.param(256, [(32, 8, 8), (64, 16, 16)], 256, id="frames"),
        pytest.param(256, [(32, 8, 2)], 252, id="frame-tie-goes-down"),
        pytest.param(256, [(32, 8), (32, 8, 4)], 256, id="with-and-without"),
    ],
)
def test_fitting_size_examples(size, scales, expected):
    assert fitting_size(size, scales) == expected


def test_nothing_below_the_least_is_considered():
    assert fitting_size(65, [(32, 8)], 65) == 72
    assert fitting_size(10, [(32, 8)], 200) == 200
    assert fitting_size(300, [(32, 8)], 200) == 296


def test_scales_that_never_fit_together_are_refused():
    with pytest.raises(ValueError, match="no image size fits"):
        fitting_size(256, [(32, 8), (33, 8)])


@MANY
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 90), st.integers(1, 90))
def test_tiles_cover_a_photograph_and_their_weights_sum_to_one(height, width, tall, wide):
    grid = TileGrid(height, width, (tall, wide))
    assert grid.sides == (min(tall, height), min(wide, width))
    assert len(grid) == len(grid.tops) * len(grid.lefts)
    axes = (grid.tops, grid.weights_y, height), (grid.lefts, grid.weights_x, width)
    for (starts, weights, size), side in zip(axes, grid.sides, strict=True):
        assert starts[0] == 0 and starts[-1] == size - side
        steps = np.diff(starts)
        assert (steps > 0).all() and (steps <= max(1, side - OVERLAP * side)).all()
        # All steps are the same but the last, which may be shorter.
        assert len(set(steps[:-1])) <= 1 and (len(steps) < 2 or steps[-1] <= steps[0])
        assert weights.shape == (len(starts), side) and (weights > 0).all()
        total = np.zeros(size)
        for start, own in zip(starts, weights, strict=True):
            total[start : start + side] += own
        np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize(("height", "width", "tile"), [(0, 5, (3, 3)), (5, 5, (0, 3)), (5, 5, (3, -1))])
def test_tiles_of_nothing_are_refused(height, width, tile):
    with pytest.raises(ValueError, match="has no tiles"):
        TileGrid(height, width, tile)
