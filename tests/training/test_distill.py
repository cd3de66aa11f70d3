"""Distillation: losses, the files it writes, resume."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import read_notes
from glance_fast.data.folders import list_images
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.nets.builtin import builtin_local_net, builtin_teacher
from glance_fast.nets.global_start import load_global_start
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import Student, compactness
from glance_fast.nets.teacher import Teacher, load_teacher
from glance_fast.training import distill as distillation
from glance_fast.training.distill import Photographs, local_stage

distill_local = partial(distillation.distill_local, device="cpu")
distill_global_start = partial(distillation.distill_global_start, device="cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        coarse.resize((80, 70)).save(folder / f"{i}.jpg")
    return list_images(folder)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher().eval().requires_grad_(False)


def make(photographs, tmp_path, teacher, reporter, patch=32, steps=3):
    out, work = tmp_path / f"local-{patch}.safetensors", tmp_path / "work"
    said = distill_local(photographs, out, work, patch, teacher, steps=steps, seed=0, reporter=reporter)
    assert not (tmp_path / "work").exists()
    return out, said


def test_a_local_net_is_written_with_its_figures(photographs, tmp_path, teacher, reporter):
    out, said = make(photographs, tmp_path, teacher, reporter)
    assert Student.load(out).local.patch == 32
    notes = read_notes(out)
    assert notes["photographs"] == 16 and notes["steps"] == 3
    assert f"{notes['held_out_loss']:.3f}" in said


def test_global_nets_start_is_written_without_a_teacher(photographs, tmp_path, reporter):
    out, work = tmp_path / "global.safetensors", tmp_path / "work"
    said = distill_global_start(photographs, out, work, steps=2, seed=0, reporter=reporter)
    assert not work.exists()
    net = Glance(Config(net="pyramid")).scales[1].global_net
    net.load_state_dict(load_global_start(out, 64))
    assert read_notes(out)["steps"] == 2 and "held-out loss" in said


def test_an_interrupted_distillation_resumes_to_the_same_file(photographs, tmp_path, teacher, reporter):
    whole, _ = make(photographs, tmp_path / "whole", teacher, reporter)

    def ask(stage, done):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    work, out = tmp_path / "work", tmp_path / "parts.safetensors"
    step, reporter.step = reporter.step, ask
    with pytest.raises(KeyboardInterrupt):
        distill_local(photographs, out, work, 32, teacher, steps=3, seed=0, reporter=reporter)
    reporter.step = step
    assert (work / "local-32.safetensors").exists() and not out.exists()
    distill_local(photographs, out, work, 32, teacher, steps=3, seed=0, reporter=reporter)
    assert out.read_bytes() == whole.read_bytes()


def test_a_distillation_goes_on_with_what_it_was_begun_with(photographs, tmp_path, teacher, reporter):
    class Stop(Exception):
        pass

    def stop(stage, done):
        raise Stop

    reporter.step, work, out = stop, tmp_path / "work", tmp_path / "out.safetensors"
    torch.manual_seed(1)
    other = Teacher().eval().requires_grad_(False)

    def run(paths=photographs, patch=32, teacher=teacher, steps=3, seed=0):
        distill_local(paths, out, work, patch, teacher, steps=steps, seed=seed, reporter=reporter)

    with pytest.raises(Stop):
        run()
    for change, words in (
        ({"paths": [*photographs[1:], photographs[1]]}, "other photographs"),
        ({"patch": 64}, "another student"),
        ({"teacher": other}, "another teacher"),
        ({"steps": 4}, "another number of steps"),
        ({"seed": 1}, "another seed"),
    ):
        with pytest.raises(
            UserError, match=f"work: was begun with {words}; give the same, or `overwrite=True`"
        ):
            run(**change)
    with pytest.raises(UserError, match="another student"):
        distill_global_start(photographs, out, work, steps=3, seed=0, reporter=reporter)
    with pytest.raises(Stop):
        run()


def test_too_few_photographs_are_refused(photographs, tmp_path, teacher, reporter):
    with pytest.raises(UserError, match="at least 16"):
        make(photographs[:15], tmp_path, teacher, reporter)


def test_compactness_is_the_mean_squared_correlation_off_the_diagonal():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 6, 7)
    features[:, 1] = 3 * features[:, 0] + 1
    c = np.corrcoef(features.transpose(0, 1).flatten(1).numpy())
    expected = np.mean([c[i, j] ** 2 for i in range(5) for j in range(5) if i != j])
    assert compactness(features).item() == pytest.approx(expected, rel=1e-5)
    assert compactness(features).item() > 2 / 20


def test_r2_counts_what_the_photographs_vary_by(photographs, teacher):
    # A decoder that gives the mean of the target explains nothing of it, whatever its units are.
    with ImageCache(photographs, (64, 64)) as cache:
        student = builtin_local_net(32)
        images = torch.from_numpy(cache.batch(range(16)))
        student.measure_teacher(teacher, images)
        student.std *= 3
        with torch.no_grad():
            mean = student.target(teacher, to_input(images)).transpose(0, 1).flatten(1).mean(1)
            student.decoder.weight.zero_()
            student.decoder.bias.copy_(mean)
        stage = local_stage(
            "local", student, teacher, Photographs(cache, np.arange(6), np.arange(16)),
            steps=1, seed=0, bf16=False,
        )  # fmt: skip
        with torch.inference_mode():
            assert abs(stage.validate()["r2"]) < 0.02


def test_a_local_net_learns_from_the_built_in_teacher(photographs, tmp_path, reporter):
    out, said = make(photographs, tmp_path, builtin_teacher(), reporter, 64, 2)
    assert Student.load(out).local.patch == 64 and "held-out loss" in said


def test_distils_from_the_real_teacher(photographs, tmp_path, reporter):
    if "GLANCE_FAST_WEIGHTS" not in os.environ:
        pytest.skip("GLANCE_FAST_WEIGHTS is not set: it names the folder of the ResNet-18")
    folder = Path(os.environ["GLANCE_FAST_WEIGHTS"])
    real = load_teacher(folder / "resnet18-imagenet-through-layer3-bn-folded.safetensors")
    out, _ = make(photographs, tmp_path, real, reporter, 64, 2)
    assert Student.load(out).local.patch == 64
