"""The whole pass as a GPU runs it: by Triton's kernels, and without waiting for the device in between."""

from __future__ import annotations

import contextlib
import traceback

import numpy as np
import pytest
import torch

# Imported first while functions of torch are replaced below, it would keep the replacements.
import torch._dynamo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glance_fast.config import Config
from glance_fast.engines import dense
from glance_fast.kernels import dispatch, idw, partial_conv, patch_score, surround_conv, window_conv
from glance_fast.maps import combine
from glance_fast.model import Glance


def small(net: str = "pyramid", **settings) -> Glance:
    model = Glance(
        Config(net=net, image_size=(48, 64), patch=32, stride=16, width=8, pretrained=False, **settings)
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model


@pytest.fixture
def kernels(monkeypatch):
    """Triton's kernels for tensors on the CPU, in the interpreter; which of them were asked for."""
    asked = []

    def choose(backend, device):
        asked.append(backend)
        return dispatch.choose_backend("triton" if backend == "auto" else backend, device)

    for module in (idw, partial_conv, patch_score, surround_conv, window_conv):
        monkeypatch.setattr(module, "choose_backend", choose)
    return asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
# Lanes beyond the centres, which are masked: NumPy sees what a GPU does not say.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("engine", ["dense", "grouped"])
def test_all_of_a_pass_by_tritons_kernels(kernels, monkeypatch, engine):
    model = small()
    images = list(np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8))
    by_triton = model.score(images, engine)
    assert set(kernels) == {"auto"} and len(kernels) > 10
    monkeypatch.undo()
    expected = model.score(images, "patchwise" if engine == "dense" else engine)
    np.testing.assert_allclose(by_triton.patch_scores, expected.patch_scores, rtol=1e-4)
    np.testing.assert_allclose(by_triton.maps, expected.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_triton.scores, expected.scores, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_all_of_a_pass_over_features_by_tritons_kernels(kernels, monkeypatch):
    model = small("surround")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8))
    by_triton = model.score(images)
    # The surrounding, the scores, and a map of each of the two.
    assert kernels == ["auto"] * 4
    monkeypatch.undo()
    expected = model.score(images)
    np.testing.assert_allclose(by_triton.patch_scores, expected.patch_scores, rtol=1e-4)
    np.testing.assert_allclose(by_triton.maps, expected.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_triton.scores, expected.scores, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("net", "engine"), [("pyramid", "patchwise"), ("surround", "auto")])
def test_a_gpu_gives_the_cpus_numbers(net, engine):
    model = small(net)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8))
    expected = model.score(images, engine)
    found = model.to("cuda").score(images)
    # tf32 in the convolutions.
    np.testing.assert_allclose(found.patch_scores, expected.patch_scores, rtol=1e-2)


class Watch(TorchDispatchMode):
    """Notes every operation that a tensor of the host takes part in: a copy to or from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cpu" for t in tensors):
            ours = [f for f in traceback.format_stack() if "glance_fast" in f or "kernels" in f]
            self.copies.append(f"{operation}: {ours[-1] if ours else ''}")
        return out


def windows(source, unmasked, weight, bias, holes, images, origins, size, *more, **options):
    """Of the shape of ``window_conv2d_inner``'s, on the device."""
    out = weight.new_empty(len(images), len(weight), *size)
    return out.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("net", ["pyramid", "surround"])
@pytest.mark.parametrize("smoothing", [0.0, 4.0])
def test_the_device_is_not_waited_for_within_a_batch(monkeypatch, smoothing, net):
    # Meta tensors stand for a device's: whoever wanted to read one would raise.
    monkeypatch.setattr(dense, "window_conv2d_inner", windows)
    monkeypatch.setitem(dense.USEFUL, "meta", 1 << 20)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    model = small(net, smoothing=smoothing)
    # All neighbours: the table of some is made once, and where maps are made of meta tensors, never kept.
    monkeypatch.setattr("glance_fast.maps.idw_map", lambda s, y, x, h, w, **k: s.new_empty(len(s), h, w))
    model.to("meta")
    images = torch.empty(2, 48, 64, 3, dtype=torch.uint8, device="meta")

    def score():
        (scale,), statistics = model.scales, model.calibration.scales
        features = scale.features(images, "dense" if net == "pyramid" else "auto", 1 << 16)
        scores = [scale.patch_scores(*features, statistics[0])]
        return combine(model.head_maps(scores), model.config, model.calibration)

    with torch.no_grad():
        score()  # plans and matrices are made
        with Watch() as watch:
            maps, scores = score()
    assert maps.device.type == "meta" and (maps.shape, scores.shape) == ((2, 48, 64), (2,))
    assert not watch.copies, "\n".join(watch.copies)
