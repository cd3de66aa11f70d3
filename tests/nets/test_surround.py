"""Global-Net over features: one pass for every patch, and not a pixel of a patch in its own prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glance_fast import Config, Glance
from glance_fast.geometry import PatchGrid
from glance_fast.kernels import partial_conv2d
from glance_fast.nets.preprocess import mirrored
from glance_fast.nets.surround import RING, SurroundNet, mean_seen, positions, seen

FEATURES = 6


def shuffled(net: SurroundNet, seed: int = 0) -> SurroundNet:
    """In evaluation mode, with normalisation that is not the identity and biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    with torch.no_grad():
        net.bias.normal_(generator=generator)
    return net.eval()


def net_of(grid: PatchGrid, width: int = 4) -> SurroundNet:
    torch.manual_seed(0)
    return shuffled(SurroundNet(grid, FEATURES, width))


def features_of(grid: PatchGrid, images: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(images, grid.rows, grid.cols, FEATURES, generator=torch.Generator().manual_seed(seed))


GRIDS = [
    PatchGrid(256, 256, 32, 8, 8),
    PatchGrid(256, 256, 64, 16, 16),
    PatchGrid(96, 160, 32, 16, 0),
    PatchGrid(128, 72, 32, 8, 4),
    PatchGrid(80, 400, 64, 16, 8),
]
NAMES = [f"{g.height}x{g.width}, {g.patch} at {g.stride}, frame {g.frame}" for g in GRIDS]


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_prediction_is_the_definition_patch_by_patch(grid):
    net, local = net_of(grid), features_of(grid)
    with torch.no_grad():
        found = net(local)
        value = torch.relu(net.value(local)).permute(0, 3, 1, 2)
        half = net.hole // 2
        for row, col in {(0, 0), (grid.rows // 2, grid.cols // 2), (grid.rows - 1, 1), (1, grid.cols - 1)}:
            # The patch's hole as a mask, the ring as a kernel whose middle is of no account.
            hole = torch.tensor([[row - half, col - half, row + half + 1, col + half + 1]] * len(local))
            mask = torch.ones(len(local), 1, grid.rows, grid.cols)
            mask[:, :, max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1] = 0
            sums, count = torch.zeros(len(local), len(net.bias)), 0
            places = [
                (dy, dx)
                for dy in range(-half - RING, half + RING + 1)
                for dx in range(-half - RING, half + RING + 1)
                if max(abs(dy), abs(dx)) > half
            ]
            far = [(dy, dx) for d in net.far for dy in (-d, 0, d) for dx in (-d, 0, d) if dy or dx]
            weights = torch.cat([net.ring, net.beyond], 2)
            for (dy, dx), weight in zip(places + far, weights.unbind(2), strict=True):
                y, x = row + dy, col + dx
                if 0 <= y < grid.rows and 0 <= x < grid.cols:
                    sums += value[:, :, y, x] @ weight.T
                    count += 1
            near = sums * weights.shape[2] / count + net.bias if count else torch.zeros_like(sums)
            # A kernel as large as all of the grid is the mean over all that is seen.
            ones = torch.ones(1, 1, grid.rows, grid.cols)
            means = [
                partial_conv2d(value[:, c : c + 1], ones, None, hole)[0][:, 0, 0, 0] / ones.numel()
                for c in range(value.shape[1])
            ]
            around = torch.relu(near + net.mean(torch.stack(means, 1)))
            x = torch.cat([around, net.position[row, col].expand(len(local), -1)], 1)
            torch.testing.assert_close(found[:, row, col], net.head(x), rtol=1e-4, atol=1e-4)
            assert mask.sum() > 0


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("phase", [(0, 0), (1, 0), (1, 1)])
def test_every_second_cell_is_that_of_the_whole(grid, phase):
    net, local = net_of(grid), features_of(grid)
    with torch.no_grad():
        whole, part = net(local), net(local, 2, phase)
    expected = whole[:, phase[0] :: 2, phase[1] :: 2]
    assert part.shape == expected.shape
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    patch=st.sampled_from([8, 12, 16]),
    stride=st.sampled_from([4, 8]),
    frame=st.sampled_from([0, 2, 4]),
)
def test_two_patches_see_each_other_if_and_only_if_they_share_no_pixel(data, patch, stride, frame):
    # By the pixels themselves, mirrored ones as what they are copies of.
    rows, cols = (data.draw(st.integers(patch // stride + 2, 9), label) for label in ("rows", "cols"))
    height, width = ((n - 1) * stride + patch - 2 * frame for n in (rows, cols))
    if min(height, width) < patch:
        return
    grid = PatchGrid(height, width, patch, stride, frame)
    number = torch.arange(height * width).view(1, height, width, 1)
    framed = mirrored(number, frame)[0, :, :, 0]
    pixels = [set(framed[t + frame : b + frame, x + frame : r + frame].flatten().tolist())
              for t, x, b, r in grid.holes]  # fmt: skip
    half = grid.hidden // 2
    for p in range(len(grid)):
        for q in range(len(grid)):
            (row, col), (other, beside) = divmod(p, grid.cols), divmod(q, grid.cols)
            seen_by_net = max(abs(row - other), abs(col - beside)) > half
            assert not (seen_by_net and pixels[p] & pixels[q]), (p, q)
            # And nothing is left out that may be seen, but at the frame, where a patch has fewer pixels.
            if not frame:
                assert seen_by_net or pixels[p] & pixels[q], (p, q)


@pytest.mark.parametrize(
    "settings_",
    [
        {"image_size": 256, "patch": (32, 64), "stride": (8, 16)},
        {"image_size": (112, 176), "patch": 32, "stride": 16},
        {"image_size": (130, 150), "patch": 32, "stride": 8, "frame": 16},
        {"image_size": (144, 200), "patch": 64, "stride": 16, "frame": 0},
    ],
    ids=["default", "wide", "widest frame", "no frame"],
)
def test_no_pixel_of_a_patch_reaches_its_prediction(settings_):
    model = Glance(Config(**settings_, width=8))
    for scale in model.scales:
        shuffled(scale.global_net)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*model.config.image_size, 3), dtype=np.uint8)
    before = model.features(image[None])
    for index, scale in enumerate(model.scales):
        grid = scale.grid
        middle = grid.rows // 2 * grid.cols + grid.cols // 2
        for p in {0, grid.cols - 1, middle, len(grid) - 1, rng.integers(len(grid))}:
            top, left, bottom, right = grid.holes[p].clip(0)
            changed = image.copy()
            changed[top:bottom, left:right] = 255 - changed[top:bottom, left:right]
            after = model.features(changed[None])[index]
            assert not torch.equal(after[0][0, p], before[index][0][0, p]), "z_l does not see its patch"
            assert torch.equal(after[1][0, p], before[index][1][0, p]), "z_g sees its patch"
            # Others do see it.
            assert not torch.equal(after[1], before[index][1])


def test_visible_mean_is_the_mean_of_what_is_visible():
    value = torch.randn(2, 7, 9, 3, dtype=torch.float64)
    found = mean_seen(value, seen(7, 3), seen(9, 5))
    for row in range(7):
        for col in range(9):
            visible = torch.ones(7, 9, dtype=torch.bool)
            visible[max(row - 1, 0) : row + 2, max(col - 2, 0) : col + 3] = False
            torch.testing.assert_close(found[:, row, col], value[:, visible].mean(1))


def test_positions_tell_all_cells_apart():
    where = positions(31, 17).flatten(0, 1)
    assert where.shape == (31 * 17, 16)
    assert torch.cdist(where, where).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("axis", [1, 2])
def test_mirror_repeats_the_outermost_pixels(axis):
    images = torch.arange(2 * 5 * 6 * 3).view(2, 5, 6, 3)
    framed = mirrored(images, 2)
    assert framed.shape == (2, 9, 10, 3)
    assert torch.equal(framed[:, 2:-2, 2:-2], images)
    assert torch.equal(framed.select(axis, 1), framed.select(axis, 2))
    assert torch.equal(framed.select(axis, 0), framed.select(axis, 3))
    assert torch.equal(framed.select(axis, -1), framed.select(axis, -4))
