"""score_patches against the reference's sequence of operations, eager and under torch.compile.

Run: pytest benchmarks/bench_patch_score.py. 841 patches of 128 features, a perceptron of 128 hidden units, 1,
8 and 16 images; no whitening, one matrix, and one for each position in half precision as the calibrated
blend stores it. Inputs rotate through three sets, so that no cache holds the matrices for the next run.
"""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch

from glance_fast.kernels.patch_score import DistortionWeights, score_patches
from glance_fast.kernels.patch_score.reference import score_patches_reference

PATCHES, FEATURES, UNITS = 841, 128, 128
SETS, ROUNDS = 3, 15
SCALES = {"inconsistency_scale": (1.0, 0.5), "distortion_scale": (0.3, 0.2), "lambda_s": 0.8}
SHAPES = {"no whitening": None, "one matrix": (), "by position": (PATCHES,)}


def make_inputs(images, form, seed):
    """Keyword arguments of score_patches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return torch.randn(shape, generator=generator) * scale

    first = [draw(UNITS, FEATURES, scale=FEATURES**-0.5) for _ in range(3)]
    rest = draw(UNITS), draw(UNITS, UNITS, scale=UNITS**-0.5), draw(UNITS), draw(UNITS) * 0.1, draw()
    matrices = None
    if SHAPES[form] is not None:
        matrices = draw(*SHAPES[form], FEATURES, FEATURES, scale=FEATURES**-0.5)
        matrices = matrices.half() if form == "by position" else matrices
    return {
        "local": draw(images, PATCHES, FEATURES),
        "global_": draw(images, PATCHES, FEATURES),
        "distortion": DistortionWeights(*first, *rest),
        "mean": draw(PATCHES, FEATURES),
        "whitening": matrices,
    }


def ours(**inputs):
    return score_patches(**inputs, **SCALES)


def eager(**inputs):
    return score_patches(**inputs, **SCALES, backend="reference")


compiled_reference = torch.compile(score_patches_reference, dynamic=False)


def compiled(local, global_, distortion, mean, whitening):
    return compiled_reference(local, global_, mean, whitening, distortion, *SCALES.values())


RUNS = {"ours": ours, "eager": eager, "compiled": compiled}


@pytest.mark.parametrize("version", RUNS)
@pytest.mark.parametrize("images", [1, 8, 16])
@pytest.mark.parametrize("form", SHAPES)
def test_score_patches(benchmark, form, images, version):
    if version == "compiled" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler here")
    benchmark.group = f"score_patches, {form}, {images} x {PATCHES} patches"
    benchmark.extra_info.update(version=version, role="baseline" if version == "eager" else "")
    run = RUNS[version]
    sets = [make_inputs(images, form, seed) for seed in range(SETS)]
    with torch.inference_mode():
        for got, expected in zip(run(**sets[0]), eager(**sets[0]), strict=True):
            assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5
        rotation = itertools.cycle(sets)
        benchmark.pedantic(run, setup=lambda: ((), next(rotation)), rounds=ROUNDS, warmup_rounds=SETS)
