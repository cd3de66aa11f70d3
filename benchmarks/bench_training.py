"""A step of Global-Net's training: many holes an image beside one. Run: pytest benchmarks/bench_training.py.

``ours`` is a step as ``glance-fast train`` takes it, patches of 32 pixels: 12 images of 256x256 with 14 of
them masked in each, both nets, both losses, backward and AdamW. ``one hole an image`` trains the same net by
the reference's operations, every mask a convolved tensor, and takes as many steps as it needs for as many
patches. Both in the precision that training has here, channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16
from glance_fast.kernels.partial_conv.reference import inside, partial_conv2d_reference
from glance_fast.model import Glance
from glance_fast.nets.masked import MaskedNet, Reading, read_places
from glance_fast.training.loop import optimizer_of, take_step
from glance_fast.training.masked import global_stage
from glance_fast.training.symmetry import Symmetry

IMAGES, ONE_HOLE = 24, "one hole an image"


class ByDefinition(MaskedNet):
    """Global-Net by the reference's operations."""

    def forward(self, x: Tensor, holes: Tensor) -> Tensor:
        """z_g as ``MaskedNet`` gives it."""
        mask = (~inside(holes, *x.shape[2:])).to(x.dtype)
        before = y = x * mask
        read = []
        for module, residual, kept in self.layers():
            z, mask = partial_conv2d_reference(y, module.weight, None, mask, module.stride, module.padding)
            z = module.norm(z) * mask
            before, y = y, F.relu(z + before if residual else z)
            if kept:
                read.append(Reading(y))
        pooled = y.float().sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)
        return self.predict(self.read(read, pooled[:, None], read_places(self.patch, holes, x.shape[2:])))


def stepper(cache: ImageCache, holes: int | None, net: type[MaskedNet]) -> tuple[Callable[[], object], int]:
    """A function that takes the next step, and the patches that it trains on."""
    config = Config(net="pyramid", patch=32, stride=8, holes=holes, pretrained=False)
    scale = Glance(config).scales[0]
    scale.global_net.__class__ = net
    indices = np.arange(len(cache))
    bf16 = has_bf16(torch.device("cpu"))
    stage = global_stage(scale, 0, config, cache, indices, indices[:2], Symmetry(False, False), bf16)
    for module in stage.modules.values():
        module.train()
    optimizer = optimizer_of(stage)
    numbers = iter(range(config.steps))
    return lambda: take_step(stage, optimizer, next(numbers)), config.batch * config.holes_of(0)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], object]]]:
    """What is timed, by name; each trains on the same number of patches."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths: list[Path] = [folder / f"{i}.png" for i in range(IMAGES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    with ImageCache(paths, (256, 256)) as cache:
        ours, many = stepper(cache, None, MaskedNet)
        other, few = stepper(cache, 1, ByDefinition)
        yield {"ours": ours, ONE_HOLE: lambda: [other() for _ in range(many // few)]}


def test_both_train_the_same_net():
    torch.manual_seed(0)
    net, x = MaskedNet(32, (8,) * 4).train(), torch.randn(4, 3, 128, 128)
    holes = torch.tensor([[[16, 24, 48, 56]]]).expand(4, -1, -1)
    found = net(x, holes)
    net.__class__ = ByDefinition
    torch.testing.assert_close(net(x, holes), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("version", ["ours", ONE_HOLE])
def test_training(benchmark, versions, version):
    benchmark.group = "training on 168 patches of 32, images of 256x256"
    benchmark.extra_info.update(version=version, role="" if version == "ours" else "baseline")
    benchmark.pedantic(versions[version], rounds=9 if version == "ours" else 3, warmup_rounds=1)
