"""Whitening against covariances computed by the definition, and scores by what has not seen the image."""

import numpy as np
import pytest
import torch
from samples import MASKED, SMALL

from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.model import Glance
from glance_fast.training.whitening import (
    BAND,
    FOLDS,
    RIDGE,
    cross_fitted,
    fit_whitening,
    whitening_of_all,
    whitenings,
)

FEATURES = 4
GRID = PatchGrid(4, 5, 3, 1)
# More rows than are whitened at a time, and not a multiple of them.
TALL = PatchGrid(2 * BAND + 5, 4, 3, 1)


def sample(count=400, means=0.0, differ=True, grid=GRID):
    """Residuals [count, P, D], Gaussian with correlated features; each position has its own covariance."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(len(grid), FEATURES, FEATURES, generator=generator)
    mixing = mixing if differ else mixing[:1].expand_as(mixing)
    noise = torch.randn(count, len(grid), FEATURES, generator=generator)
    offsets = means * torch.randn(len(grid), FEATURES, generator=generator)
    return torch.einsum("pij,npj->npi", mixing, noise) + offsets


def whole(residual, grid, shrinkage):
    """Mean and whitening of all positions, from the bands."""
    bands = list(whitenings(residual, grid, shrinkage))
    places = [range(*places.indices(len(grid))) for places, _, _ in bands]
    assert [p for part in places for p in part] == list(range(len(grid)))
    assert max(map(len, places)) <= BAND * grid.cols
    return torch.cat([mean for _, mean, _ in bands]), torch.cat([w for _, _, w in bands])


def covariance(values):
    return np.cov(np.asarray(values, dtype=np.float64), rowvar=False, bias=True)


# ---------------------------------------------------------------- whitening


def test_global_whitening_of_a_gaussian_gives_unit_covariance():
    residual = sample(3000, differ=False)
    mean, whitening = whole(residual, GRID, shrinkage=1.0)
    torch.testing.assert_close(whitening, whitening[:1].expand_as(whitening), rtol=0, atol=0)
    white = torch.einsum("pij,npj->npi", whitening, residual - mean)
    # The ridge takes a little off.
    np.testing.assert_allclose(covariance(white.flatten(0, 1)), np.eye(FEATURES), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whitening_of_all_is_the_root_of_the_covariance_over_images_and_positions(dtype):
    residual = sample(means=2.0).to(dtype)
    found = whitening_of_all(residual)
    everywhere = residual.double().flatten(0, 1)
    np.testing.assert_allclose(found.mean, everywhere.mean(0), atol=1e-5)
    expected = covariance(everywhere)
    expected += RIDGE * np.trace(expected) / FEATURES * np.eye(FEATURES)
    w = found.matrix.double().numpy()
    np.testing.assert_allclose(w @ expected @ w.T, np.eye(FEATURES), atol=1e-4)
    np.testing.assert_allclose(w, w.T, atol=1e-6)


@pytest.mark.parametrize("grid", [GRID, TALL], ids=["a band", "bands"])
@pytest.mark.parametrize("means", [0.0, 2.0], ids=["centred", "own means"])
@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_whitening_is_the_root_of_the_mixed_covariance(shrinkage, means, grid):
    residual = sample(means=means, grid=grid)
    mean, whitening = whole(residual, grid, shrinkage)
    np.testing.assert_allclose(mean, residual.mean(0), atol=1e-5)
    own = [covariance(residual[:, p]) for p in range(len(grid))]
    everywhere = covariance(residual.flatten(0, 1))
    everywhere += RIDGE * np.trace(everywhere) / FEATURES * np.eye(FEATURES)
    for p in range(len(grid)):
        row, col = divmod(p, grid.cols)
        near = [
            own[r * grid.cols + c]
            for r in range(max(row - 1, 0), min(row + 2, grid.rows))
            for c in range(max(col - 1, 0), min(col + 2, grid.cols))
        ]
        mixed = (1 - shrinkage) * (own[p] + np.mean(near, axis=0)) / 2 + shrinkage * everywhere
        w = whitening[p].double().numpy()
        np.testing.assert_allclose(w @ mixed @ w.T, np.eye(FEATURES), atol=2e-3)


@pytest.mark.parametrize("band", [1, 2, 7, 1000])
def test_residuals_may_be_whitened_in_any_bands(band, monkeypatch):
    residual = sample(grid=TALL)
    expected = whole(residual, TALL, 0.5)
    monkeypatch.setattr("glance_fast.training.whitening.BAND", band)
    bands = list(whitenings(residual, TALL, 0.5))
    assert len(bands) == -(-TALL.rows // band)
    for k, one in enumerate(expected):
        torch.testing.assert_close(torch.cat([b[k + 1] for b in bands]), one, rtol=1e-4, atol=1e-5)


def test_images_that_are_left_out_count_for_nothing():
    residual = sample(60)
    used = torch.arange(60) % 3 > 0
    expected = list(whitenings(residual[used], GRID, 0.5))
    residual[~used] = torch.nan
    found = list(whitenings(residual, GRID, 0.5, used))
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])


@pytest.mark.parametrize(("rows", "band"), [(0, 1), (3, 1), (5, 3), (1000, BAND)])
def test_bands_are_as_wide_as_memory_allows(rows, band):
    residual = sample(40, grid=TALL)
    limit = rows * TALL.cols * FEATURES * 4 * (2 * 40 + 10 * FEATURES)
    bands = list(whitenings(residual, TALL, 0.5, limit=limit))
    assert len(bands) == -(-TALL.rows // band)
    for whole_one, one in zip(whole(residual, TALL, 0.5), list(zip(*bands, strict=True))[1:], strict=True):
        torch.testing.assert_close(torch.cat(one), whole_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_fewer_images_than_features_are_enough(shrinkage):
    _, whitening = whole(sample(3), GRID, shrinkage)
    assert whitening.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_photographs_that_are_all_the_same_are_whitened_all_the_same(value):
    mean, whitening = whole(torch.full((6, len(GRID), FEATURES), value), GRID, 0.5)
    assert whitening.isfinite().all() and (mean == value).all()


# ---------------------------------------------------------------- cross-fitting


@pytest.mark.parametrize("count", [2, 4, FOLDS, 13])
def test_an_image_is_scored_by_a_whitening_fitted_to_the_other_folds(count):
    residual, shrinkage, seed = sample(count, means=1.0), 0.4, 3
    found = cross_fitted(residual, GRID, shrinkage, seed)
    # Folds as the seed deals them.
    order = np.random.default_rng(seed).permutation(count)
    folds = [order[k :: min(FOLDS, count)] for k in range(min(FOLDS, count))]
    assert sorted(np.concatenate(folds).tolist()) == list(range(count))
    for inside in folds:
        others = np.setdiff1d(np.arange(count), inside)
        mean, whitening = whole(residual[others], GRID, shrinkage)
        white = torch.einsum("pij,npj->npi", whitening, residual[inside] - mean)
        torch.testing.assert_close(found[inside], white.square().mean(2), rtol=1e-4, atol=1e-5)


def test_what_an_image_is_has_no_part_in_the_whitening_that_scores_it():
    residual = sample(20)
    before = cross_fitted(residual, GRID, 0.5, 0)
    order = np.random.default_rng(0).permutation(20)
    changed, fold = residual.clone(), order[0::FOLDS]
    # One image scaled: had it been whitened with itself, it would score the less.
    changed[fold[0]] *= 30
    after = cross_fitted(changed, GRID, 0.5, 0)
    mean, whitening = whole(residual[np.setdiff1d(np.arange(20), fold)], GRID, 0.5)
    white = torch.einsum("pij,pj->pi", whitening, changed[fold[0]] - mean)
    torch.testing.assert_close(after[fold[0]], white.square().mean(1), rtol=1e-4, atol=1e-4)
    # Of its fold nobody sees it, and all of the others do.
    torch.testing.assert_close(after[fold[1:]], before[fold[1:]], rtol=0, atol=0)
    rest = np.setdiff1d(np.arange(20), fold)
    assert ((after[rest] - before[rest]).abs().amax(1) > 0.01).all()


def test_cross_fitted_scores_are_those_of_images_never_seen():
    # Few images: a whitening fitted to the very images makes them all look normal.
    residual, unseen = sample(620)[:20], sample(620)[20:]
    mean, whitening = whole(residual, GRID, 0.1)
    seen, new = (
        float(torch.einsum("pij,npj->npi", whitening, r - mean).square().mean()) for r in (residual, unseen)
    )
    crossed = float(cross_fitted(residual, GRID, 0.1, 0).mean())
    assert seen < 0.8 * new
    assert abs(crossed / new - 1) < abs(seen / new - 1) / 2


@pytest.mark.parametrize("settings", [SMALL, MASKED], ids=["surround", "masked"])
def test_fit_whitens_by_all_and_scores_by_the_others(settings):
    model = Glance(Config(**settings))
    (scale,) = model.scales
    generator = torch.Generator().manual_seed(0)
    local = torch.randn(11, len(scale.grid), 128, generator=generator)
    global_ = local + 0.3 * torch.randn(local.shape, generator=generator)
    chunks = ([pair] for pair in zip(local.split(4), global_.split(4), strict=True))
    (scores,) = fit_whitening(model, chunks)
    residual = (local - global_).half()
    mean, whitening = whole(residual, scale.grid, model.config.shrinkage)
    torch.testing.assert_close(scale.residual_mean, mean)
    torch.testing.assert_close(scale.whitening, whitening.half())
    expected = cross_fitted(residual, scale.grid, model.config.shrinkage, model.config.seed)
    torch.testing.assert_close(scores.inconsistency, expected)
    with torch.inference_mode():
        torch.testing.assert_close(scores.distortion, 1 - torch.sigmoid(scale.distortion(local, global_)))
