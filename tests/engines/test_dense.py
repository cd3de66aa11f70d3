"""The dense engine against the paper's procedure, and its plan against what really changes."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast import UserError
from glance_fast.config import Config
from glance_fast.engines import dense, grouped, patchwise
from glance_fast.engines import plan as plan_module
from glance_fast.engines.passes import folded
from glance_fast.engines.plan import changes, geometry_of, group_by_window_size, plan
from glance_fast.geometry import PatchGrid, fitting_size
from glance_fast.kernels.window_conv import native
from glance_fast.kernels.window_sample import cpu as window_sample_cpu
from glance_fast.model import Glance
from glance_fast.nets.masked import MaskedNet
from glance_fast.nets.preprocess import to_input

NETS = {
    "pyramid": ((8, 8, 8, 8), (1, 1, 1), "hole"),
    "paper": ((4, 6, 8, 12), (1, 1, 1), "pool"),
    "no-blocks": ((4, 4, 4, 4), (0, 0, 0), "hole"),
    "ragged": ((3, 5, 7, 6), (2, 0, 1), "hole"),
}
CPU = torch.device("cpu")


def net_of(name: str, patch: int, seed: int = 0) -> MaskedNet:
    """A net whose BatchNorms are not the identity."""
    torch.manual_seed(seed)
    widths, blocks, readout = NETS[name]
    net = MaskedNet(patch, widths, blocks, readout, features=16).eval()
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return net.to(memory_format=torch.channels_last)


def images(count: int, grid: PatchGrid, seed: int = 1) -> torch.Tensor:
    """Noise over slow waves, so that far places are alike and near ones not."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, grid.height, grid.width, generator=generator)
    return x + torch.linspace(0, 6, grid.width).sin() + torch.linspace(0, 5, grid.height).cos()[:, None]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.isfinite().all()
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("height", "width", "patch", "stride", "batch"),
    [
        (128, 128, 32, 32, 2),
        (96, 160, 32, 16, 1),
        (160, 96, 64, 32, 3),
        (64, 64, 64, 64, 1),
        (72, 104, 32, 8, 1),
    ],
)
def test_equals_the_papers_procedure(name, height, width, patch, stride, batch):
    grid = PatchGrid(height, width, patch, stride)
    net, x = net_of(name, patch), images(batch, grid)
    expected = patchwise.global_features(net, x, grid)
    assert difference(dense.global_features(net, x, grid), expected) <= 1e-5


@torch.no_grad()
def test_without_c_code(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(window_sample_cpu, "library", lambda: None)
    grid = PatchGrid(96, 128, 32, 16)
    net, x = net_of("pyramid", 32), images(2, grid)
    expected = patchwise.global_features(net, x, grid)
    assert difference(dense.global_features(net, x, grid), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 1 << 16, 1 << 30])
def test_the_budget_changes_nothing(budget):
    grid = PatchGrid(96, 128, 32, 16)
    net, x = net_of("pyramid", 32), images(2, grid)
    expected = patchwise.global_features(net, x, grid)
    assert difference(dense.global_features(net, x, grid, budget), expected) <= 1e-5


def pooled(net: MaskedNet) -> None:
    """A channel weighted by a mean over the whole map."""
    net.stages[1].down.norm = torch.nn.GroupNorm(2, 8)


def extended(net: MaskedNet) -> None:
    net.stages[0].attention = torch.nn.Conv2d(8, 8, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [(pooled, r"stages\.1\.down.*"), (extended, r"stages\.0\.attention \(Conv2d\)"), (MaskedNet.train, "")],
    ids=["a norm over the map", "a layer of another kind", "BatchNorm in training"],
)
def test_a_net_that_looks_further_than_its_convolutions_is_refused(change, name):
    net, grid = net_of("pyramid", 32), PatchGrid(64, 64, 32, 32)
    change(net)
    for engine, more in ((dense, ()), (grouped, (64,))):
        with pytest.raises(UserError, match=f"engines dense and grouped: {name}.*"):
            engine.global_features(net, images(1, grid), grid, None, *more)


@torch.no_grad()
def test_no_images():
    grid = PatchGrid(64, 64, 32, 16)
    assert dense.global_features(net_of("paper", 32), images(0, grid), grid).shape == (0, len(grid), 16)


