"""Local-Net without a teacher: views, losses, the file it writes, resume."""

import csv
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import read_notes
from glance_fast.data.folders import list_images
from glance_fast.errors import UserError
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import Student, compactness
from glance_fast.training import distill as distillation
from glance_fast.training import self_supervised
from glance_fast.training.distill import Photographs
from glance_fast.training.fit import fit
from glance_fast.training.loop import Log, run_stage
from glance_fast.training.sampling import step_generator
from glance_fast.training.self_supervised import (
    draw_views,
    losses,
    random_student,
    self_supervised_stage,
    whiten,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((80, 70)).save(folder / f"{i}.png")
    return list_images(folder)


@pytest.fixture
def cache(photographs):
    with ImageCache(photographs, (96, 96)) as cache:
        yield cache


def make(paths, out, work, reporter, patch=32, steps=3, seed=0):
    return self_supervised.distill_self_supervised(
        paths, out, work, patch, steps=steps, seed=seed, reporter=reporter, device="cpu", size=(96, 96)
    )


def features(local, cache, number=0):
    """Of two views of 4 patches of each image, [64, 128] each."""
    images = torch.from_numpy(cache.batch(range(16)))
    views = draw_views(images, local.patch, 4, step_generator(0, "test", number))
    with torch.no_grad():
        return [local(to_input(view)).flatten(1) for view in views]


def relation(first, second):
    """Mean squared difference of two views of a patch, in that of views of two images."""
    same = (first - second).square().mean()
    others = torch.stack([(first - second.roll(k, 0)).square().mean() for k in range(4, 64, 4)]).mean()
    return float(same / others)


@pytest.mark.parametrize("patch", [32, 64])
def test_views_show_the_same_patch_not_the_same_pixels(cache, patch):
    images = torch.from_numpy(cache.batch(range(16)))
    first, second = draw_views(images, patch, 4, step_generator(0, "test", 0))
    assert first.shape == second.shape == (64, patch, patch, 3) and first.dtype == torch.float32
    assert min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 255
    assert (first - second).abs().flatten(1).mean(1).min() > 0.5
    # Mirrored or not, the same colours.
    middles = [view.mean((1, 2)) for view in (first, second)]
    assert relation(*middles) < 0.6
    again, _ = draw_views(images, patch, 4, step_generator(0, "test", 0))
    other, _ = draw_views(images, patch, 4, step_generator(0, "test", 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_any_change_a_view_is_the_patch(cache, monkeypatch):
    for name in ("SHIFT", "BRIGHTNESS", "CONTRAST", "COLOUR"):
        monkeypatch.setattr(self_supervised, name, 0.0)
    monkeypatch.setattr(self_supervised, "SCALE", 1.0)
    monkeypatch.setattr(self_supervised, "_blurred", lambda views: views)
    images = torch.from_numpy(cache.batch([0]))
    windows = images[0].float().unfold(0, 32, 1).unfold(1, 32, 1).permute(0, 1, 3, 4, 2).flatten(0, 1)
    mirrored = 0
    for view in draw_views(images, 32, 10, step_generator(0, "test", 0))[0]:
        apart = [(windows - v).abs().amax((1, 2, 3)).min() for v in (view, view.flip(1))]
        assert min(apart) < 0.01
        mirrored += int(apart[1] < apart[0])
    assert 0 < mirrored < 10


def test_the_blur_keeps_what_is_even_and_takes_a_checkerboard():
    even = torch.full((2, 3, 8, 8), 7.0)
    torch.testing.assert_close(self_supervised._blurred(even), even)
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(2, 3, 8, 8)
    torch.testing.assert_close(self_supervised._blurred(board), torch.full((2, 3, 8, 8), 0.5))


def test_losses_are_those_of_the_equations():
    torch.manual_seed(0)
    first, second = torch.randn(2, 40, 6, 1, 1) * 0.5
    second[:, 0] = 4 * first[:, 1]
    agreement, variance, compact = losses(first, second)
    a, b = (z.flatten(1).double().numpy() for z in (first, second))
    assert agreement.item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
    hinge = np.mean([np.maximum(0, 1 - z.std(0, ddof=1)) for z in (a, b)])
    assert variance.item() == pytest.approx(hinge, abs=1e-3)
    assert compact.item() == pytest.approx((compactness(first) + compactness(second)).item() / 2)
    # A constant agrees with itself, and pays for it.
    constant = torch.ones(40, 6, 1, 1)
    assert losses(constant, constant)[1].item() > 0.98


def train(cache, folder, reporter, monkeypatch):
    """A Local-Net after 40 small steps, its features of views before and after, and its log."""
    monkeypatch.setattr(self_supervised, "PATCHES", 4)
    student = random_student(32, 0)
    whiten(student, cache, np.arange(12))
    before = features(student.local, cache)
    photographs = Photographs(cache, np.arange(12), np.arange(12, 16))
    stage = self_supervised_stage("local-32", student, photographs, steps=40, seed=0, bf16=False)
    log = Log(folder / "log.csv")
    run_stage(stage, folder, log, reporter.step, 60.0)
    return before, features(student.local, cache), log.rows


def test_it_learns_that_views_of_a_patch_agree(cache, tmp_path, reporter, monkeypatch):
    before, after, rows = train(cache, tmp_path, reporter, monkeypatch)
    assert relation(*after) < 0.5 < 0.6 < relation(*before)
    assert after[0].std(0).mean() > 0.5
    assert float(rows[-1]["held_out_loss"]) < float(rows[0]["held_out_loss"])
    assert float(rows[-1]["r2"]) > max(float(rows[0]["r2"]), 0.4)


def test_without_the_variance_term_it_collapses(cache, tmp_path, reporter, monkeypatch):
    monkeypatch.setattr(self_supervised, "LAMBDA_V", 0.0)
    _, after, _ = train(cache, tmp_path, reporter, monkeypatch)
    assert after[0].std(0).mean() < 0.25


def test_the_file_is_whitened_and_trains_a_model(photographs, cache, parts, tmp_path, reporter, small):
    out, work = tmp_path / "out.safetensors", tmp_path / "work"
    said = make(photographs, out, work, reporter)
    assert not work.exists()
    notes = read_notes(out)
    assert notes["teacher"] is None and notes["photographs"] == 16 and notes["steps"] == 3
    assert f"{notes['held_out_loss']:.3f}" in said
    student = Student.load(out)
    with torch.no_grad():
        z = student.local(to_input(torch.from_numpy(cache.batch(range(16)))), 8)
    assert z.mean((0, 2, 3)).abs().max() < 0.2 and z.square().mean() < 1.1
    images = list_images(parts / "train")
    config = Config(**{**small, "finetune_steps": 0})
    model = fit(images, tmp_path / "run", config, reporter=reporter, device="cpu", local_nets=[out])
    assert torch.equal(model.scales[0].local.conv1.weight, student.local.conv1.weight)


def test_random_weights_whiten_too(cache):
    student = random_student(64, 0)
    whiten(student, cache, np.arange(16))
    with torch.no_grad():
        z = student.local(to_input(torch.from_numpy(cache.batch(range(16)))), 8)
    assert z.isfinite().all() and 0.3 < z.square().mean() < 1.1
    assert not any(p.any() for p in student.decoder.parameters())
    assert not torch.equal(random_student(64, 1).local.conv1.weight, random_student(64, 0).local.conv1.weight)


def test_an_interrupted_one_resumes_to_the_same_file_and_log(photographs, tmp_path, reporter, monkeypatch):
    logs = []
    monkeypatch.setattr(self_supervised.shutil, "rmtree", lambda work: logs.append(work / "log.csv"))
    whole, out = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    make(photographs, whole, tmp_path / "first", reporter)

    def ask(stage, done):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    work = tmp_path / "second"
    step, reporter.step = reporter.step, ask
    with pytest.raises(KeyboardInterrupt):
        make(photographs, out, work, reporter)
    reporter.step = step
    assert (work / "local-32.safetensors").exists() and not out.exists()
    make(photographs, out, work, reporter)
    assert out.read_bytes() == whole.read_bytes()
    columns = ("step", "loss", "agreement", "variance", "compactness", "held_out_loss", "r2")
    first, second = ([[row[c] for c in columns] for row in csv.DictReader(path.open())] for path in logs)
    assert len(first) == 3 and first == second and all(all(row) for row in first)


def test_it_goes_on_with_what_it_was_begun_with(photographs, tmp_path, reporter):
    class Stop(Exception):
        pass

    def stop(stage, done):
        raise Stop

    reporter.step, work, out = stop, tmp_path / "work", tmp_path / "out.safetensors"
    with pytest.raises(Stop):
        make(photographs, out, work, reporter)
    for change, words in (
        ({"paths": [*photographs[1:], photographs[1]]}, "other photographs"),
        ({"patch": 64}, "another student"),
        ({"steps": 4}, "another number of steps"),
        ({"seed": 1}, "another seed"),
    ):
        call = {"paths": photographs, "out": out, "work": work, "reporter": reporter} | change
        with pytest.raises(UserError, match=f"work: was begun with {words}; give the same"):
            make(**call)
    with pytest.raises(UserError, match="at least 16"):
        make(photographs[:15], out, tmp_path / "few", reporter)
    teacher = distillation.Teacher().eval().requires_grad_(False)
    with pytest.raises(UserError, match="another teacher"):
        distillation.distill_local(
            photographs, out, work, 32, teacher, steps=3, seed=0, reporter=reporter, device="cpu"
        )
