"""Distillation: losses, the files it writes, resume, the assistant."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.files import read_notes
from glance_fast.data.folders import list_images
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.nets.global_start import load_global_start
from glance_fast.nets.student import Student, compactness
from glance_fast.nets.teacher import ASSISTANT_INNER, Teacher, load_assistant, load_teacher
from glance_fast.training.distill import distill


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


def make(photographs, tmp_path, teacher, reporter, kind="local-32", steps=3):
    out = tmp_path / f"{kind}.safetensors"
    said = distill(photographs, out, tmp_path / "work", teacher, kind, steps=steps, seed=0, reporter=reporter)
    assert not (tmp_path / "work").exists()
    return out, said


def test_a_local_net_is_written_with_its_figures(photographs, tmp_path, teacher, reporter):
    out, said = make(photographs, tmp_path, teacher, reporter)
    assert Student.load(out).local.patch == 32
    notes = read_notes(out)
    assert notes["photographs"] == 16 and notes["steps"] == 3
    assert f"{notes['held_out_loss']:.3f}" in said


def test_the_assistant_is_written_in_half_precision(photographs, tmp_path, teacher, reporter):
    out, _ = make(photographs, tmp_path, teacher, reporter, "assistant", 2)
    assert out.stat().st_size <= 4e6
    x = torch.randn(1, 3, 64, 64)
    second, third = load_assistant(out)(x)
    assert second.shape == (1, 128, 8, 8) and third.shape == (1, 256, 4, 4)


def test_global_nets_start_is_written_without_a_teacher(photographs, tmp_path, reporter):
    out, said = make(photographs, tmp_path, None, reporter, "global", 2)
    net = Glance(Config()).scales[1].global_net
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
        distill(photographs, out, work, teacher, "local-32", steps=3, seed=0, reporter=reporter)
    reporter.step = step
    assert (work / "local-32.safetensors").exists() and not out.exists()
    distill(photographs, out, work, teacher, "local-32", steps=3, seed=0, reporter=reporter)
    assert out.read_bytes() == whole.read_bytes()


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


def test_the_assistant_starts_near_its_teacher(teacher):
    torch.manual_seed(1)
    assistant = Teacher(ASSISTANT_INNER)
    x = torch.randn(2, 3, 96, 96)
    fresh = assistant(x)
    assistant.start_from(teacher)
    started, wanted = assistant(x), teacher(x)
    assert torch.allclose(started[0], wanted[0], atol=1e-5)
    assert (started[1] - wanted[1]).square().mean() < (fresh[1] - wanted[1]).square().mean()


def test_distils_from_the_real_teacher(photographs, tmp_path, reporter):
    if "GLANCE_FAST_WEIGHTS" not in os.environ:
        pytest.skip("GLANCE_FAST_WEIGHTS is not set: it names the folder of the ResNet-18")
    folder = Path(os.environ["GLANCE_FAST_WEIGHTS"])
    real = load_teacher(folder / "resnet18-imagenet-through-layer3-bn-folded.safetensors")
    out, _ = make(photographs, tmp_path, real, reporter, "local-64", 2)
    assert Student.load(out).local.patch == 64
