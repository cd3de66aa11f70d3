"""The grouped engine: one patch a pass is the definition, more of them are the net with all those holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glance_fast.config import Config
from glance_fast.engines import grouped, patchwise
from glance_fast.geometry import PatchGrid
from glance_fast.model import Glance
from glance_fast.nets.masked import MaskedNet

GRID = PatchGrid(128, 160, 32, 16)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = MaskedNet(32, (8,) * 4, (1, 1, 0), features=16).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return net


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_patch_a_pass_is_the_definition(net, images):
    expected = patchwise.global_features(net, images, GRID)
    torch.testing.assert_close(
        grouped.global_features(net, images, GRID, None, 1000), expected, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("spacing", [32, 40, 64, 100])
@pytest.mark.parametrize("limit", [None, 1])
def test_a_pass_is_the_net_with_all_holes_of_a_lattice(net, images, spacing, limit):
    found = grouped.global_features(net, images, GRID, limit, spacing)
    seen = torch.zeros(len(GRID), dtype=torch.bool)
    for lattice in GRID.lattices(spacing):
        holes = torch.from_numpy(GRID.holes[lattice])
        expected = net(images, holes.expand(2, -1, -1))
        torch.testing.assert_close(found[:, lattice], expected, rtol=1e-4, atol=1e-5)
        seen[lattice] = True
    assert seen.all()


def test_the_spacing_is_a_setting():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    settings = {"image_size": 128, "patch": 32, "stride": 16, "width": 8, "pretrained": False}
    models = {s: Glance(Config(**settings, net="pyramid", group_spacing=s)) for s in (1.5, 2, 100)}
    assert [m.scales[0].spacing for m in models.values()] == [48, 64, 3200]
    near, far, alone = (m.score([image], "grouped").patch_scores for m in models.values())
    assert np.abs(near - far).max() > 0
    np.testing.assert_allclose(alone, models[2].score([image]).patch_scores, rtol=1e-4, atol=1e-5)
