"""Calibration: moments, thresholds, the file."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.calibration import (
    Calibration,
    Moments,
    ScaleStatistics,
    caution,
    photographs_needed,
    promise,
    rank_of_threshold,
    upper_threshold,
    with_thresholds,
)
from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.device import has_bf16
from glance_fast.engines.memory import MIB
from glance_fast.errors import UserError
from glance_fast.maps import HeadMaps, blend_heads, combine, distances, interpolate
from glance_fast.model import Glance
from glance_fast.run import CALIBRATION_STATE
from glance_fast.training import calibrate as module
from glance_fast.training.calibrate import (
    LEAST_IMAGES,
    LEAST_WEIGHT,
    MOST_IMAGES,
    RunningMoments,
    calibrate,
    calibration_of,
    digest,
    r2_of_scales,
    recalibrate,
    room,
    weights_of,
)
from glance_fast.training.whitening import NormalScores

# ---------------------------------------------------------------- thresholds and moments


def test_calibration_takes_the_images_that_memory_holds():
    model = Glance(Config(image_size=256))
    each = sum(len(scale.grid) for scale in model.scales) * 128 * 2
    assert room(model, 213) == 213 and room(model, 10**6) == MOST_IMAGES
    found = []
    for mib in (80, 128, 256):
        model.memory_mib = mib
        found.append(room(model, 10**6))
        assert found[-1] * each < mib * MIB and model.memory_mib == mib
    assert LEAST_IMAGES <= found[0] < found[1] < found[2] == MOST_IMAGES
    model.memory_mib = 70
    model.memory_share()
    with pytest.raises(UserError, match=r"image_size 256x256: 70 MiB beside .* calibrate on 40 images"):
        room(model, 213)
    assert room(model, 8) == 8


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


def test_running_moments_are_those_of_all_values_together():
    values = torch.from_numpy(np.random.default_rng(0).normal(50, 3, (7, 40))).float()
    running = RunningMoments()
    for part in values.split(3):
        running.add(part)
    expected = Moments.of(values)
    assert running.moments().mean == pytest.approx(expected.mean, rel=1e-12)
    assert running.moments().std == pytest.approx(expected.std, rel=1e-6)
    running = RunningMoments()
    running.add(torch.full((5,), 3.0))
    assert running.moments() == Moments(3.0, 1e-6)


@pytest.mark.parametrize(
    ("count", "false_alarms", "rank"),
    [
        (99, 0.01, 99),
        (100, 0.01, 100),
        (199, 0.01, 198),
        (200, 0.01, 199),
        (19, 0.05, 19),
        (18, 0.05, 19),
        (9, 0.1, 9),
        (10, 0.25, 9),
        (1, 0.5, 1),
        (999, 0.001, 999),
    ],
)
def test_rank_of_threshold(count, false_alarms, rank):
    assert rank_of_threshold(count, false_alarms) == rank


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 500))
def test_the_rank_is_the_lowest_that_keeps_the_promise(count, thousandths):
    # Of count + 1 images that are alike the last one is above the k-th of the others with this probability.
    def above(k):
        return (count + 1 - k) * 1000 <= thousandths * (count + 1)

    rank = rank_of_threshold(count, thousandths / 1000)
    assert rank == next(k for k in range(1, count + 2) if above(k))
    assert (rank <= count) == (count >= photographs_needed(thousandths / 1000))


@pytest.mark.parametrize(
    ("false_alarms", "photographs"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.001, 999), (0.03, 33), (0.1, 9)]
)
def test_photographs_needed(false_alarms, photographs):
    assert photographs_needed(false_alarms) == photographs
    assert rank_of_threshold(photographs, false_alarms) <= photographs
    assert rank_of_threshold(photographs - 1, false_alarms) > photographs - 1


def test_threshold_is_the_value_of_that_rank():
    values = np.random.default_rng(0).permutation(199).astype(float)
    assert upper_threshold(values, 0.01) == 197
    assert upper_threshold(values, 0.05) == 189
    assert upper_threshold(values, 0.5) == 99
    # Values may repeat.
    heavy = np.concatenate([np.zeros(90), np.full(10, 100.0)])
    assert upper_threshold(heavy, 0.05) == 100 and upper_threshold(heavy, 0.2) == 0


@pytest.mark.parametrize(("count", "false_alarms"), [(99, 0.01), (60, 0.05), (30, 0.1), (7, 0.2)])
@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_the_share_of_false_alarms_is_kept_whatever_the_scores_are_like(count, false_alarms, heavy):
    rng, draws = np.random.default_rng(count), 20000
    scores = rng.standard_cauchy((draws, count + 1)) if heavy else rng.normal(size=(draws, count + 1))
    alarms = np.mean([row[-1] > upper_threshold(row[:-1], false_alarms) for row in scores])
    expected = 1 - rank_of_threshold(count, false_alarms) / (count + 1)
    assert false_alarms - 1 / (count + 1) < expected <= false_alarms + 1e-12
    assert abs(alarms - expected) < 4 * (expected / draws) ** 0.5


@pytest.mark.parametrize("count", [2, 9, 98])
def test_with_too_few_photographs_the_threshold_lies_above_all_of_them(count):
    values = np.random.default_rng(0).normal(10, 2, count)
    found = upper_threshold(values, 0.01)
    normal = values.mean() + 2.326347874 * values.std()
    assert found == pytest.approx(max(values.max(), normal), rel=1e-9)
    assert found >= values.max()
    outlier = np.append(values, 1000.0)[-98:]
    assert upper_threshold(outlier, 0.001) >= 1000


def test_what_the_threshold_promises_is_said():
    few = dataclasses.replace(example(), scores=tuple(map(float, range(19))), false_alarms=0.01)
    assert promise(few) == (
        "threshold: 19 photographs cannot promise 0.01 of false alarms, for which 99 are needed; "
        "about 5.0% is what to expect at most"
    )
    enough = dataclasses.replace(few, scores=tuple(map(float, range(199))))
    said = promise(enough)
    assert said.startswith(
        "threshold: a share of 0.01 of good photographs or less will lie above it (from 199; "
    )
    # Simulated: what share of new images lies above the 198th of 199, at worst in 95 of 100 trainings.
    worst = np.quantile(1 - np.sort(np.random.default_rng(0).random((20000, 199)), axis=1)[:, 197], 0.95)
    assert float(said.rsplit(" ", 1)[1].rstrip("%)")) == pytest.approx(100 * worst, abs=0.1)


def test_share_above_counts_the_image_itself():
    calibration = dataclasses.replace(example(), scores=(1.0, 2.0, 2.0, 5.0))
    assert [calibration.share_above(s) for s in (0, 1, 1.5, 2, 2.5, 5, 5.1)] == pytest.approx(
        [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]
    )
    assert dataclasses.replace(calibration, scores=()).share_above(3) == 1


def test_share_above_of_a_normal_image_is_as_likely_low_as_it_says():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(4000):
        *normal, own = map(float, rng.normal(size=20))
        shares.append(dataclasses.replace(example(), scores=tuple(normal)).share_above(own))
    for bound in (0.05, 0.2, 0.5):
        assert abs(np.mean(np.array(shares) <= bound + 1e-9) - bound) < 4 * (bound / 4000) ** 0.5


# ---------------------------------------------------------------- from scores to calibration


def model_of(**settings):
    """A model that is not trained: its settings make maps of scores."""
    base = {"image_size": 96, "width": 8, "patch": 32, "stride": 16, "pretrained": False}
    return Glance(Config(**{**base, **settings}))


def normal_scores_of(model, images=30, seed=0):
    rng = np.random.default_rng(seed)
    return [
        NormalScores(
            torch.from_numpy(rng.gamma(2, 3 + i, (images, len(s.grid)))).float(),
            torch.from_numpy(rng.beta(2, 5, (images, len(s.grid)))).float(),
        )
        for i, s in enumerate(model.scales)
    ]


TWO = {"patch": (32, 64), "stride": (16, 32), "image_size": 128}


@pytest.mark.parametrize("more", [{}, TWO], ids=["one scale", "two scales"])
def test_standardised_maps_and_peaks_of_normal_images_have_mean_0_and_deviation_1(more):
    model = model_of(**more)
    scores = normal_scores_of(model)
    calibration = calibration_of(model, scores)
    maps = model.head_maps(scores)
    for scale, heads, s in zip(scores, maps, calibration.scales, strict=True):
        assert s.inconsistency == Moments.of(scale.inconsistency)
        assert s.distortion == Moments.of(scale.distortion)
        assert s.lambda_s == 0.8
        for standard in (
            s.map.standardise(blend_heads(heads, s)),
            s.inconsistency_map.standardise(heads.inconsistency),
            s.distortion_map.standardise(heads.distortion),
            s.inconsistency_peak.standardise(heads.inconsistency.amax((1, 2))),
            s.distortion_peak.standardise(heads.distortion.amax((1, 2))),
        ):
            assert abs(standard.mean()) < 1e-4 and abs(standard.std(correction=0) - 1) < 1e-4
    blended, image = combine(maps, model.config, calibration)
    assert abs(float(image.mean())) < 1e-5 and abs(float(image.std(correction=0)) - 1) < 1e-5
    assert calibration.image.std > 0.5, "a sum of peaks that vary by 1 each"
    np.testing.assert_allclose(calibration.scores, image, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(calibration.peaks, blended.amax((1, 2)), rtol=1e-5)
    assert calibration.largest_peaks, "as an untrained model has it"
    again = with_thresholds(calibration, model.config.false_alarms)
    assert again == calibration
    assert calibration.threshold == upper_threshold(np.array(calibration.scores), 0.01)
    assert calibration.pixel_threshold == upper_threshold(np.array(calibration.peaks), 0.01)


def test_images_may_come_in_any_portions(monkeypatch):
    model = model_of()
    scores = normal_scores_of(model)
    found = []
    for together in (1, 7, 100):
        monkeypatch.setattr(Glance, "at_once", lambda *_, together=together: together)
        found.append(json.loads(calibration_of(model, scores).to_json()))
    for other in found[1:]:
        np.testing.assert_allclose(other["scores"], found[0]["scores"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other["peaks"], found[0]["peaks"], rtol=1e-4)
        for name, moments in other["scales"][0].items():
            assert moments == pytest.approx(found[0]["scales"][0][name], rel=1e-5)


def test_shares_are_the_settings_unless_they_are_given():
    model = model_of(**TWO, lambda_s=0.3)
    scores = normal_scores_of(model)
    assert [s.lambda_s for s in calibration_of(model, scores).scales] == [0.3, 0.3]
    given = calibration_of(model, scores, [0.6, 0.9])
    assert [s.lambda_s for s in given.scales] == [0.6, 0.9]
    assert given.scores == calibration_of(model, scores).scores, "peaks are summed evenly"
    assert given.peaks != calibration_of(model, scores).peaks


@pytest.mark.parametrize("false_alarms", [0.01, 0.1, 0.3])
def test_false_alarms_are_counted_among_the_normal_scores(false_alarms):
    model = model_of(false_alarms=false_alarms)
    calibration = calibration_of(model, normal_scores_of(model, images=100))
    above = np.sum(np.array(calibration.scores) > calibration.threshold)
    assert calibration.false_alarms == false_alarms
    assert above == 100 - rank_of_threshold(100, false_alarms)
    other = with_thresholds(calibration, 0.2)
    assert (other.false_alarms, np.sum(np.array(other.scores) > other.threshold)) == (0.2, 19)
    assert np.sum(np.array(other.peaks) > other.pixel_threshold) == 19
    assert (other.scores, other.scales, other.image) == (
        calibration.scores,
        calibration.scales,
        calibration.image,
    )


def test_maps_show_the_distance_and_the_log_odds():
    config = Config(patch=32, stride=16, image_size=96, width=8)
    model = Glance(config)
    (scores,) = normal_scores_of(model, images=3)
    assert model.calibration.distances
    (shown,) = model.head_maps([scores])
    grid = model.scales[0].grid
    expected = interpolate(scores.inconsistency**0.5, grid, config)
    torch.testing.assert_close(shown.inconsistency, expected)
    odds = torch.log(scores.distortion / (1 - scores.distortion))
    torch.testing.assert_close(shown.distortion, interpolate(odds, grid, config), rtol=1e-4, atol=1e-4)
    # As in run folders of before, and in the paper's blend.
    model.calibration = dataclasses.replace(model.calibration, distances=False)
    (shown,) = model.head_maps([scores])
    torch.testing.assert_close(shown.inconsistency, interpolate(scores.inconsistency, grid, config))
    torch.testing.assert_close(shown.distortion, interpolate(scores.distortion, grid, config))
    assert not Glance(dataclasses.replace(config, blend="paper")).calibration.distances
    assert not calibration_of(model, [scores]).distances, "a calibration anew shows what the one before did"


def test_what_is_certain_has_finite_log_odds():
    root, odds = distances(torch.tensor([0.0, 4.0]), torch.tensor([0.0, 1.0]))
    assert root.tolist() == [0, 2] and odds[0] == pytest.approx(-16.1, abs=0.1) and 15 < odds[1] < 17


def test_a_size_counts_by_what_its_surroundings_explain():
    assert weights_of([0.6, 0.45]) == [1, pytest.approx(0.75)]
    assert weights_of([0.2, 0.25]) == [pytest.approx(0.8), 1]
    assert weights_of([0.02, -0.01]) == [1, LEAST_WEIGHT], "half at least"
    assert weights_of([-0.1, 0.0]) == [1, 1], "nothing is explained: no reason to prefer one"
    local = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0))
    half = local.mean((0, 1)) + (local - local.mean((0, 1))) / 2
    chunks = [
        [(local[:1], half[:1]), (local[:1], local[:1])],
        [(local[1:], half[1:]), (local[1:], local[1:])],
    ]
    assert r2_of_scales(chunks) == pytest.approx([0.75, 1])
    config = Config(**TWO)
    maps = [HeadMaps(*(torch.full((1, 4, 4), value) for _ in "id")) for value in (2.0, 3.0)]
    calibration = Calibration((ScaleStatistics(), ScaleStatistics(weight=0.5)))
    blended, score = combine(maps, config, calibration)
    assert blended.unique().tolist() == [2] and float(score) == 10, "peaks are summed evenly"
    _, score = combine(maps, config, dataclasses.replace(calibration, largest_peaks=True))
    assert float(score) == 6, "a defect has one size"
    given = calibration_of(model_of(**TWO), normal_scores_of(model_of(**TWO)), weights=[1.0, 0.6])
    assert [s.weight for s in given.scales] == [1, 0.6]


@pytest.mark.parametrize(("share", "heads"), [(1.0, (0,)), (0.0, (1,)), (0.5, (0, 1))])
def test_a_head_without_a_share_has_no_peak(share, heads):
    config = Config(patch=32, stride=16, image_size=96)
    values = 3.0, 2.0
    maps = HeadMaps(*(torch.full((1, 4, 4), value) for value in values))
    _, score = combine([maps], config, Calibration((ScaleStatistics(lambda_s=share),)))
    assert float(score) == sum(values[head] for head in heads)


def test_paper_blend_is_not_standardised_but_has_thresholds():
    model = model_of(blend="paper")
    (scores,) = normal_scores_of(model)
    calibration = calibration_of(model, [scores])
    assert calibration.scales == (ScaleStatistics(lambda_s=0.8),) and calibration.image == Moments()
    (maps,) = model.head_maps([scores])
    blend = 0.8 * maps.inconsistency + 0.2 * maps.distortion
    peaks = blend.amax((1, 2)).numpy()
    np.testing.assert_allclose(calibration.scores, peaks, rtol=1e-5)
    assert calibration.scores == calibration.peaks
    assert calibration.threshold == pytest.approx(upper_threshold(peaks, 0.01), rel=1e-5)


# ---------------------------------------------------------------- of a model


@pytest.fixture
def cache(parts, small):
    with ImageCache(normal_images(parts), (small["image_size"],) * 2) as cache:
        yield cache


@pytest.fixture(params=["surround", "masked"])
def settings_of(request, small, masked):
    return masked if request.param == "masked" else small


def all_of(cache):
    return np.arange(len(cache))


def in_order(cache, indices):
    """Images as a calibration takes them: by their names."""
    return sorted(map(int, indices), key=lambda index: digest(cache.batch([index])[0]))


def test_every_image_counts_once_and_is_scored_by_what_has_not_seen_it(cache, settings_of):
    model = Glance(Config(**settings_of))
    done = []
    calibrate(model, cache, all_of(cache), lambda *progress: done.append(progress))
    calibration = model.calibration
    assert len(calibration.scores) == len(calibration.peaks) == len(cache) == 12
    assert done[-1] == (12, 12) and [d for d, _ in done] == sorted(d for d, _ in done)
    assert abs(np.mean(calibration.scores)) < 1e-5 and abs(np.std(calibration.scores) - 1) < 1e-5
    assert calibration.aspect == 1
    assert all(path.parent.name == "good" and path.parts[-3] == "train" for path in cache.paths)
    assert calibration.trained_on == tuple(digest(image) for image in cache.batch(all_of(cache)))
    # Images are taken in an order of their own, whoever gave them in which.
    order = in_order(cache, all_of(cache))
    other = Glance(Config(**settings_of))
    calibrate(other, cache, all_of(cache)[::-1])
    np.testing.assert_allclose(other.calibration.scores, calibration.scores, rtol=1e-3, atol=1e-3)
    # By what has seen them, training images look more normal than they were scored.
    precision = "bf16" if has_bf16(model.device) else "fp32"
    seen = model.score(list(cache.batch(order)), precision=precision)
    assert (seen.scores < calibration.scores).mean() > 0.9


def test_how_much_higher_images_held_out_score(cache, settings_of, monkeypatch):
    model, held_out = Glance(Config(**settings_of)), np.array([1, 5, 6])
    higher = calibrate(model, cache, all_of(cache), held_out=held_out)
    scores = np.array(model.calibration.scores)
    new = np.array([index in held_out for index in in_order(cache, all_of(cache))])
    assert higher == pytest.approx((scores[new].mean() - scores[~new].mean()) / scores.std())
    assert higher != 0 and calibrate(model, cache, all_of(cache)) == 0
    assert calibrate(model, cache, held_out, held_out=held_out) == 0


def test_what_patch_sizes_count_by_may_be_given(cache, small):
    two = {**small, "image_size": 128, "patch": [32, 64], "stride": [16, 32], "finetune_steps": [2, 2]}
    model, held_out = Glance(Config(**two)), [1, 5]
    with ImageCache(cache.paths, model.config.image_size) as larger:
        calibrate(model, larger, all_of(larger), held_out=held_out, weights=[0.6, 0.9])
    assert [scale.weight for scale in model.calibration.scales] == [0.6, 0.9]


@pytest.mark.parametrize(
    ("higher", "count", "said"),
    [(-1.0, 8, False), (0.2, 1000, False), (0.3, 8, False), (0.3, 16, True), (0.5, 3, False), (0.7, 8, True)],
)
def test_a_difference_is_told_where_it_is_more_than_chance(higher, count, said):
    found = caution(higher, count)
    assert bool(found) == said
    if said:
        assert found.startswith(f"caution: {count} photographs held out score {higher:.1f} deviations higher")


def test_only_the_images_given_enter(cache, small, monkeypatch):
    model = Glance(Config(**small))
    seen, features = [], model.features
    monkeypatch.setattr(
        model, "features", lambda batch, **more: (seen.extend(batch), features(batch, **more))[1]
    )
    chosen = np.array([0, 2, 3, 5, 6, 7, 9, 11])
    calibrate(model, cache, chosen)
    assert {x.tobytes() for x in seen} == {x.tobytes() for x in cache.batch(chosen)}
    assert len(seen) == len(chosen) == len(model.calibration.scores)


def test_more_images_than_are_needed_are_left_out(cache, small, monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 9)
    model = Glance(Config(**small))
    calibrate(model, cache, all_of(cache))
    assert len(model.calibration.scores) == 9
    # They were trained on, all of them, and may not be calibrated on as new ones.
    assert len(set(model.calibration.trained_on)) == 12


def test_recalibration_leaves_the_whitening_and_takes_the_new_scores(cache, settings_of):
    model = Glance(Config(**settings_of, lambda_s=0.4))
    calibrate(model, cache, np.arange(8))
    before = model.calibration
    weights = {n: tensor.clone() for n, tensor in model.state_dict().items() if n != CALIBRATION_STATE}
    # One share was set by hand, as an earlier version did by what it measured.
    other = dataclasses.replace(before.scales[0], lambda_s=0.9)
    model.calibration = dataclasses.replace(before, scales=(other,), aspect=2.0)
    done = []
    recalibrate(model, cache, np.array([8, 9, 10, 11]), lambda *progress: done.append(progress))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())
    after = model.calibration
    assert (after.trained_on, after.aspect, after.scales[0].lambda_s) == (before.trained_on, 2.0, 0.9)
    assert len(after.scores) == len(after.peaks) == 4 and done[-1] == (4, 4)
    precision = "bf16" if has_bf16(model.device) else "fp32"
    scored = model.score(list(cache.batch([8, 9, 10, 11])), precision=precision)
    np.testing.assert_allclose(after.scores, scored.scores, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after.peaks, scored.maps.max((1, 2)), rtol=1e-3, atol=1e-3)
    assert after.threshold == upper_threshold(np.array(after.scores), 0.01)


@pytest.mark.parametrize("blend", ["calibrated", "paper"])
def test_scores_are_the_same_twice(cache, small, blend):
    found = []
    for _ in range(2):
        model = Glance(Config(**small, blend=blend))
        calibrate(model, cache, all_of(cache))
        found.append(model)
    assert found[0].calibration == found[1].calibration
    assert (found[0].scales[0].whitening is None) == (blend == "paper")
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor, found[1].state_dict()[name])


def test_paper_blend_scores_normal_images_as_any_other(cache, small):
    model = Glance(Config(**small, blend="paper"))
    calibrate(model, cache, np.arange(6))
    precision = "bf16" if has_bf16(model.device) else "fp32"
    scored = model.score(list(cache.batch(in_order(cache, range(6)))), precision=precision)
    np.testing.assert_allclose(model.calibration.scores, scored.scores, rtol=1e-4)


def test_digest_is_of_the_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    same = np.asfortranarray(image)
    other = image.copy()
    other[3, 3, 1] ^= 1
    assert digest(image) == digest(same) == digest(image[::-1][::-1]) and len(digest(image)) == 16
    assert digest(other) != digest(image)


# ---------------------------------------------------------------- the file


def example():
    statistics = [
        ScaleStatistics(*(Moments(i + k / 7, 0.1 + k) for k in range(7)), lambda_s=0.3) for i in range(2)
    ]
    return Calibration(
        tuple(statistics),
        image=Moments(0.5, 1 / 7),
        threshold=3.25,
        pixel_threshold=1 / 3,
        false_alarms=0.05,
        aspect=4 / 3,
        scores=(1.5, -2.0, 0.1),
        peaks=(2.5, 3.0, 0.3),
        trained_on=("0123456789abcdef", "00"),
    )


@pytest.mark.parametrize(
    "calibration",
    [
        example(),
        Calibration((ScaleStatistics(),)),
        Calibration((ScaleStatistics(weight=0.6),), distances=True, largest_peaks=True),
    ],
    ids=["set", "never set", "distances"],
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
        lambda values: values.update(peaks=["many"]),
        lambda values: values.update(peaks=[float("inf")]),
        lambda values: values.update(trained_on=[3]),
        lambda values: values.update(trained_on=None),
        lambda values: values.update(image={"mean": 0}),
        lambda values: values.update(image={"mean": 0, "std": 0}),
        lambda values: values["scales"][0].update(lambda_s=1.5),
        lambda values: values["scales"][0].update(lambda_s="0.5"),
        lambda values: values["scales"][0].pop("lambda_s"),
        lambda values: values["scales"][0].pop("weight"),
        lambda values: values["scales"][0].update(weight=0),
        lambda values: values["scales"][0].update(weight=1.1),
        lambda values: values["scales"][0].pop("map"),
        lambda values: values["scales"][0]["map"].pop("mean"),
        lambda values: values["scales"][0]["map"].update(mean=10**400),
        *(
            lambda values, name=name, value=value: values.update({name: value})
            for name, wrong in {
                "threshold": ("3.25", None, True, [3.25], float("nan"), 10**400),
                "pixel_threshold": ("3.25", None, float("nan")),
                "false_alarms": ("0.01", None, 0, 1, -0.5, float("nan"), float("inf")),
                "quantile": ("0.99", None, 0, 1, -0.5, float("nan"), [0.99]),
                "aspect": ("1", None, 0, -1.5, float("nan"), float("inf")),
                "distances": ("true", None, 1),
                "largest_peaks": ("true", None, 1),
            }.items()
            for value in wrong
        ),
        *(
            lambda values, name=name: values.pop(name)
            for name in (
                "threshold",
                "pixel_threshold",
                "false_alarms",
                "aspect",
                "image",
                "peaks",
                "distances",
                "trained_on",
            )
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


def former(calibration):
    """The file that an earlier version wrote."""
    values = json.loads(calibration.to_json())
    for name in ("image", "peaks", "trained_on", "distances", "largest_peaks"):
        del values[name]
    for scale in values["scales"]:
        del scale["weight"]
    values["quantile"] = 1 - values.pop("false_alarms")
    return json.dumps(values, indent=2)


def test_a_file_of_an_earlier_version_is_read():
    now = example()
    read = Calibration.from_json(former(now), 2, "calibration.json")
    assert read.false_alarms == pytest.approx(0.05, abs=1e-12)
    assert read == dataclasses.replace(
        now, false_alarms=read.false_alarms, image=Moments(), peaks=(), trained_on=(), distances=False
    )
    # It is of this version once it is written again.
    assert Calibration.from_json(read.to_json(), 2, "calibration.json") == read
    assert "quantile" not in read.to_json()


def test_a_file_without_the_word_on_peaks_sums_them_all():
    values = json.loads(dataclasses.replace(example(), distances=True).to_json())
    del values["largest_peaks"]
    read = Calibration.from_json(json.dumps(values), 2, "calibration.json")
    assert read.distances and not read.largest_peaks


@pytest.mark.parametrize("name", ["threshold", "scores", "aspect", "scales"])
def test_a_damaged_file_of_an_earlier_version_is_named(name):
    values = json.loads(former(example()))
    del values[name]
    with pytest.raises(UserError, match=r"^run/calibration\.json: [^\n]*; train again$"):
        Calibration.from_json(json.dumps(values), 2, "run/calibration.json")
