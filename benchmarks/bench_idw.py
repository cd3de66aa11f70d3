"""idw_map against what one would write with SciPy or NumPy. Run: pytest benchmarks/bench_idw.py.

16 maps of 29 x 29 centres to 256 x 256 pixels, 8 and (the default) 16 neighbours, and all. Work counted: the
whole call, as a user makes it. The tree of the SciPy version is built inside and asked by as many threads as
ours has; the table of ours is kept, and built inside for ``a new geometry``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from glance_fast.kernels.idw import cpu, idw_map

BATCH, GRID, SIZE = 16, 29, 256
PIXELS_A_STEP = 4096
CENTERS = np.arange(GRID) * 8 + 15.5
SCORES = np.random.default_rng(0).random((BATCH, GRID, GRID)).astype(np.float32)


def points(rows, columns):
    """Coordinates [rows * columns, 2] in raster order."""
    return np.stack([part.ravel() for part in np.meshgrid(rows, columns, indexing="ij")], axis=1)


def tree_idw(scores, neighbours):
    """The usual recipe: a k-d tree, then weights and a gather."""
    pixels = np.arange(SIZE)
    tree, threads = cKDTree(points(CENTERS, CENTERS)), torch.get_num_threads()
    distances, indices = tree.query(points(pixels, pixels), k=neighbours, workers=threads)
    weights = 1 / distances**2
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    maps = np.einsum("bpk,pk->bp", scores.reshape(len(scores), -1)[:, indices], weights)
    return maps.reshape(-1, SIZE, SIZE)


def dense_idw(scores):
    """Distances to all centres by broadcasting, in steps that fit in memory, in float32."""
    pixels = points(np.arange(SIZE), np.arange(SIZE)).astype(np.float32)
    centers = points(CENTERS, CENTERS).astype(np.float32)
    flat = scores.reshape(len(scores), -1)
    maps = np.empty((len(scores), len(pixels)), np.float32)
    for start in range(0, len(pixels), PIXELS_A_STEP):
        part = slice(start, start + PIXELS_A_STEP)
        squared = (pixels[part, :1] - centers[:, 0]) ** 2 + (pixels[part, 1:] - centers[:, 1]) ** 2
        weights = 1 / squared
        maps[:, part] = flat @ weights.T / weights.sum(axis=1)
    return maps.reshape(-1, SIZE, SIZE)


def ours(scores, neighbours=None):
    return idw_map(scores, CENTERS, CENTERS, SIZE, SIZE, 2.0, neighbours)


def ours_cold(scores, neighbours):
    cpu._table.cache_clear()
    return ours(scores, neighbours)


def check(run, neighbours, ties=0.0):
    """Two images against the reference, which is too slow for all; ``ties`` is the share that may differ."""
    few = SCORES[:2]
    expected = idw_map(few, CENTERS, CENTERS, SIZE, SIZE, 2.0, neighbours, backend="reference")
    wrong = float((np.abs(run(few) - expected) > 1e-5).mean())
    if wrong > ties:
        raise AssertionError(f"{wrong:.2%} of the pixels are wrong")


@pytest.mark.parametrize("version", ["ours", "ours, a new geometry", "cKDTree"])
@pytest.mark.parametrize("neighbours", [8, 16])
def test_nearest(benchmark, neighbours, version):
    benchmark.group = f"idw {neighbours} nearest of {GRID}x{GRID}, {BATCH} maps of {SIZE}x{SIZE}"
    benchmark.extra_info.update(version=version, role="baseline" if version == "cKDTree" else "")
    function = {"ours": ours, "ours, a new geometry": ours_cold, "cKDTree": tree_idw}[version]

    def run(scores):
        return function(scores, neighbours)

    # A tree breaks ties as it likes, and then rests on other neighbours.
    check(run, neighbours, ties=0.1 if version == "cKDTree" else 0.0)
    benchmark.pedantic(run, args=(SCORES,), rounds=11, warmup_rounds=1)


@pytest.mark.benchmark(group=f"idw all of {GRID}x{GRID}, {BATCH} maps of {SIZE}x{SIZE}")
@pytest.mark.parametrize("version", ["ours", "dense"])
def test_all(benchmark, version):
    run = {"ours": ours, "dense": dense_idw}[version]
    check(run, None)
    benchmark.pedantic(run, args=(SCORES,), rounds=5, warmup_rounds=1)
