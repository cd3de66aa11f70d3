"""What a model is worth without its Global-Net."""

import dataclasses

import numpy as np
import pytest
import torch
from samples import MASKED, SMALL, draw_part

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.experiments.local_alone import without_global
from glance_fast.model import Glance
from glance_fast.training import calibrate
from glance_fast.training.whitening import whitenings

TWO = {**SMALL, "image_size": 128, "patch": [32, 64], "stride": [16, 32], "finetune_steps": [2, 2]}


@pytest.fixture
def cache_of(parts):
    def read(model):
        return ImageCache(normal_images(parts), model.config.image_size)

    return read


@pytest.fixture
def images():
    """A good part and a punched one."""
    rng = np.random.default_rng(5)
    return [draw_part(rng, defect=defect) for defect in (False, True)]


def untrained(settings, seed=0):
    return Glance(Config(**settings), seed=seed)


@torch.inference_mode()
@pytest.mark.parametrize("settings", [SMALL, TWO, {**SMALL, "blend": "paper", "smoothing": 0.0}])
def test_a_patch_scores_its_whitened_distance_from_normal_ones_of_its_place(
    settings, cache_of, images, monkeypatch
):
    monkeypatch.setattr(calibrate, "has_bf16", lambda device: False)
    model = untrained(settings)
    cache = cache_of(model)
    alone = without_global(model, cache)
    batch = np.stack([model.prepare(image) for image in images])
    found = alone.patch_scores(batch)
    for scale, scores in zip(model.scales, found, strict=True):
        normal, asked = (
            scale.local_features(torch.from_numpy(pixels)).flatten(1, 2)
            for pixels in (cache.batch(range(len(cache))), batch)
        )
        for places, mean, whitening in whitenings(normal.half(), scale.grid, model.config.shrinkage):
            apart = torch.einsum("pij,bpj->bpi", whitening.half().float(), asked[:, places] - mean)
            expected = apart.square().mean(2)
            torch.testing.assert_close(scores.inconsistency[:, places], expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("settings", [SMALL, MASKED])
def test_global_net_has_no_say(settings, cache_of, images, monkeypatch):
    model = untrained(settings)
    cache = cache_of(model)
    expected = without_global(model, cache).score(images)
    for scale in model.scales:
        monkeypatch.setattr(type(scale.global_net), "forward", lambda *arguments: pytest.fail("was run"))
        with torch.no_grad():
            for weight in (*scale.global_net.parameters(), *scale.distortion.parameters()):
                weight.normal_()
    found = without_global(model, cache).score(images)
    np.testing.assert_array_equal(found.maps, expected.maps)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_local_net_is_the_models(cache_of, images):
    model = untrained(SMALL)
    cache = cache_of(model)
    before = without_global(model, cache).score(images).maps
    with torch.no_grad():
        next(model.scales[0].local.parameters()).mul_(1.5)
    assert not np.allclose(without_global(model, cache).score(images).maps, before)


def test_the_model_stays_as_it_is(cache_of):
    model = untrained(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = without_global(model, cache_of(model))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(t.data_ptr() in {o.data_ptr() for o in alone.parameters()} for t in model.parameters())


def test_what_patch_sizes_count_by_is_the_models(cache_of):
    model = untrained(TWO)
    scales = [
        dataclasses.replace(s, weight=w) for s, w in zip(model.calibration.scales, (0.7, 1.0), strict=True)
    ]
    model.calibration = dataclasses.replace(model.calibration, scales=tuple(scales))
    alone = without_global(model, cache_of(model)).calibration
    assert [(s.weight, s.lambda_s) for s in alone.scales] == [(0.7, 1.0), (1.0, 1.0)]
    assert len(alone.scores) == 12 and np.isfinite([alone.threshold, alone.pixel_threshold]).all()


def test_memory_and_precision_are_the_models(cache_of):
    model = untrained(SMALL)
    model.memory_mib, model.precision = 700, "bf16"
    alone = without_global(model, cache_of(model))
    assert (alone.memory_mib, alone.precision) == (700, "bf16")


def test_progress_is_told(cache_of):
    model, told = untrained(SMALL), []
    without_global(model, cache_of(model), lambda done, of: told.append((done, of)))
    assert told[-1] == (12, 12)
