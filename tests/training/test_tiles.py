"""Training on tiles: what is held out, and a threshold for photographs."""

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from samples import SMALL, draw_part

import glance_fast
from glance_fast.calibration import upper_threshold
from glance_fast.config import Config
from glance_fast.data.tile_cache import images_for
from glance_fast.errors import UserError
from glance_fast.run import weights
from glance_fast.tiles import score_photograph
from glance_fast.training import tiles as module
from glance_fast.training.calibrate import calibrate
from glance_fast.training.fit import split
from glance_fast.training.tiles import calibrate_photographs
from glance_fast.training.whitening import FOLDS

fit = partial(glance_fast.fit, device="cpu")
TILE = Config(**SMALL, tile=64)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Nine photographs of 100x160 pixels."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(draw_part(rng, 160)[:100]).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def trained(photographs):
    return fit(photographs, TILE)


def test_no_photograph_is_both_trained_on_and_held_out():
    groups = np.repeat(np.arange(20), 3)
    train, held_out = split(groups, Config(validation=0.2))
    assert len(held_out) == 12 and not set(groups[train]) & set(groups[held_out])
    np.testing.assert_array_equal(np.sort(np.r_[train, held_out]), np.arange(60))
    # Of a few photographs, tiles.
    train, held_out = split(np.repeat([0, 1], 30), Config(validation=0.2))
    assert len(held_out) == 12 and len(train) == 48
    np.testing.assert_array_equal(np.sort(np.r_[train, held_out]), np.arange(60))


def test_whole_photographs_are_held_out_as_ever():
    # By the definition of the first version: runs that it began can be gone on with.
    order = np.random.default_rng(3).permutation(25)
    train, held_out = split(np.arange(25), Config(validation=0.2, seed=3))
    np.testing.assert_array_equal(held_out, np.sort(order[:5]))
    np.testing.assert_array_equal(train, np.sort(order[5:]))


def test_the_threshold_is_one_for_photographs(photographs, trained):
    calibration = trained.calibration
    assert len(calibration.scores) == len(calibration.peaks) == 9
    assert np.mean(calibration.scores) == pytest.approx(0, abs=1e-5)
    assert np.std(calibration.scores) == pytest.approx(1, abs=1e-5)
    assert calibration.threshold == pytest.approx(upper_threshold(np.array(calibration.scores), 0.01))
    assert trained.config.tile == 64 and calibration.shape == (64, 64)
    # The whitening has seen them, and scores them lower than one that has not.
    assert np.mean([score_photograph(trained, path)[1] for path in photographs]) < -0.5


def test_each_photograph_is_scored_by_a_whitening_of_others(photographs, trained, reporter):
    """By the definition: the model calibrated without the photographs of a fold, that scores them."""
    model = copy.deepcopy(trained)
    cache, config = images_for(photographs, TILE), model.config
    calibrate(model, cache, np.arange(len(cache)))
    statistics, before = model.calibration, {n: v.clone() for n, v in weights(model).items()}
    calibrate_photographs(model, cache, reporter)
    # The whitening is as it was.
    assert all(torch.equal(v, before[n]) for n, v in weights(model).items())
    order = np.random.default_rng(config.seed).permutation(9)
    raw, highest = [], []
    for fold in range(FOLDS):
        part = order[fold::FOLDS]
        other = copy.deepcopy(model)
        calibrate(other, cache, np.flatnonzero(~np.isin(cache.groups, part)))
        other.calibration = statistics
        for place in part:
            score_map, score = score_photograph(other, photographs[place])
            raw.append(score)
            highest.append(score_map.max())
    expected = (np.array(raw) - np.mean(raw)) / np.std(raw)
    np.testing.assert_allclose(model.calibration.scores, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.calibration.peaks, highest, rtol=1e-3, atol=1e-3)
    assert model.calibration.image.mean == pytest.approx(
        statistics.image.mean + np.mean(raw) * statistics.image.std, rel=1e-3
    )


def test_photographs_that_the_whitening_has_not_seen(photographs, trained, reporter):
    model = copy.deepcopy(trained)
    calibrate_photographs(model, images_for(photographs, TILE), reporter, seen=False)
    found = np.sort([score_photograph(trained, path)[1] for path in photographs])
    expected = (found - found.mean()) / found.std()
    np.testing.assert_allclose(np.sort(model.calibration.scores), expected, rtol=1e-3, atol=1e-3)


def test_a_few_photographs_are_told_to_be_few(photographs):
    lines = []
    model = fit(photographs[:2], TILE, callback=lambda event: lines.append(event.name))
    assert any(line.startswith("2 photographs are too few to say what whole ones score") for line in lines)
    # Those of the tiles: six a photograph.
    assert len(model.calibration.scores) == 12


def test_no_more_photographs_are_scored_than_are_enough(monkeypatch):
    monkeypatch.setattr(module, "ENOUGH", 50)
    monkeypatch.setattr(module, "MOST", 100)
    order = list(np.random.default_rng(0).permutation(30))
    # Nine of six tiles each are the first to have more than fifty.
    assert list(module._choose(np.full(30, 6), 0)) == order[:9]
    # Eight are wanted, also where fewer would have enough tiles, but not at any price.
    assert list(module._choose(np.full(30, 10), 0)) == order[:8]
    assert list(module._choose(np.full(30, 20), 0)) == order[:5]
    assert sorted(module._choose(np.array([1, 2, 3]), 0)) == [0, 1, 2]


def test_one_large_photograph_suffices(photographs, tmp_path):
    with pytest.raises(UserError, match="1 image; at least 8 are needed to train"):
        fit(photographs[:1], dataclasses.replace(TILE, tile=None))
    Image.fromarray(draw_part(np.random.default_rng(0), 200)).save(tmp_path / "a.png")
    assert len(fit([tmp_path / "a.png"], TILE).calibration.scores) == 16


def test_too_few_tiles_are_refused(photographs):
    with pytest.raises(UserError, match="6 usable images; at least 8 are needed to train"):
        fit(photographs[:1], TILE)


def test_training_goes_on_with_the_same_tiles(photographs, tmp_path, trained):
    class Stop(Exception):
        pass

    def stop(event):
        if event.kind == "step" and event.name.startswith("global"):
            raise Stop

    with pytest.raises(Stop):
        fit(photographs, TILE, tmp_path / "run", callback=stop)
    with pytest.raises(UserError, match="begun with other settings"):
        fit(photographs, dataclasses.replace(TILE, tile=80), tmp_path / "run")
    assert fit(photographs, TILE, tmp_path / "run").calibration.scores == trained.calibration.scores
    assert glance_fast.load(tmp_path / "run", "cpu").config == TILE
    assert len(images_for(photographs, TILE)) == 54


def test_settings_of_tiles():
    assert (
        Config(tile="auto").tile == 256
        and Config(image_size=300, tile="auto").tile == Config(image_size=300).image_size[0]
    )
    assert Config().tile is None and "tile" not in Config().to_toml()
    assert "tile = 100" in Config(tile=100).to_toml()
    for wrong in ("wide", 3, 1.5, True):
        with pytest.raises(UserError, match="tile: expected an integer from 16 to 1048576, or auto, got"):
            Config(tile=wrong)
    with pytest.raises(UserError, match="tile: tiles are square; give one number for image_size"):
        Config(image_size=(256, 320), tile=100)
