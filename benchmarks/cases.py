"""What is timed, once for every device: each operator at the default net's shapes, beside its baselines.

A case draws fresh inputs, knows the answer in float64, and holds every version of the work: the
definition's sequence of torch operations, eager and compiled; what no version can be expected to beat; ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import counts
from benchmarks.convolutions import backward_case, conv_case, layers, window_cases
from benchmarks.scene import COMPILED, SEQUENCE, Case, Inputs, Scene, compiled, normal, upcast
from glance_fast.kernels.idw import idw_map
from glance_fast.kernels.patch_score import DistortionWeights, score_patches
from glance_fast.nets.heads import DistortionHead

POWER = 2.0


def score_case(scene: Scene) -> Case:
    """All scores of a batch of images, whitened for every position."""
    patches, features = len(scene.grid), 128
    head = DistortionHead(features).to(scene.device).eval()
    weights = DistortionWeights(*(w.detach() for w in head.folded()))

    def draw(generator: torch.Generator) -> Inputs:
        whitening = normal(generator, patches, features, features) * features**-0.5
        return {
            "local": normal(generator, scene.images, patches, features),
            "global_": normal(generator, scene.images, patches, features),
            "mean": normal(generator, patches, features),
            "whitening": whitening.half(),
        }

    def run(i: Inputs, backend: str, w=weights) -> tuple[Tensor, ...]:
        scales = {"inconsistency_scale": (1.0, 0.5), "distortion_scale": (0.4, 0.2)}
        arguments = {"mean": i["mean"], "whitening": i["whitening"], **scales}
        return tuple(score_patches(i["local"], i["global_"], w, **arguments, backend=backend))

    def exact(i: Inputs) -> tuple[Tensor, ...]:
        return run(upcast(i), "reference", DistortionWeights(*(w.double() for w in weights)))

    definition = lambda i: run(i, "reference")  # noqa: E731
    versions = {SEQUENCE: definition}
    if scene.compiled:
        versions[COMPILED] = compiled(definition)
    own = scene.versions("patch_score", lambda backend: lambda i: run(i, backend))
    work = counts.score_patches(scene.images, patches, features, head.first.out_features)
    shape = f"{scene.images} images of {patches} patches, {features} features"
    return Case("score_patches", shape, "float32", work, draw, exact, versions | own, SEQUENCE, tuple(own))


def map_case(scene: Scene, neighbours: int | None) -> Case:
    """Maps from patch scores."""
    grid = scene.grid
    place = (grid.centers_y, grid.centers_x, scene.image, scene.image, POWER, neighbours)

    def draw(generator: torch.Generator) -> Inputs:
        return {"scores": normal(generator, scene.images, grid.rows, grid.cols)}

    def run(i: Inputs, backend: str) -> Tensor:
        return idw_map(i["scores"], *place, backend=backend)

    own = scene.versions("idw", lambda backend: lambda i: run(i, backend))
    work = counts.idw_map(scene.images, len(grid), scene.image**2, neighbours)
    chosen = f"{neighbours} nearest" if neighbours else "all"
    shape = f"{chosen} of {grid.rows}x{grid.cols}, {scene.images} maps of {scene.image}x{scene.image}"
    versions = {SEQUENCE: lambda i: run(i, "reference")} | own
    exact = lambda i: run(upcast(i), "reference")  # noqa: E731
    kind = {"matrix": False, "uncaptured": (SEQUENCE,)}
    return Case("idw_map", shape, "float32", work, draw, exact, versions, SEQUENCE, tuple(own), **kind)


def all_cases(scene: Scene) -> Iterator[Case]:
    """Every case, the ones that matter most first."""
    first, *others = scene.dtypes
    found = layers(scene)
    for conv, holes in found:
        yield conv_case(scene, conv, holes, first)
    yield from window_cases(scene, first)
    yield score_case(scene)
    yield map_case(scene, min(16, len(scene.grid)))
    yield map_case(scene, None)
    plain = [(conv, holes) for conv, holes in found if not conv.residual]
    for conv, holes in plain:
        yield backward_case(scene, conv, holes, first)
    yield conv_case(scene, *found[1], first, masks=True)
    widest = next(pair for pair in plain if pair[0].stride == 1)
    for dtype in others:
        yield conv_case(scene, *widest, dtype)
        yield backward_case(scene, *widest, dtype)
