"""The limit on memory: what fits under it gives the same scores, what cannot is refused by name."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glance_fast import UserError
from glance_fast.config import Config
from glance_fast.engines import dense
from glance_fast.engines.memory import (
    IMAGES_TOGETHER,
    MIB,
    base_bytes,
    pass_bytes,
    readout_bytes,
    split,
    surround_bytes,
    waiting_bytes,
    window_bytes,
)
from glance_fast.engines.patchwise import passes_at_a_time
from glance_fast.kernels.window_conv import cpu as window_conv_cpu
from glance_fast.kernels.window_sample import cpu as window_sample_cpu
from glance_fast.model import Glance
from glance_fast.nets.masked import read_places

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


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that are held at a time."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # What was there before is not counted, also not through views of it.
        self.known |= {id(s) for s in storages(args)} - self.known
        made = function(*args, **(kwargs or {}))
        for storage in storages(made):
            if id(storage) not in self.known:
                self.known.add(id(storage))
                weakref.finalize(storage, self.forget, id(storage), storage.nbytes())
                self.held += storage.nbytes()
        self.most = max(self.most, self.held)
        return made

    def forget(self, storage, size):
        self.known.discard(storage)
        self.held -= size


def storages(values):
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_readout_takes_is_counted(dtype, monkeypatch):
    scale = Glance(Config(**{**SETTINGS, "width": 32}, net="pyramid")).scales[0]
    net, grid = scale.global_net.eval(), scale.grid
    x = dense.as_computed(torch.zeros(1, 3, grid.height, grid.width, dtype=dtype))
    with torch.no_grad():
        weights = dense.folded(net, dtype)
        base = dense.unmasked_layers(net, x, weights)
        chunk = dense.plan(dense.geometry_of(net), grid, x.device, 8, 1)[0]
        count = len(chunk.patches)
        _, read = dense.masked(net, x, base, weights, chunk, torch.zeros(count, dtype=torch.int64))
        pooled = torch.zeros(count, 1, len(net.layers()[-1].module.weight))
        places = read_places(net.patch, chunk.places[:, None], x.shape[-2:])
        # Without C code, where torch holds all corners at a time.
        monkeypatch.setattr(window_sample_cpu, "library", lambda: None)
        with Peak() as reads:
            found = net.read(read, pooled, places)
        rows = found.repeat(64 // count + 1, 1, 1)[:64].clone()
        with Peak() as predicts:
            net.predict(rows)
    assert count >= 4 and 0 < reads.most <= count * readout_bytes(net) <= 2 * reads.most
    # The rows themselves were there.
    taken = predicts.most + rows.numel() * 4
    assert taken <= waiting_bytes(net, 64) <= 2 * taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_windows_take_is_counted(dtype, monkeypatch):
    # What oneDNN convolves in steps, where it does, takes as much for few windows as for many.
    monkeypatch.setattr(window_conv_cpu, "STEP_BYTES", 1)
    scale = Glance(Config(**{**SETTINGS, "width": 32}, net="pyramid")).scales[0]
    net, grid = scale.global_net.eval(), scale.grid
    x = dense.as_computed(torch.zeros(1, 3, grid.height, grid.width, dtype=dtype))
    with torch.no_grad():
        weights = dense.folded(net, dtype)
        with Peak() as whole:
            base = dense.unmasked_layers(net, x, weights)
        (chunk, *_) = sorted(
            dense.plan(dense.geometry_of(net), grid, x.device, 99, 1), key=lambda c: -len(c.patches)
        )
        images = torch.zeros(len(chunk.patches), dtype=torch.int64)
        with Peak() as windows:
            dense.masked(net, x, base, weights, chunk, images)
    counted = base_bytes(net, grid, x.itemsize)
    # The image was there; as float32, and what a layer makes on its way, is not counted.
    assert whole.most <= 1.1 * counted + 4 * x.numel() and counted - x.nbytes <= 1.25 * whole.most
    assert 0 < windows.most <= 1.05 * len(images) * window_bytes(net, grid, x.itemsize)


def test_the_readout_takes_its_share_of_the_limit(model, monkeypatch):
    """Of a limit that the windows alone would keep, and of passes alike."""
    scale = model.scales[0]
    net, grid, x = scale.global_net, scale.grid, torch.zeros(1, 3, 96, 128)
    asked, plan = [], dense.plan

    def note(layers, grid, device, step, *more):
        asked.append(step)
        return plan(layers, grid, device, step, *more)

    monkeypatch.setattr(dense, "plan", note)
    windows, readout = window_bytes(net, grid, 4), readout_bytes(net)
    with torch.no_grad():
        for limit in (10 * (windows + readout), 10 * (windows + readout) - 1, 1):
            dense.global_features(net, x, grid, limit)
    assert asked == [10, 9, 1]
    passes = pass_bytes(net, grid, 4)
    assert passes_at_a_time(net, x, grid, 3 * (passes + 5 * readout), 5) == 3
    assert passes_at_a_time(net, x, grid, 3 * (passes + 5 * readout) - 1, 5) == 2


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
    scale = model.scales[0]
    patch = window_bytes(scale.global_net, scale.grid, 4) + readout_bytes(scale.global_net)
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
        with pytest.raises(UserError, match=r"image_size 96x128: .* MiB .* 1 are allowed; .*`memory_mib`"):
            model.score([np.zeros((96, 128, 3), np.uint8)])
    finally:
        model.memory_mib = None


def test_windows_in_bf16_need_less_and_are_scored_where_fp32_does_not_fit(monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: True)
    model = Glance(Config(net="pyramid"))
    for model.memory_mib in range(1, 99):
        try:
            model.memory_share("bf16")
        except UserError:
            continue
        break
    with pytest.raises(UserError, match="scoring takes"):
        model.at_once("fp32")
    assert model.at_once("bf16") >= 1
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.isfinite(model.score([image], precision="bf16").scores).all()
    with pytest.raises(UserError, match="scoring takes"):
        model.score([image])
    # What the model scores in unless told otherwise counts.
    model.precision = "bf16"
    assert model.at_once() == model.at_once("bf16") and len(model.score([image]).scores) == 1
