"""Training with a region of interest: what lies outside counts nowhere."""

import dataclasses

import numpy as np
import pytest
import torch
from samples import MASKED, SMALL, draw_part
from trees import box, save

import glance_fast
from glance_fast import Config, Glance, UserError
from glance_fast.data.cache import ImageCache
from glance_fast.geometry import PatchGrid
from glance_fast.maps import HeadMaps, combine
from glance_fast.training.calibrate import calibrate, calibration_of, recalibrate
from glance_fast.training.whitening import BAND, cross_fitted, fit_whitening, whitening_of_all, whitenings

GRID = PatchGrid(32 + 16 * (BAND + 3), 96, 32, 16)
REGION = box(size=(64, 64), part=(slice(0, 40), slice(10, 44))) > 0


def residuals(patches, count=12, features=4):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(patches, features, features, generator=generator)
    return (torch.randn(count, patches, 1, features, generator=generator) @ mix)[:, :, 0] + mix[:, 0]


@pytest.mark.parametrize("limit", [1 << 20, 1])
def test_only_positions_of_the_region_are_neighbours(limit):
    """By the definition, in a loop; also where a whole band of rows holds none."""
    whole, shrinkage = residuals(len(GRID)), 0.3
    chosen = torch.tensor([0, 1, 7, 8, 9, len(GRID) - 6, len(GRID) - 1])
    residual = whole[:, chosen]
    matrix = whitening_of_all(residual).matrix
    own = {}
    for i, place in enumerate(chosen.tolist()):
        apart = (residual[:, i] - residual[:, i].mean(0)) @ matrix
        own[place] = apart.T @ apart / len(residual)
    bands = list(whitenings(residual, GRID, shrinkage, None, limit, chosen))
    assert torch.cat([torch.arange(len(chosen))[places] for places, _, _ in bands]).tolist() == list(range(7))
    means, found = (torch.cat([band[i] for band in bands]) for i in (1, 2))
    torch.testing.assert_close(means, residual.mean(0))
    for place, whitening in zip(own, found, strict=True):
        near = [
            own[other]
            for other in own
            if abs(other // GRID.cols - place // GRID.cols) <= 1
            and abs(other % GRID.cols - place % GRID.cols) <= 1
        ]
        mixed = (1 - shrinkage) * (own[place] + sum(near) / len(near)) / 2 + shrinkage * torch.eye(4)
        expected = torch.linalg.solve(torch.linalg.cholesky(mixed), matrix)
        torch.testing.assert_close(whitening, expected, rtol=1e-3, atol=1e-4)


def test_of_all_positions_the_whitening_is_as_without():
    residual = residuals(len(GRID))
    everywhere = torch.arange(len(GRID))
    for one, other in zip(
        whitenings(residual, GRID, 0.3), whitenings(residual, GRID, 0.3, patches=everywhere), strict=True
    ):
        assert one[0] == other[0] and (one[1] == other[1]).all() and (one[2] == other[2]).all()
    found = cross_fitted(residual, GRID, 0.3, 0, patches=everywhere)
    assert (found == cross_fitted(residual, GRID, 0.3, 0)).all()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(0)
    with ImageCache([save(folder / f"{i}.png", draw_part(rng)) for i in range(12)], (64, 64)) as cache:
        yield cache


@pytest.mark.parametrize("settings", [SMALL, MASKED])
def test_what_patches_outside_say_is_in_no_statistic(cache, settings, monkeypatch):
    """Nothing is asked of them, and what normal images have there changes nothing."""
    model = Glance(Config(**settings))
    model.inside = torch.from_numpy(REGION)
    patches = model.roi.patches[0]
    assert 0 < len(patches) < len(model.scales[0].grid)
    asked, features = [], Glance.features

    def seen(*arguments, **more):
        asked.append(features(*arguments, **more))
        return asked[-1]

    monkeypatch.setattr(Glance, "features", seen)
    calibrate(model, cache, range(12))
    assert all(z.shape[1] == len(patches) for chunk in asked for pair in chunk for z in pair)
    scale, inside = model.scales[0], torch.tensor(patches)
    outside = np.setdiff1d(np.arange(len(scale.grid)), patches)
    # Outside, the mean over all inside.
    assert (scale.whitening[outside] == scale.whitening[outside[0]]).all()
    assert len(scale.whitening[inside].unique(dim=0)) == len(patches)
    assert model.calibration.threshold < np.inf and len(model.calibration.scores) == 12
    before = model.calibration
    recalibrate(model, cache, range(12))
    assert model.calibration.scales[0].inconsistency != before.scales[0].inconsistency
    assert all(z.shape[1] == len(patches) for chunk in asked for pair in chunk for z in pair)


def test_moments_and_peaks_are_those_of_pixels_inside(cache):
    model = Glance(Config(**SMALL))
    model.inside = torch.from_numpy(REGION)
    scores = fit_whitening(model, [model.features(cache.batch(range(12)))])
    calibration = calibration_of(model, scores)
    ((first, second),) = model.head_maps(scores)
    (found,) = calibration.scales
    for maps, moments, peak in (
        (first, found.inconsistency_map, found.inconsistency_peak),
        (second, found.distortion_map, found.distortion_peak),
    ):
        inner = maps.numpy()[:, REGION]
        np.testing.assert_allclose((moments.mean, moments.std), (inner.mean(), inner.std()), rtol=1e-4)
        of_peaks = inner.max(1)
        np.testing.assert_allclose((peak.mean, peak.std), (of_peaks.mean(), of_peaks.std()), rtol=1e-4)
    blended, image = combine([HeadMaps(first, second)], model.config, calibration, model.inside)
    np.testing.assert_allclose(calibration.peaks, blended[:, model.inside].amax(1), rtol=1e-4)
    np.testing.assert_allclose(calibration.scores, image, rtol=1e-4, atol=1e-5)
    assert (blended[:, ~model.inside] <= 0).all()


def test_the_paper_s_blend_has_a_region_too(cache):
    model = Glance(Config(**{**SMALL, "blend": "paper"}))
    model.inside = torch.from_numpy(REGION)
    features = [model.features(cache.batch(range(12)))]
    (scores,) = fit_whitening(model, features)
    assert scores.inconsistency.shape == (12, len(model.roi.patches[0]))
    calibrate(model, cache, range(12))
    found = model.score([cache.batch([0])[0]])
    assert found.maps[:, ~REGION].max() <= found.maps[:, REGION].min()


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """A model with a region that holds the upper left of a plate."""
    folder = tmp_path_factory.mktemp("roi")
    mask = save(folder / "roi.png", (REGION * 255).astype(np.uint8))
    model = glance_fast.fit(parts, Config(**SMALL), folder / "run", device="cpu", roi=mask)
    return model, folder


def test_a_run_folder_keeps_the_region(trained):
    model, folder = trained
    loaded = glance_fast.load(folder / "run", "cpu")
    assert (loaded.inside.numpy() == REGION).all() and loaded.calibration == model.calibration


def test_a_defect_is_seen_inside_the_region_and_not_outside(trained):
    model, _ = trained
    clean = draw_part(np.random.default_rng(7))
    inside, outside = clean.copy(), clean.copy()
    inside[12:26, 16:30] = 10
    # Beyond all patches of the region.
    outside[58:, 56:] = 10
    found = model.score([clean, inside, outside])
    assert found.scores[1] > found.scores[0] + 1 and found.scores[1] > model.calibration.threshold
    # What surrounds a patch may move its score a little.
    assert abs(found.scores[2] - found.scores[0]) < 0.2 * (found.scores[1] - found.scores[0])
    peak = np.unravel_index(found.maps[1].argmax(), (64, 64))
    assert REGION[peak] and abs(peak[0] - 19) < 14 and abs(peak[1] - 23) < 14
    assert (found.maps[:, ~REGION] <= 0).all()
    everywhere = model.score([outside], roi=np.ones((64, 64), bool))
    assert everywhere.maps[0, 50:, 50:].max() > found.maps[2].max()


def test_training_goes_on_with_the_same_region_only(parts, tmp_path):
    mask = save(tmp_path / "roi.png", (REGION * 255).astype(np.uint8))
    other = save(tmp_path / "other.png", box(part=(slice(0, 40), slice(0, 40))))

    def stop(event):
        if event.kind == "step":
            raise KeyboardInterrupt

    config = Config(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        glance_fast.fit(parts, config, tmp_path / "run", device="cpu", roi=mask, callback=stop)
    for wrong in (other, None):
        with pytest.raises(
            UserError, match="was begun with another region of interest, or none; give the same"
        ):
            glance_fast.fit(parts, config, tmp_path / "run", device="cpu", roi=wrong)
    assert glance_fast.fit(parts, config, tmp_path / "run", device="cpu", roi=mask).inside is not None


def test_settings_are_no_part_of_it(trained):
    model, folder = trained
    assert dataclasses.asdict(model.config) == dataclasses.asdict(Config(**SMALL))
    assert "roi" not in (folder / "run" / "config.toml").read_text()
