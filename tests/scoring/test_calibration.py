"""Calibration: whitening against covariances computed by the definition, thresholds, the file."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from glance_fast.config import Config
from glance_fast.data.folders import ImageCache, normal_images
from glance_fast.errors import UserError
from glance_fast.hardware import has_bf16
from glance_fast.model import Glance
from glance_fast.scoring.calibration import (
    RIDGE,
    NormalScores,
    Regression,
    ResidualMoments,
    calibrate,
    calibration_of,
    share_of,
)
from glance_fast.scoring.maps import HeadMaps, blend_heads, combine
from glance_fast.scoring.statistics import Calibration, Moments, ScaleStatistics, upper_threshold

ROWS, COLS, FEATURES = 2, 3, 4


def sample(count=400, means=0.0, differ=True):
    """Residuals [count, P, D], Gaussian with correlated features; each position has its own covariance."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(ROWS * COLS, FEATURES, FEATURES, generator=generator)
    mixing = mixing if differ else mixing[:1].expand_as(mixing)
    noise = torch.randn(count, ROWS * COLS, FEATURES, generator=generator)
    offsets = means * torch.randn(ROWS * COLS, FEATURES, generator=generator)
    return torch.einsum("pij,npj->npi", mixing, noise) + offsets


def moments_of(residual, chunk=None):
    moments = ResidualMoments(*residual.shape[1:])
    for part in residual.split(chunk or len(residual)):
        moments.add(part)
    return moments


def covariance(values):
    return np.cov(np.asarray(values, dtype=np.float64), rowvar=False, bias=True)


# ---------------------------------------------------------------- whitening


def test_global_whitening_of_a_gaussian_gives_unit_covariance():
    residual = sample(3000, differ=False)
    mean, whitening = moments_of(residual).whitening(ROWS, COLS, shrinkage=1.0)
    assert (whitening == whitening[0]).all(), "one covariance for all positions"
    white = torch.einsum("pij,npj->npi", whitening, residual - mean)
    # The ridge takes a little off.
    np.testing.assert_allclose(covariance(white.flatten(0, 1)), np.eye(FEATURES), atol=0.02)


