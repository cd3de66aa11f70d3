"""Whole images by each engine, and by what a user could run instead. Run: pytest benchmarks/bench_engines.py.

One image of 256x256, one patch size: 841 patches of 32 pixels at stride 8, or 225 at stride 16.
``definition`` is the paper's procedure with the reference's operations, a pass a patch in batches of 8,
channels-last, BatchNorm folded, in float32: Global-Net alone; ``definition, both nets`` runs Local-Net on
every patch too. The engines run all that scoring does: both nets, scores, maps. ``EfficientAD-S`` is the pass
of its three networks (teacher, student, autoencoder).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.engines.dense import global_features
from glance_fast.kernels.partial_conv.reference import inside, partial_conv2d_reference
from glance_fast.model import Glance
from glance_fast.nets.masked import MaskedNet, Reading, read_places
from glance_fast.nets.preprocess import to_input
from glance_fast.training.sampling import crop

BATCH, SIZE, PATCH = 8, 256, 32
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
BOTH = "definition, both nets"
ROUNDS = {"definition": 3, BOTH: 2, "patchwise": 2}
ROLES = {"definition": "baseline"}


def by_definition(net: MaskedNet, x: Tensor, holes: Tensor) -> Tensor:
    """Global features of an image [1, 3, H, W], a pass a hole [P, 4], every mask a convolved tensor."""
    layers = [(layer, *layer.module.folded()) for layer in net.layers()]
    layers = [(a, w.contiguous(memory_format=torch.channels_last), b) for a, w, b in layers]
    found = []
    for part in holes.split(BATCH):
        y, mask = x.expand(len(part), -1, -1, -1), (~inside(part[:, None], *x.shape[2:])).float()
        before, read = y, []
        for (module, residual, kept), weight, bias in layers:
            z, mask = partial_conv2d_reference(y, weight, bias, mask, module.stride, module.padding)
            before, y = y, F.relu(z + before if residual else z)
            if kept:
                read.append(Reading(y))
        pooled = y.sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)
        places = read_places(net.patch, part[:, None], (x.shape[2], x.shape[3]))
        found.append(net.predict(net.read(read, pooled[:, None], places))[:, 0])
    return torch.cat(found)


def efficient_ad() -> Callable[[Tensor], list[Tensor]]:
    """The three networks of EfficientAD-S as its paper tables them."""

    def description(outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 128, 4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(128, 256, 4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, outputs, 4),
        )  # fmt: skip

    encoder = [nn.Conv2d(3, 32, 4, 2, 1), nn.Conv2d(32, 32, 4, 2, 1), nn.Conv2d(32, 64, 4, 2, 1)]
    encoder += [nn.Conv2d(64, 64, 4, 2, 1) for _ in range(2)]
    decoder = []
    for size in (3, 8, 15, 32, 63, 127):
        decoder += [nn.Upsample(size, mode="bilinear"), nn.Conv2d(64, 64, 4, 1, 2), nn.ReLU()]
    decoder += [
        nn.Upsample(56, mode="bilinear"),
        nn.Conv2d(64, 64, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(64, 384, 3, 1, 1),
    ]
    steps = [step for conv in encoder for step in (conv, nn.ReLU())]
    autoencoder = nn.Sequential(*steps, nn.Conv2d(64, 64, 8), *decoder)
    nets = [
        n.eval().to(memory_format=torch.channels_last)
        for n in (description(384), description(768), autoencoder)
    ]
    return lambda x: [net(x) for net in nets]


def runs(stride: int, precision: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model = Glance(Config(net="pyramid", image_size=SIZE, patch=PATCH, stride=stride))
    scale = model.scales[0]
    holes = torch.from_numpy(scale.grid.holes)
    x = to_input(torch.from_numpy(IMAGE[None])).contiguous(memory_format=torch.channels_last)
    other = efficient_ad()

    def autocast(function: Callable[[Tensor], object]) -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return function(x)

    def defined() -> Tensor:
        with torch.inference_mode():
            return by_definition(scale.global_net, x, holes)

    rows = x.permute(0, 2, 3, 1)

    def both() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            found = [
                scale.local(crop(rows, part[None]).contiguous(memory_format=torch.channels_last))
                for part in holes.split(BATCH)
            ]
            return torch.cat(found)[:, :, 0, 0], defined()

    engines = {name: lambda name=name: model.score([IMAGE], name, precision) for name in ("dense", "grouped")}
    engines["patchwise"] = lambda: model.score([IMAGE], "patchwise", precision)
    return {**engines, "definition": defined, BOTH: both, "EfficientAD-S": lambda: autocast(other)}


def test_dense_equals_the_definition():
    versions = runs(16, "fp32")
    exact = torch.from_numpy(versions["patchwise"]().patch_scores)
    dense = torch.from_numpy(versions["dense"]().patch_scores)
    assert (dense - exact).abs().max() <= 1e-4 * exact.abs().max()
    scale = Glance(Config(net="pyramid", image_size=SIZE, patch=PATCH, stride=16)).scales[0]
    x = to_input(torch.from_numpy(IMAGE[None]))
    with torch.inference_mode():
        defined = by_definition(scale.global_net, x, torch.from_numpy(scale.grid.holes))
        found = global_features(scale.global_net, x, scale.grid)[0]
    assert (found - defined).abs().max() <= 1e-4 * defined.abs().max()


@pytest.fixture(scope="module")
def prepared() -> dict:
    """Versions by stride and precision; made once, for each takes an untrained model."""
    return {}


@pytest.mark.parametrize("version", ["dense", "grouped", "patchwise", "definition", BOTH, "EfficientAD-S"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stride", [8, 16])
def test_engines(benchmark, prepared, stride, precision, version):
    if (stride, precision) not in prepared:
        prepared[stride, precision] = runs(stride, precision)
    patches = ((SIZE - PATCH) // stride + 1) ** 2
    benchmark.group = f"an image of {SIZE}x{SIZE}, {patches} patches, {precision}"
    benchmark.extra_info.update(
        version="ours" if version == "dense" else version, role=ROLES.get(version, "")
    )
    run = prepared[stride, precision][version]
    benchmark.pedantic(run, rounds=ROUNDS.get(version, 7), warmup_rounds=1)
