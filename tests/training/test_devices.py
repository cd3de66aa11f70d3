"""What trains goes to the device that was picked, and what it is trained on follows."""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from samples import MASKED, SMALL
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.folders import list_images
from glance_fast.data.layouts import normal_images
from glance_fast.jobs import demo
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.global_start import GlobalStart
from glance_fast.training import distill, fit, pretrain
from glance_fast.training.symmetry import Symmetry

CUDA = torch.device("cuda")


@pytest.fixture
def moved(monkeypatch):
    """How many of each kind are moved to a CUDA device, where there seems to be one: none is really moved."""
    found = Counter()

    def pretended(to):
        def pretend(self, *arguments, **more):
            left = [a for a in arguments if not (isinstance(a, torch.device) and a.type == "cuda")]
            if len(left) < len(arguments):
                found[type(self).__name__] += 1
                if not left and not more:
                    return self
            return to(self, *left, **more)

        return pretend

    for kind in (nn.Module, Tensor):
        monkeypatch.setattr(kind, "to", pretended(kind.to))
    for module in (fit, distill):
        monkeypatch.setattr(module, "pick_device", lambda name: {"auto": CUDA}[name])
        monkeypatch.setattr(module, "has_bf16", lambda device: {CUDA: False}[device])
    return found


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return list_images(tmp_path)


@pytest.mark.parametrize(
    ("kind", "parts"), [("local-32", {"Student", "Teacher"}), ("global", {"GlobalStart"})]
)
def test_distillation(moved, photographs, tmp_path, reporter, kind, parts):
    places = photographs, tmp_path / "out", tmp_path / "work"
    how = {"steps": 1, "seed": 0, "reporter": reporter}
    if kind == "global":
        distill.distill_global_start(*places, **how)
    else:
        distill.distill_local(*places, 32, builtin_teacher(), **how)
    assert parts <= moved.keys()


def test_where_global_nets_start_all_follows_its_device(moved, photographs, monkeypatch):
    """Local-Nets, patches, images and holes go where the net that learns is."""
    start, kinds = GlobalStart((32, 64)), []
    monkeypatch.setattr(GlobalStart, "parameters", lambda self: iter([_OnCuda()]))
    monkeypatch.setattr(torch, "autocast", lambda kind, *more, **how: kinds.append(kind) or nullcontext())
    with ImageCache(photographs, (256, 256)) as cache:
        options = {"steps": 1, "symmetry": Symmetry(False, False), "seed": 0, "bf16": False}
        stage = pretrain.global_start_stage(start, cache, np.arange(14), np.arange(14, 16), **options)
        assert moved == {"LocalNet": 2}
        stage.step(0)
    assert moved["Tensor"] == 3 and kinds[0] == "cuda"


@pytest.mark.parametrize("settings", [SMALL, MASKED], ids=["surround", "masked"])
def test_training(moved, parts, tmp_path, reporter, settings):
    fit.fit(normal_images(parts), tmp_path / "run", Config(**settings), reporter=reporter)
    assert {"Glance", "LocalNet", "Teacher"} <= moved.keys()


def test_the_demo(tmp_path, reporter, monkeypatch):
    def stop(*arguments, device, **more):
        raise InterruptedError(device)

    monkeypatch.setattr(demo, "fit", stop)
    counts = {"train": 8, "good": 2, "per_defect": 1}
    for given, reached in (({}, "auto"), ({"device": CUDA}, "cuda")):
        with pytest.raises(InterruptedError, match=reached):
            demo.run_demo(tmp_path / reached, reporter, **given, **counts)


class _OnCuda:
    device = CUDA