@pytest.mark.parametrize("means", [0.0, 2.0], ids=["centred", "own means"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_whitening_is_the_root_of_the_mixed_covariance(shrinkage, means):
    residual = sample(means=means)
    mean, whitening = moments_of(residual).whitening(ROWS, COLS, shrinkage)
    np.testing.assert_allclose(mean, residual.mean(0), atol=1e-5)
    own = [covariance(residual[:, p]) for p in range(ROWS * COLS)]
    everywhere = covariance(residual.flatten(0, 1))
    everywhere += RIDGE * np.trace(everywhere) / FEATURES * np.eye(FEATURES)
    for p in range(ROWS * COLS):
        row, col = divmod(p, COLS)
        near = [
            own[r * COLS + c]
            for r in range(max(row - 1, 0), min(row + 2, ROWS))
            for c in range(max(col - 1, 0), min(col + 2, COLS))
        ]
        mixed = (1 - shrinkage) * (own[p] + np.mean(near, axis=0)) / 2 + shrinkage * everywhere
        w = whitening[p].double().numpy()
        np.testing.assert_allclose(w @ mixed @ w.T, np.eye(FEATURES), atol=2e-3)


@pytest.mark.parametrize("chunk", [1, 7, 399])
def test_residuals_may_come_in_any_portions(chunk):
    residual = sample()
    whole, streamed = (moments_of(residual, c).whitening(ROWS, COLS, 0.5) for c in (None, chunk))
    for one, other in zip(whole, streamed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_fewer_images_than_features_are_enough(shrinkage):
    _, whitening = moments_of(sample(3)).whitening(ROWS, COLS, shrinkage)
    assert whitening.isfinite().all()


# ---------------------------------------------------------------- thresholds and moments


def test_moments_standardise():
    values = np.random.default_rng(0).normal(5, 3, (20, 30))
    standard = Moments.of(values).standardise(values)
    assert abs(standard.mean()) < 1e-6 and abs(standard.std() - 1) < 1e-6
    # Constant scores are no reason to divide by zero.
    assert np.isfinite(Moments.of(np.ones(4)).standardise(np.ones(4))).all()


@pytest.mark.parametrize("moments", [(0, 0), (0, -1), (math.nan, 1), (0, math.inf)])
def test_impossible_moments_are_refused(moments):
    with pytest.raises(ValueError, match="moments must be finite"):
        Moments(*moments)


def test_threshold_is_the_larger_of_two_bounds():
    rng = np.random.default_rng(0)
    values = rng.normal(10, 2, 20000)
    assert upper_threshold(values, 0.99) == pytest.approx(10 + 2 * 2.3263, abs=0.15)
    # Few values: above the largest of them, where the empirical quantile cannot be.
    assert upper_threshold(values[:5], 0.99) > values[:5].max()
    # A heavy tail: the empirical quantile.
    heavy = np.concatenate([np.zeros(90), np.full(10, 100.0)])
    assert upper_threshold(heavy, 0.95) == 100


# ---------------------------------------------------------------- from scores to calibration


def normal_scores_of(scales, images=6, size=24, seed=0):
    rng = np.random.default_rng(seed)
    return [
        NormalScores(
            rng.gamma(2, 3, (images, 9)),
            rng.beta(2, 5, (images, 9)),
            HeadMaps(
                *(torch.from_numpy(rng.gamma(2, 1 + i, (images, size, size))).float() for _ in range(2)),
            ),
            0.1 + 0.5 * i,
        )
        for i in range(scales)
    ]


def test_share_of_the_inconsistency_score_grows_with_what_the_surrounding_tells():
    scores = normal_scores_of(2)
    assert [s.r2 for s in scores] == [0.1, 0.6]
    settings = {"patch": (32, 64), "stride": (16, 16)}
    shares = [s.lambda_s for s in calibration_of(scores, Config(**settings)).scales]
    assert shares == [0.6, 0.9]
    given = calibration_of(scores, Config(**settings, lambda_s=0.3)).scales
    assert [s.lambda_s for s in given] == [0.3, 0.3]
    assert share_of(-3.0) == 0.5 and share_of(0.2) == pytest.approx(0.7) and share_of(1.0) == 0.9


def test_regression_in_parts_is_r2_by_its_definition():
    rng = np.random.default_rng(0)
    local = 3 + rng.normal(size=(7, 5, 4))
    global_ = local + 0.5 * rng.normal(size=local.shape)
    regression = Regression()
    for part in (slice(0, 3), slice(3, 7)):
        regression.add(torch.from_numpy(local[part]), torch.from_numpy(global_[part]))
    error = ((local - global_) ** 2).sum() / ((local - local.mean((0, 1))) ** 2).sum()
    assert regression.r2 == pytest.approx(1 - error, rel=1e-12) and 0.5 < regression.r2 < 0.9


@pytest.mark.parametrize("patch", [32, (32, 64)])
def test_standardised_maps_and_peaks_of_held_out_images_have_mean_0_and_deviation_1(patch):
    config = Config(patch=patch, stride=16 if patch == 32 else (16, 16))
    scores = normal_scores_of(len(config.patches))
    calibration = calibration_of(scores, config)
    for scale, s in zip(scores, calibration.scales, strict=True):
        assert s.inconsistency == Moments.of(scale.inconsistency)
        assert s.distortion == Moments.of(scale.distortion)
        blend = blend_heads(scale.maps, s)
        for standard in (
            s.map.standardise(blend),
            s.inconsistency_map.standardise(scale.maps.inconsistency),
            s.distortion_map.standardise(scale.maps.distortion),
            s.inconsistency_peak.standardise(scale.maps.inconsistency.amax((1, 2))),
            s.distortion_peak.standardise(scale.maps.distortion.amax((1, 2))),
        ):
            assert abs(standard.mean()) < 1e-4 and abs(standard.std(correction=0) - 1) < 1e-4
    maps, image = combine([scale.maps for scale in scores], config, calibration)
    assert calibration.scores == tuple(map(float, image))
    assert calibration.threshold == upper_threshold(image.numpy(), config.quantile)
    assert calibration.pixel_threshold == upper_threshold(maps.amax((1, 2)).numpy(), config.quantile)


def test_paper_blend_is_not_standardised_but_has_thresholds():
    config = Config(patch=32, stride=16, blend="paper")
    (scores,) = normal_scores_of(1)
    calibration = calibration_of([scores], config)
    assert calibration.scales == (ScaleStatistics(lambda_s=0.8),)
    blend = 0.8 * scores.maps.inconsistency + 0.2 * scores.maps.distortion
    expected = upper_threshold(blend.amax((1, 2)).numpy(), config.quantile)
    assert calibration.threshold == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def cache(parts, small):
    with ImageCache(normal_images(parts), (small["image_size"],) * 2) as cache:
        yield cache


def test_held_out_maps_of_a_model_are_standardised(cache, small):
    model = Glance(Config(**small))
    held_out = np.array([1, 4, 8, 10])
    train = np.setdiff1d(np.arange(len(cache)), held_out)
    calibrate(model, cache, train, held_out)
    precision = "bf16" if has_bf16(model.device) else "fp32"
    result = model.score(cache.batch(held_out), precision=precision)
    assert abs(result.maps.mean()) < 1e-3 and abs(result.maps.std() - 1) < 1e-3
    np.testing.assert_allclose(result.scores, model.calibration.scores, rtol=1e-4, atol=1e-4)
    assert (result.scores <= model.calibration.threshold).all()
    assert model.calibration.aspect == 1


@pytest.mark.parametrize("blend", ["calibrated", "paper"])
def test_only_the_normal_images_given_enter_and_each_once(cache, small, blend, monkeypatch):
    model = Glance(Config(**small, blend=blend))
    seen, features = [], model.features
    monkeypatch.setattr(
        model, "features", lambda batch, **more: (seen.extend(batch), features(batch, **more))[1]
    )
    train, held_out = np.array([0, 2, 3, 5, 6, 7, 9, 11]), np.array([1, 4, 8])
    done = []
    calibrate(model, cache, train, held_out, lambda *progress: done.append(progress))
    # Whitening is of no use to the paper's blend.
    fitted = len(train) if blend == "calibrated" else 0
    assert len(seen) == fitted + len(held_out)
    assert {x.tobytes() for x in seen[:fitted]} == {x.tobytes() for x in cache.batch(train[:fitted])}
    np.testing.assert_array_equal(seen[fitted:], cache.batch(held_out))
    assert done[-1] == (len(seen), len(seen))
    assert len(model.calibration.scores) == len(held_out)
    assert all(path.parent.name == "good" and path.parts[-3] == "train" for path in cache.paths)


# ---------------------------------------------------------------- the file


def example():
    statistics = [ScaleStatistics(*(Moments(i + k / 7, 0.1 + k) for k in range(5))) for i in range(2)]
    return Calibration(tuple(statistics), 3.25, 1 / 3, 0.95, 4 / 3, (1.5, -2.0, 0.1))


@pytest.mark.parametrize(
    "calibration", [example(), Calibration((ScaleStatistics(),))], ids=["set", "never set"]
)
def test_json_keeps_every_number(calibration):
    read = Calibration.from_json(calibration.to_json(), len(calibration.scales), "calibration.json")
    assert read == calibration


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("scales"),
        lambda values: values.pop("scores"),
        lambda values: values["scales"].pop(),
        lambda values: values["scales"][0]["map"].update(std=0),
        lambda values: values["scales"][0]["map"].update(mean="low"),
        lambda values: values["scales"][0].update(colour={"mean": 0, "std": 1}),
        lambda values: values.update(scores=["many"]),
        lambda values: values.update(scales={"a": 1}),
        lambda values: values.update(unknown=1),
        lambda values: values.update(scores=[1, float("nan")]),
        lambda values: values.update(scores=["1.5"]),
        lambda values: values.update(scores="15"),
        lambda values: values["scales"][0].pop("map"),
        lambda values: values["scales"][0]["map"].pop("mean"),
        lambda values: values["scales"][0]["map"].update(mean=10**400),
        *(
            lambda values, name=name, value=value: values.update({name: value})
            for name, wrong in {
                "threshold": ("3.25", None, True, [3.25], float("nan"), 10**400),
                "pixel_threshold": ("3.25", None, float("nan")),
                "quantile": ("0.99", None, 0, 1, -0.5, float("nan"), float("inf")),
                "aspect": ("1", None, 0, -1.5, float("nan"), float("inf")),
            }.items()
            for value in wrong
        ),
        *(
            lambda values, name=name: values.pop(name)
            for name in ("threshold", "pixel_threshold", "quantile", "aspect")
        ),
    ],
)
def test_damaged_values_are_named(change):
    values = json.loads(example().to_json())
    change(values)
    with pytest.raises(UserError, match=r"^run/calibration\.json: [^\n]*; train again$"):
        Calibration.from_json(json.dumps(values), 2, "run/calibration.json")


@pytest.mark.parametrize("threshold", [math.inf, -math.inf, 3])
def test_any_threshold_but_nan_is_read(threshold):
    calibration = dataclasses.replace(example(), threshold=threshold, pixel_threshold=threshold)
    assert Calibration.from_json(calibration.to_json(), 2, "calibration.json") == calibration


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", example().to_json()[:200], "\x00" * 50])
def test_damaged_text_is_named(text):
    with pytest.raises(UserError, match=r"^run/calibration\.json: damaged"):
        Calibration.from_json(text, 2, "run/calibration.json")
