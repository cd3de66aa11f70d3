"""Engines that are asked for some patches only: the same features as of all, and no work for the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.engines import dense, grouped, patchwise
from glance_fast.engines.plan import geometry_of, plan
from glance_fast.geometry import PatchGrid
from glance_fast.nets.masked import MaskedNet

SPACING = 48
NETS = {"pyramid": ((8, 8, 8, 8), (1, 1, 1), "hole"), "paper": ((4, 6, 8, 12), (1, 1, 1), "pool")}


def net_of(name):
    torch.manual_seed(0)
    widths, blocks, readout = NETS[name]
    net = MaskedNet(32, widths, blocks, readout, features=16).eval()
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return net.to(memory_format=torch.channels_last)


def images(count, grid):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, grid.height, grid.width, generator=generator)


def asked(engine, net, x, grid, limit, chosen):
    more = (SPACING,) if engine is grouped else ()
    return engine.global_features(net, x, grid, limit, *more, chosen)


@st.composite
def some_patches(draw):
    stride = draw(st.sampled_from([8, 16, 24, 32]))
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    grid = PatchGrid(32 + (rows - 1) * stride, 32 + (cols - 1) * stride, 32, stride)
    chosen = draw(st.sets(st.integers(0, len(grid) - 1), min_size=1))
    return grid, sorted(chosen)


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("engine", [dense, grouped, patchwise])
@given(
    some=some_patches(), limit=st.sampled_from([None, 1 << 22]), name=st.sampled_from(["pyramid", "paper"])
)
def test_some_patches_have_the_features_that_all_have(engine, some, limit, name):
    grid, chosen = some
    net, x = net_of(name), images(2, grid)
    found = asked(engine, net, x, grid, limit, chosen)
    expected = asked(engine, net, x, grid, limit, None)[:, chosen]
    assert found.shape == (2, len(chosen), 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("engine", [dense, patchwise])
def test_no_image_has_no_features(engine):
    grid = PatchGrid(96, 128, 32, 16)
    found = asked(engine, net_of("pyramid"), images(0, grid), grid, None, [3, 5])
    assert found.shape == (0, 2, 16)


def test_the_plan_holds_what_is_chosen_and_nothing_else():
    grid, net = PatchGrid(96, 128, 32, 16), net_of("pyramid")
    whole = plan(geometry_of(net), grid, torch.device("cpu"), 4, 1)
    assert sorted(torch.cat([chunk.patches for chunk in whole]).tolist()) == list(range(len(grid)))
    some = plan(geometry_of(net), grid, torch.device("cpu"), 4, 1, (0, 7, 8, 34))
    assert sorted(torch.cat([chunk.patches for chunk in some]).tolist()) == [0, 7, 8, 34]


@torch.no_grad()
def test_passes_are_made_for_chosen_patches_alone(monkeypatch):
    grid, net = PatchGrid(128, 160, 32, 16), net_of("pyramid")
    x, lattices = images(1, grid), grid.lattices(SPACING)
    passes = []

    def counted(net, x, holes, *more):
        passes.extend(holes)
        return layer_outputs(net, x, holes, *more)

    layer_outputs = grouped.layer_outputs
    monkeypatch.setattr(grouped, "layer_outputs", counted)
    chosen = sorted([lattices[0][0], lattices[0][-1], lattices[4][1]])
    asked(grouped, net, x, grid, None, chosen)
    assert len(passes) == 2
    # All of a lattice is masked, or features would depend on what is chosen.
    masked = {int((holes[:, 2] > holes[:, 0]).sum()) for holes in passes}
    assert masked == {len(lattices[0]), len(lattices[4])}

    seen = []
    monkeypatch.setattr(
        type(net), "forward", lambda net, x, holes: seen.append(len(holes)) or holes[:, :, :1].float()
    )
    asked(patchwise, net, x, grid, None, chosen)
    assert sum(seen) == len(chosen)
