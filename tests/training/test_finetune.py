"""Fine-tuning: targets are the teacher's, and Local-Net comes nearer to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.nets.builtin import builtin_local_net, builtin_teacher
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import ALL_FEATURES, sample_grid
from glance_fast.training.finetune import Imitation, Targets, finetune_stage, measured, whiten
from glance_fast.training.loop import Log, run_stage
from glance_fast.training.symmetry import Symmetry
from glance_fast.training.variants import make_variants

LARGE = 1 << 30


@pytest.fixture(scope="module")
def teacher():
    return builtin_teacher()


@pytest.fixture
def variants(parts):
    config = Config(image_size=64, patch=32, stride=16)
    with ImageCache(normal_images(parts), (64, 64)) as cache:
        return make_variants(cache, np.arange(12), 12, config, Symmetry(False, False), "variants")


def test_targets_are_the_teachers_features_at_the_middle_of_every_patch(variants, teacher):
    done = []
    targets = Targets(
        teacher, variants.clean, variants.stained, LARGE, False, lambda *progress: done.append(progress)
    )
    assert targets.count == 12 and done[-1] == (24, 24)
    places = torch.tensor([3, 12 + 3])
    found = targets.read(places, 32)
    assert found.shape == (2, ALL_FEATURES, 5, 5)
    images = np.stack([variants.clean[3], variants.stained[3]])
    np.testing.assert_array_equal(targets.images(places).numpy(), images)
    first, second, third = teacher(to_input(torch.from_numpy(images)))
    centre = torch.arange(5) * 8 + 15.5
    expected = torch.cat(
        [
            sample_grid(first, (centre - 2) / 8, (centre - 2) / 8),
            sample_grid(second, centre / 8, centre / 8),
            sample_grid(third, centre / 16, centre / 16),
        ],
        1,
    )
    # Kept in half precision.
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_layer1_is_read_where_its_means_lie(teacher):
    # A map that says its own place, at stride 4, averaged as the teacher averages it.
    place = (torch.arange(32.0) * 4).expand(1, 1, 32, 32)
    averaged = torch.nn.functional.avg_pool2d(place, 2)
    centre = torch.tensor([15.5, 40.0, 99.25])
    read = sample_grid(averaged, (centre - 2) / 8, (centre - 2) / 8)
    torch.testing.assert_close(read[0, 0, 0], centre)


def test_less_memory_takes_fewer_variants(variants, teacher):
    whole = Targets(teacher, variants.clean, variants.stained, LARGE, False)
    a_variant = 2 * sum(m[0].numel() * m.element_size() for m in whole.maps)
    assert Targets(teacher, variants.clean, variants.stained, 5 * a_variant, False).count == 5
    assert Targets(teacher, variants.clean, variants.stained, 1, False).count == 2


@pytest.mark.parametrize(("side", "count"), [(64, 40), (256, 40), (272, 35), (512, 10), (1024, 8)])
def test_of_large_images_fewer_are_measured_at_once(side, count):
    assert measured(np.broadcast_to(np.uint8(0), (1, side, side, 3))) == count


def test_the_decoder_starts_as_the_best_linear_reading(variants, teacher):
    targets = Targets(teacher, variants.clean, variants.stained, LARGE, False)
    local = builtin_local_net(32).local.eval()
    imitation = Imitation(local, targets)
    places = targets.measured()
    with torch.no_grad():
        wanted = imitation.scaled(targets.read(places, 32))
        error = (imitation.decoder(local(to_input(targets.images(places)), 8)) - wanted).square().mean()
    assert wanted.mean().abs() < 1e-4 and abs(wanted.std() - 1) < 0.02
    assert error < 0.6


def test_fine_tuning_comes_nearer_and_whitens(variants, teacher, tmp_path):
    targets = Targets(teacher, variants.clean, variants.stained, LARGE, False)
    local = builtin_local_net(32).local
    log = Log(tmp_path / "log.csv")
    stage = finetune_stage("local-32", local, targets, 30, 0, False)
    run_stage(stage, tmp_path, log, lambda *_: None, 99)
    fits = [float(row["imitation"]) for row in log.rows]
    assert np.mean(fits[-3:]) < 0.9 * fits[0]
    whiten(local, variants)
    with torch.no_grad():
        features = local(to_input(targets.images(torch.arange(12))), 8).transpose(0, 1).flatten(1)
    assert features.mean(1).abs().max() < 1e-3
    # The ridge takes some off the small ones.
    variance = torch.linalg.eigvalsh(torch.cov(features))
    assert variance.max() < 1.05 and variance.mean() > 0.2


def test_half_of_each_batch_is_stained(variants, teacher, monkeypatch):
    # On clean images alone, Local-Net unlearns to see what the category never shows.
    targets = Targets(teacher, variants.clean, variants.stained, LARGE, False)
    seen = []
    images = Targets.images
    monkeypatch.setattr(Targets, "images", lambda self, places: seen.append(images(self, places)) or seen[-1])
    stage = finetune_stage("local-32", builtin_local_net(32).local, targets, 1, 0, False)
    seen.clear()
    stage.step(0)
    (batch,) = seen
    kinds = [
        np.array([(np.asarray(x) == pictures).all((1, 2, 3)).any() for x in batch])
        for pictures in targets.pictures
    ]
    half = len(batch) // 2
    assert half and kinds[0][:half].all() and kinds[1][half:].all() and not kinds[0][half:].all()
