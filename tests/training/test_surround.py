"""Training of Global-Net over features: what a patch counts as, what a step draws, that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from glance_fast import Config, Glance
from glance_fast.geometry import PatchGrid
from glance_fast.training import surround
from glance_fast.training.loop import Log, run_stage
from glance_fast.training.surround import (
    CLEAN,
    LEAST,
    NEITHER,
    STAINED,
    Features,
    draw_pairs,
    patch_kinds,
    stain_tiles,
    surround_stage,
)
from glance_fast.training.variants import Variants

GRID = PatchGrid(64, 80, 32, 8, 8)


def test_kinds_by_the_definition():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 64, 80), bool)
    for mask in masks[1:]:
        y, x = rng.integers(0, 60), rng.integers(0, 70)
        mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = True
    kinds = patch_kinds(masks, GRID)
    assert kinds.shape == (6, GRID.rows, GRID.cols) and kinds.dtype == torch.int8
    assert (kinds[0] == CLEAN).all() and {CLEAN, STAINED, NEITHER} <= set(kinds.unique().tolist())
    for mask, found in zip(masks, kinds, strict=True):
        framed = np.pad(mask, 8, mode="symmetric")
        for (top, left, bottom, right), kind in zip(GRID.holes + 8, found.flatten(), strict=True):
            patch = framed[top:bottom, left:right]
            middle = patch[8:-8, 8:-8].sum()
            expected = STAINED if middle > LEAST else NEITHER if patch.any() else CLEAN
            assert kind == expected


@pytest.mark.parametrize(
    ("grid", "tiles"),
    [
        (PatchGrid(256, 192, 32, 8, 8), 7 * 5),
        (PatchGrid(256, 256, 64, 16, 16), 3 * 3),
        (PatchGrid(96, 96, 32, 32, 0), 3 * 3),
        (GRID, 1),
        (PatchGrid(48, 80, 32, 32, 8), 0),
    ],
    ids=["32", "64", "no overlap", "one", "none fits"],
)
def test_each_tile_is_a_patch_of_the_grid_with_a_stain_of_its_own(grid, tiles):
    images = np.random.default_rng(0).integers(0, 256, (5, grid.height, grid.width, 3), np.uint8)
    before = images.copy()
    out, cells = stain_tiles(images, grid, torch.Generator().manual_seed(0))
    assert (images == before).all() and cells.shape == (5, tiles, 2)
    holes = grid.holes.reshape(grid.rows, grid.cols, 4)
    changed, within = (images != out).any(-1), np.zeros(images.shape[:3], bool)
    for number, places in enumerate(cells.tolist()):
        for row, column in places:
            top, left, bottom, right = holes[row, column]
            assert top >= 0 and left >= 0 and bottom <= grid.height and right <= grid.width
            place = number, slice(top, bottom), slice(left, right)
            assert changed[place].any() and not within[place].any()
            within[place] = True
    assert not (changed & ~within).any()
    again = stain_tiles(images, grid, torch.Generator().manual_seed(0))
    assert (again[0] == out).all() and torch.equal(again[1], cells)
    if tiles > 1 and grid.stride < grid.patch:
        # They begin at other places in other images.
        assert len(cells[:, 0].unique(dim=0)) > 1


def test_tiles_keep_what_lies_between_grey_levels():
    images = np.random.default_rng(0).random((3, 64, 80, 3), np.float32) * 255
    out, _ = stain_tiles(images, GRID, torch.Generator().manual_seed(0))
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 255
    changed = out[out != images]
    assert len(changed) and (np.abs(changed - np.rint(changed)) > 0.1).mean() > 0.5


def test_pairs_are_as_many_clean_as_stained():
    kinds = torch.tensor([CLEAN] * 50 + [STAINED] * 9 + [NEITHER] * 30, dtype=torch.int8)
    kinds = kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))]
    for most, count in ((100, 9), (5, 5)):
        places = draw_pairs(kinds, most, torch.Generator().manual_seed(1))
        clean, stained = kinds[places].chunk(2)
        assert len(places) == 2 * count == len(places.unique())
        assert (clean == CLEAN).all() and (stained == STAINED).all()
    assert len(draw_pairs(torch.zeros(9, dtype=torch.int8), 5, torch.Generator())) == 0


@pytest.fixture
def learnable():
    """Features that the surrounding tells: one random vector an image, of few kinds, and a little noise."""
    config = Config(image_size=96, patch=32, stride=16, width=16, steps=80, batch=8, seed=3)
    scale = Glance(config, 3).scales[0]
    rows, cols, depth = scale.grid.rows, scale.grid.cols, scale.local.features
    generator = torch.Generator().manual_seed(0)
    kinds_of_image = torch.randn(4, depth, generator=generator)

    def draw(count):
        shares = torch.randn(count, 4, generator=generator) / 2
        clean = (shares @ kinds_of_image)[:, None, None].expand(-1, rows, cols, -1)
        clean = clean + 0.1 * torch.randn(count, rows, cols, depth, generator=generator)
        kinds = torch.full((count, rows, cols), CLEAN, dtype=torch.int8)
        kinds[:, : rows // 2] = STAINED
        # Stained patches lie far off, in the surrounding of the others too.
        stained = torch.where(kinds[..., None] == STAINED, clean + 3, clean)
        cells = torch.stack([torch.randperm(rows * cols, generator=generator)[:6] for _ in range(count)])
        cells = torch.stack([cells // cols, cells % cols], -1)
        tiles = clean[torch.arange(count)[:, None], cells[..., 0], cells[..., 1]] - 3
        return Features(clean.half(), stained.half(), kinds, tiles.half(), cells)

    return config, scale, draw(64), draw(16)


def test_it_learns_what_the_surrounding_tells_stained_or_not(learnable, tmp_path):
    config, scale, features, held_out = learnable
    stage = surround_stage("global-32", scale, features, held_out, config, False)
    log = Log(tmp_path / "log.csv")
    run_stage(stage, tmp_path, log, lambda *_: None, 99)
    last = log.rows[-1]
    assert float(last["r2"]) > 0.3 > float(log.rows[0]["r2"])
    assert float(last["held_out_distortion"]) < 0.5 * float(log.rows[0]["held_out_distortion"])
    with torch.inference_mode():
        clean, stained = held_out.clean.float(), held_out.stained.float()
        told = scale.global_net(stained)
        distorted = torch.sigmoid(-scale.distortion(stained, told))
        # Told from a stained surrounding, it says what is clean, not what is there.
        assert (told - clean).square().mean() < 0.5 * (told - stained).square().mean()
    assert distorted[held_out.kinds == STAINED].mean() > 0.8 > 0.2 > distorted[:, -1].mean()


@pytest.mark.parametrize("kind", ["stains of images alone", "tiles alone", "neither"])
def test_the_distortion_head_learns_from_stained_patches_of_either_kind(learnable, kind, tmp_path):
    config, scale, features, held_out = learnable
    changes = {}
    if kind != "stains of images alone":
        changes["kinds"] = torch.full_like(features.kinds, CLEAN)
    if kind != "tiles alone":
        changes |= {"tiles": features.tiles[:, :0], "cells": features.cells[:, :0]}
    stage = surround_stage(
        "global-32", scale, dataclasses.replace(features, **changes), held_out, config, False
    )
    before = [p.clone() for p in scale.distortion.parameters()]
    run_stage(stage, tmp_path, Log(tmp_path / "log.csv"), lambda *_: None, 99)
    with torch.inference_mode():
        clean = held_out.clean.float()
        told = scale.global_net(clean)
        image = torch.arange(len(clean))[:, None]
        place = image, held_out.cells[..., 0], held_out.cells[..., 1]
        tiles = torch.sigmoid(-scale.distortion(held_out.tiles.float(), told[place])).mean()
        fine = torch.sigmoid(-scale.distortion(clean, told)).mean()
        stained = torch.sigmoid(-scale.distortion(held_out.stained.float(), told))
        stained = stained[held_out.kinds == STAINED].mean()
    if kind == "neither":
        assert all(torch.equal(a, b) for a, b in zip(before, scale.distortion.parameters(), strict=True))
    else:
        assert fine < 0.2 and (tiles if kind == "tiles alone" else stained) > 0.8


def test_nothing_is_learned_of_patches_outside_the_region(learnable, monkeypatch):
    config, scale, features, held_out = learnable
    belongs = torch.ones_like(features.kinds, dtype=torch.bool)
    everywhere = dataclasses.replace(features, belongs=belongs)
    whole, same = (
        surround_stage("global-32", scale, some, held_out, config, False) for some in (features, everywhere)
    )
    assert float(whole.step(3)[0].detach()) == pytest.approx(float(same.step(3)[0].detach()), rel=1e-5)

    belongs = belongs.clone()
    belongs[:, :, 1::2] = False
    drawn = []
    monkeypatch.setattr(
        surround, "draw_pairs", lambda kinds, *more: drawn.append(kinds) or draw_pairs(kinds, *more)
    )
    monkeypatch.setattr(
        surround, "inconsistency_loss", lambda z, z_g: counted.append(z) or (z - z_g).square().mean()
    )
    counted = []
    tiles = features.tiles.clone()
    at = torch.arange(len(tiles))[:, None], features.cells[..., 0], features.cells[..., 1]
    tiles[~belongs[at]] = torch.nan
    kinds = features.kinds.masked_fill(~belongs, NEITHER)
    some = dataclasses.replace(features, belongs=belongs, tiles=tiles, kinds=kinds)
    stage = surround_stage("global-32", scale, some, held_out, config, False)
    for number in range(6):
        assert torch.isfinite(stage.step(number)[0])
    shares = [float((kinds != NEITHER).float().mean()) for kinds in drawn]
    # A step computes every second column: those inside, or those outside.
    assert all(len(z) == 1 or z.dim() == 2 for z in counted) and set(shares) == {0.0, 1.0}

    monkeypatch.undo()
    within = dataclasses.replace(held_out, belongs=belongs[: len(held_out.clean)])
    z = held_out.clean.float()
    with torch.inference_mode():
        expected = (scale.global_net(z) - z).square()[within.belongs].mean()
    found = surround_stage("global-32", scale, features, within, config, False).validate()
    assert found["held_out_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_patches_of_copies_belong_to_their_own_region():
    scale = Glance(Config(image_size=96, patch=32, stride=16)).scales[0]
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (2, 96, 96, 3), np.uint8)
    inside, masks = np.zeros((2, 96, 96), bool), np.ones((2, 96, 96), bool)
    inside[0, :30, :30], inside[1, 70:, 50:] = True, True
    found = surround.features_of(scale, Variants(clean, clean, masks, inside), 0, False)
    for patches, pixels in zip(found.belongs, inside, strict=True):
        assert patches.flatten().nonzero()[:, 0].tolist() == scale.grid.patches_of(pixels).tolist()
    assert ((found.kinds == NEITHER) == ~found.belongs).all()
    assert surround.features_of(scale, Variants(clean, clean, masks), 0, False).belongs is None


def test_steps_depend_on_seed_and_number_alone(learnable):
    config, scale, features, held_out = learnable
    losses = []
    for _ in range(2):
        torch.manual_seed(len(losses))
        stage = surround_stage("global-32", scale, features, held_out, config, False)
        losses.append([float(stage.step(n)[0].detach()) for n in (4, 7)])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]