@torch.no_grad()
def test_an_image_is_not_touched_by_its_neighbours_in_the_batch():
    grid = PatchGrid(96, 96, 32, 16)
    net, x = net_of("pyramid", 32), images(3, grid)
    alone = dense.global_features(net, x[1:2], grid)
    assert difference(dense.global_features(net, x, grid)[1:2], alone) <= 1e-6


@torch.no_grad()
def test_bfloat16_is_close():
    grid = PatchGrid(96, 96, 32, 16)
    net, x = net_of("pyramid", 32), images(1, grid)
    exact = dense.global_features(net, x, grid)
    with torch.autocast("cpu", torch.bfloat16):
        z = dense.global_features(net, x, grid)
    assert z.dtype == torch.float32 and 0 < difference(z, exact) <= 0.05


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(NETS)),
    st.integers(64, 150),
    st.integers(64, 150),
    st.sampled_from([(32, 8), (32, 32), (64, 16), (64, 64)]),
    st.integers(0, 10**6),
)
def test_outside_its_window_a_patch_changes_nothing(name, height, width, scale, seed):
    patch, stride = scale
    grid = PatchGrid(fitting_size(height, [scale]), fitting_size(width, [scale]), patch, stride)
    net, x = net_of(name, patch), images(1, grid, seed)
    index = seed % len(grid)
    step = 1 + seed % 7
    (chunk,) = (c for c in plan(geometry_of(net), grid, CPU, step, 1) if index in c.patches)
    place = chunk.patches.tolist().index(index)
    whole = {}
    for masked, holes in ((False, np.zeros((1, 4), np.int64)), (True, grid.holes[index : index + 1])):
        kept = []
        handles = [
            layer.module.register_forward_hook(lambda module, given, out, kept=kept: kept.append(out[0]))
            for layer in net.layers()
        ]
        net(x, torch.from_numpy(holes)[None])
        for handle in handles:
            handle.remove()
        whole[masked] = kept
    for layer, base, changed in zip(chunk.layers, whole[False], whole[True], strict=True):
        (top, left), (height, width), out = layer.origins[place].tolist(), layer.size, base.shape[2:]
        assert 0 <= top <= out[0] - height and 0 <= left <= out[1] - width
        inside = torch.zeros(out, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert torch.equal(base[..., ~inside], changed[..., ~inside])


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_every_patch_stands_in_one_chunk(step):
    grid = PatchGrid(96, 128, 32, 16)
    chunks = plan(geometry_of(net_of("pyramid", 32)), grid, CPU, step, 1)
    assert sorted(torch.cat([c.patches for c in chunks]).tolist()) == list(range(len(grid)))
    assert all(len(c.patches) <= step for c in chunks)


@torch.no_grad()
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_only_patches_that_see_it(odd):
    grid = PatchGrid(96, 128, 32, 16)
    net, x = net_of("pyramid", 32), images(2, grid)
    clean = dense.global_features(net, x, grid)
    x[0, 1, 40, 70] = x[0, 2, 41, 71] = odd
    found = dense.global_features(net, x, grid)
    top, left, bottom, right = torch.from_numpy(grid.holes).T
    hides = (top <= 40) & (bottom > 41) & (left <= 70) & (right > 71)
    assert 0 < hides.sum() < len(grid)
    assert difference(found[0, hides], clean[0, hides]) <= 1e-6 and torch.equal(found[1], clean[1])
    assert found[0, ~hides].isnan().all()
    assert not patchwise.global_features(net, x[:1], grid)[0, ~hides].isfinite().all(1).any()


@torch.no_grad()
def test_weights_are_folded_once_and_again_when_they_change():
    net = net_of("pyramid", 32)
    first = folded(net, torch.float32)
    assert folded(net, torch.float32) is first and folded(net, torch.bfloat16) is not first
    net.stages[1].down.norm.running_var *= 2
    second = folded(net, torch.float32)
    assert second is not first and not torch.equal(second[4].weight, first[4].weight)
    net.stem.weight.data.mul_(2)
    assert torch.equal(folded(net, torch.float32)[0].weight, 2 * second[0].weight)
    net.load_state_dict(net_of("pyramid", 32, seed=5).state_dict())
    assert not torch.equal(folded(net, torch.float32)[0].weight, second[0].weight)
    with torch.inference_mode():
        other = net_of("pyramid", 32)
        before = folded(other, torch.float32)
        other.stem.weight *= 2
        assert not torch.equal(folded(other, torch.float32)[0].weight, before[0].weight)


def work_of(chunks, layers) -> float:
    """Multiply-adds of all windows."""
    return sum(
        len(chunk.patches) * part.size[0] * part.size[1] * layer[3]
        for chunk in chunks
        for part, layer in zip(chunk.layers, layers, strict=True)
    )


def test_groups_of_like_windows_save_more_than_they_cost(monkeypatch):
    grid, layers = PatchGrid(256, 256, 32, 8), geometry_of(MaskedNet(32))
    needed = sum(
        ((c.stop - c.start).prod(1) * w[3]).sum()
        for c, w in zip(changes(layers, grid)[:-1], layers, strict=True)
    )
    one, many = (plan(layers, grid, CPU, 841, images) for images in (1, 64))
    monkeypatch.setitem(plan_module.FIXED, "cpu", 1e12)
    plan.cache_clear()
    (all_,) = plan(layers, grid, CPU, 841, 1)
    plan.cache_clear()
    assert 1 < len(one) < len(many)
    assert needed <= work_of(many, layers) < work_of(one, layers) < work_of([all_], layers)
    fixed = 1.5e8
    assert work_of(one, layers) + fixed * len(one) < work_of([all_], layers) + fixed
    assert work_of(many, layers) < 1.03 * needed


def test_no_group_is_worth_nothing():
    grid, layers = PatchGrid(96, 128, 32, 16), geometry_of(MaskedNet(32))
    assert sorted(np.concatenate(group_by_window_size(layers, grid, 0.0)).tolist()) == list(range(len(grid)))
    assert len(group_by_window_size(layers, grid, np.finfo(float).max)) == 1


def test_a_plan_is_made_once():
    grid = PatchGrid(96, 96, 32, 16)
    first = plan(geometry_of(net_of("pyramid", 32)), grid, CPU, 9, 1)
    assert plan(geometry_of(net_of("pyramid", 32, seed=5)), grid, CPU, 9, 1) is first
    assert plan(geometry_of(net_of("no-blocks", 32)), grid, CPU, 9, 1) is not first


@torch.no_grad()
@pytest.mark.parametrize("picture", ["photograph", "noise"])
@pytest.mark.parametrize(
    ("name", "height", "width", "patch", "stride", "batch"),
    [
        ("pyramid", 256, 256, 32, 8, 1),
        ("pyramid", 512, 512, 64, 16, 1),
        ("pyramid", 256, 384, 64, 32, 5),
        ("pyramid", 512, 256, 64, 8, 1),
        ("paper", 256, 256, 32, 16, 2),
        ("paper", 512, 512, 32, 32, 3),
        ("paper", 384, 256, 64, 16, 4),
    ],
)
def test_whole_nets_at_whole_sizes(name, height, width, patch, stride, batch, picture):
    """Of patches at every border and at random places, for a pass of each is long at these sizes."""
    config = Config(image_size=(height, width), patch=patch, stride=stride, net=name, pretrained=False)
    model, (grid,) = Glance(config, seed=3), config.grids
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    if picture == "photograph":
        tops = rng.integers(0, 513 - height, batch), rng.integers(0, 513 - width, batch)
        brick = np.repeat(skimage.data.brick()[..., None], 3, axis=2)
        pictures = np.stack([brick[y : y + height, x : x + width] for y, x in zip(*tops, strict=True)])
    scale = model.scales[0]
    local, dense_ = scale.features(torch.from_numpy(pictures), "dense", 1 << 28)
    last = len(grid) - 1
    chosen = {0, grid.cols - 1, last - grid.cols + 1, last, grid.cols // 2, grid.rows // 2 * grid.cols}
    chosen = torch.tensor(sorted({*chosen, *rng.integers(0, last, 8).tolist()}))
    holes = torch.from_numpy(grid.holes)[chosen]
    x = to_input(torch.from_numpy(pictures))
    exact = torch.stack([scale.global_net(x, hole.expand(batch, 1, 4))[:, 0] for hole in holes], 1)
    assert difference(dense_[:, chosen], exact) <= 1e-4
    # What a score is made of.
    squares = [(local[:, chosen] - z).square().mean(2) for z in (dense_[:, chosen], exact)]
    assert difference(*squares) <= 1e-4
