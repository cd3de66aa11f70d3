"""The limit on memory: what fits under it gives the same scores, what cannot is refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from glance_fast import UserError
from glance_fast.config import Config
from glance_fast.engines.memory import IMAGES_TOGETHER, MIB, pass_bytes, split, surround_bytes, window_bytes
from glance_fast.model import Glance

MOST = IMAGES_TOGETHER["cpu"]


SETTINGS = {"image_size": (96, 128), "patch": 32, "stride": 16, "width": 8, "pretrained": False}


@pytest.fixture(scope="module")
def model():
    """With a masked net."""
    return Glance(Config(**SETTINGS, net="pyramid"))


@pytest.fixture(scope="module")
def surround():
    return Glance(Config(**SETTINGS))


def test_a_pass_is_counted_layer_by_layer(model):
    scale = model.scales[0]
    maps = (
        24 * 32
        + 12 * 16 * 3
        + 6 * 8 * (1 + 2 * model.config.blocks[1])
        + 3 * 4 * (1 + 2 * model.config.blocks[2])
    )
    assert pass_bytes(scale.global_net, scale.grid, 4) == 4 * (3 * 96 * 128 + 8 * maps)
    assert pass_bytes(scale.global_net, scale.grid, 2) == 2 * (3 * 96 * 128 + 8 * maps)


def test_a_pass_over_features_is_counted_layer_by_layer(surround):
    scale = surround.scales[0]
    net, places = scale.global_net, len(scale.grid)
    counted = surround_bytes(net, 4)
    assert surround_bytes(net, 2) * 2 == counted
    # What the layers really give: v, h and what the mean adds to it, and all of the head.
    given, handles = [], []
    for module in net.modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(lambda m, i, out: given.append(out.numel())))
    with torch.no_grad():
        net(torch.zeros(1, scale.grid.rows, scale.grid.cols, scale.local.features))
    for handle in handles:
        handle.remove()
    assert places * 4 < 4 * sum(given) <= counted <= 8 * sum(given)


def divided(model, config, *limits):
    """The share of a model with other settings."""
    nets = [scale.global_net for scale in model.scales]
    return split(nets, model.scales[0].local.features, config, *limits)


def least(model):
    """The least limit, bytes, under which an image can be scored."""
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        try:
            divided(model, model.config, 4, middle, MOST)
            high = middle
        except UserError:
            low = middle
    return high


def test_what_is_left_suffices_for_a_patch_and_grows_with_the_limit(model):
    smallest = least(model)
    share = divided(model, model.config, 4, smallest, MOST)
    patch = window_bytes(model.scales[0].global_net, model.scales[0].grid, 4)
    assert share == (1, 1, patch)
    for factor in (1.1, 2, 10, 1000):
        more = divided(model, model.config, 4, int(smallest * factor), MOST)
        assert share.images <= more.images <= more.together <= MOST and more.windows >= patch
    assert more.images == more.together == MOST and more.windows > 100 * patch


def test_a_net_without_windows_needs_none(surround):
    smallest = least(surround)
    assert divided(surround, surround.config, 4, smallest, MOST) == (1, 1, 0)
    for factor in (1.1, 2, 10, 1000):
        more = divided(surround, surround.config, 4, int(smallest * factor), MOST)
        assert 1 <= more.images <= more.together <= MOST
    assert more.images == more.together == MOST
    # Features take more with the frame than without, where there are more patches.
    bare = Glance(Config(**SETTINGS, frame=0))
    assert least(bare) < smallest


@pytest.mark.parametrize("neighbours", [0, 500, 1 << 20])
def test_where_all_patches_count_no_table_is_kept(model, neighbours):
    few = dataclasses.replace(model.config, idw_neighbours=5)
    many = dataclasses.replace(model.config, idw_neighbours=neighbours)
    limit = 1 << 30
    windows = [divided(model, c, 4, limit, MOST).windows for c in (few, many)]
    assert windows[1] - windows[0] == 96 * 128 * 8 * 5


@pytest.mark.parametrize("engine", ["dense", "grouped", "patchwise"])
def test_the_limit_changes_no_score(model, engine):
    images = list(np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), np.uint8))
    free = model.score(images, engine)
    model.memory_mib = -(-least(model) // MIB)
    try:
        bound = model.score(images, engine)
    finally:
        model.memory_mib = None
    np.testing.assert_allclose(bound.maps, free.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bound.patch_scores, free.patch_scores, rtol=1e-4, atol=1e-5)


def test_the_limit_changes_no_score_of_a_net_without_windows(surround):
    images = list(np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), np.uint8))
    free = surround.score(images)
    surround.memory_mib = -(-least(surround) // MIB)
    try:
        assert surround.memory_share().images == 1
        bound = surround.score(images)
    finally:
        surround.memory_mib = None
    np.testing.assert_allclose(bound.maps, free.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bound.patch_scores, free.patch_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", ["model", "surround"])
def test_an_image_that_cannot_fit_is_refused_with_the_setting(net, request):
    model = request.getfixturevalue(net)
    model.memory_mib = 1
    try:
        with pytest.raises(UserError, match=r"image_size 96x128: .* MiB .* 1 are allowed; .*--memory-mib"):
            model.score([np.zeros((96, 128, 3), np.uint8)])
    finally:
        model.memory_mib = None
