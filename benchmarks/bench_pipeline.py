"""The default model on one image, beside what a user could run instead.

Run: pytest benchmarks/bench_pipeline.py. One image of 256x256 in memory. ``ours`` is all that
``Glance.score`` does: both nets at both patch sizes, scores, maps. ``EfficientAD-S`` is the pass of its three
networks alone, channels-last; ``PatchCore`` is its ResNet-18 through layer 3, the nearest neighbour in a 1 %
coreset of 213 images, and the map. All in one precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.bench_engines import efficient_ad
from glance_fast.config import Config
from glance_fast.experiments.baselines.patchcore import SHARE, PatchCore
from glance_fast.model import Glance
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import TEACHER_FEATURES

SIZE, NORMAL = 256, 213
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
ROLES = {"EfficientAD-S": "baseline"}


def runs(precision: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model, other = Glance(Config()), efficient_ad()
    patchcore = PatchCore(builtin_teacher())
    # Times do not depend on which places are kept, only on how many.
    places = round(SHARE * NORMAL * (SIZE // 8) ** 2)
    patchcore.bank = torch.randn(places, TEACHER_FEATURES, generator=torch.Generator().manual_seed(0))
    x = to_input(torch.from_numpy(IMAGE[None])).contiguous(memory_format=torch.channels_last)

    def autocast(function: Callable[[], object]) -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return function()

    return {
        "ours": lambda: model.score([IMAGE], precision=precision),
        "EfficientAD-S": lambda: autocast(lambda: other(x)),
        "PatchCore": lambda: autocast(lambda: patchcore.maps(IMAGE[None])),
    }


@pytest.fixture(scope="module")
def prepared() -> dict:
    """Versions by precision; made once."""
    return {}


@pytest.mark.parametrize("version", ["ours", "EfficientAD-S", "PatchCore"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pipeline(benchmark, prepared, precision, version):
    if precision not in prepared:
        prepared[precision] = runs(precision)
    model = Glance(Config())
    if precision == "bf16" and model.chosen_precision("bf16") != "bf16":
        pytest.skip("needs a processor with bfloat16 instructions")
    patches = " + ".join(str(len(scale.grid)) for scale in model.scales)
    benchmark.group = f"the default model on an image of {SIZE}x{SIZE}, {patches} patches, {precision}"
    benchmark.extra_info.update(version=version, role=ROLES.get(version, ""))
    benchmark.pedantic(prepared[precision][version], rounds=15, warmup_rounds=3)


def test_baselines_do_what_they_are_timed_for():
    versions = runs("fp32")
    assert versions["PatchCore"]().shape == (1, SIZE, SIZE)
    assert [tuple(out.shape[1:]) for out in versions["EfficientAD-S"]()] == [
        (384, 56, 56),
        (768, 56, 56),
        (384, 56, 56),
    ]
    assert versions["ours"]().maps.shape == (1, SIZE, SIZE)
