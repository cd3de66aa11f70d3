"""What is timed, once for every device: each operator at the default net's shapes, beside its baselines.

A case draws fresh inputs, knows the answer in float64, and holds every version of the work: the
definition's sequence of torch operations, eager and compiled; what no version can be expected to beat; ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.costs import counts
from benchmarks.gpu.convolutions import backward_case, conv_case, layers, window_cases
from benchmarks.gpu.scene import (
    COMPILED,
    PLAIN,
    SEQUENCE,
    Case,
    Inputs,
    Scene,
    Version,
    compiled,
    name_of,
    normal,
    upcast,
)
from glance_fast.kernels.idw import idw_map
from glance_fast.kernels.patch_score import DistortionWeights, score_patches
from glance_fast.kernels.surround_conv.operator import BACKWARD, OPERATOR
from glance_fast.kernels.surround_conv.reference import count_seen, surround_conv2d_reference
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


def around(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    far_weight: Tensor | None,
    seen: Tensor,
    kernel: tuple[int, int],
    hole: tuple[int, int],
    dilations: tuple[int, ...],
    relu: bool = True,
) -> Tensor:
    """A partial convolution around a hole as torch has it, stride 1: a convolution a strip, and the ratio.

    ``seen`` [H, W] is how many places each output sees.
    """
    (kh, kw), (hh, hw) = kernel, hole
    r, c, ring = (kh - hh) // 2, (kw - hw) // 2, weight.shape[2]
    middle = weight[:, :, r * kw : ring - r * kw].unflatten(2, (hh, 2 * c))
    parts = [
        (weight[:, :, : r * kw].unflatten(2, (r, kw)), -(kh // 2), -(kw // 2), (1, 1)),
        (middle[..., :c], -(hh // 2), -(kw // 2), (1, 1)),
        (middle[..., c:], -(hh // 2), hw // 2 + 1, (1, 1)),
        (weight[:, :, ring - r * kw :].unflatten(2, (r, kw)), hh // 2 + 1, -(kw // 2), (1, 1)),
    ]
    for i, d in enumerate(dilations):
        above, beside, below = far_weight[:, :, None, 8 * i : 8 * i + 8].split([3, 2, 3], 3)
        parts += [(above, -d, -d, (1, d)), (beside, 0, -d, (1, 2 * d)), (below, d, -d, (1, d))]
    reach = max(*dilations, kh // 2, kw // 2)
    x = F.pad(x, (reach,) * 4)
    y = 0
    for w, top, left, step in parts:
        rows = seen.shape[0] + w.shape[2] - 1
        cols = seen.shape[1] + (w.shape[3] - 1) * step[1]
        field = x[:, :, reach + top : reach + top + rows, reach + left : reach + left + cols]
        y = y + F.conv2d(field, w, None, 1, 0, step)
    full = ring + 8 * len(dilations)
    y = y * (full / seen.clamp_min(1)).to(y.dtype) + bias[:, None, None]
    y = torch.where(seen > 0, y, 0)
    return F.relu(y) if relu else y


def surround_case(scene: Scene, dtype: torch.dtype, far: bool, backward: bool = False) -> Case:
    """Every patch's surrounding in one pass: two rings around the patches that touch it, and far ones.

    The baseline is what torch has for it (``around``), the plain convolution has as many places.
    """
    size = scene.grid.rows, scene.grid.cols
    hole = 2 * (scene.patch // scene.stride) - 1
    kernel, dilations = hole + 4, (hole + 1, hole + 5) if far else ()
    inputs, outputs, batch = scene.width, 2 * scene.width, scene.maps
    geometry = (kernel,) * 2, (hole,) * 2, 1, (kernel // 2,) * 2, dilations
    ring = kernel**2 - hole**2
    places = ring + 8 * len(dilations)
    seen = count_seen(size, *geometry, scene.device)
    # Backward none: where rounding turns a sign, the gradient is another one.
    relu = not backward

    def draw(generator: torch.Generator) -> Inputs:
        def weights(count: int) -> Tensor:
            found = normal(generator, outputs, inputs, count) * (inputs * places) ** -0.5
            return found.to(dtype)

        last = {"dtype": dtype, "memory_format": torch.channels_last}
        ours = weights(ring), normal(generator, outputs).to(dtype), weights(8 * len(dilations))
        return {
            "x": normal(generator, batch, inputs, *size).to(**last),
            **dict(zip(("weight", "bias", "far_weight"), ours, strict=True)),
            "dy": normal(generator, batch, outputs, *size).to(**last),
            # 8 rows of places, with as many outputs.
            "field": normal(generator, batch, inputs, size[0] + 7, size[1] + places // 8 - 1).to(**last),
            "plain": weights(places).unflatten(2, (8, -1)).to(**last),
        }

    def arguments(i: Inputs) -> tuple:
        return i["x"], i["weight"], i["bias"], i["far_weight"] if far else None

    def of(function: Callable) -> Version:
        def run(i: Inputs) -> tuple[Tensor, ...]:
            # The graph is kept with the inputs, so that only the way back is timed.
            key = id(function)
            if key not in i:
                leaves = [None if t is None else t.detach().requires_grad_() for t in arguments(i)]
                i[key] = function(*leaves), [t for t in leaves if t is not None]
            y, leaves = i[key]
            return torch.autograd.grad(y, leaves, i["dy"], retain_graph=True)

        return run if backward else lambda i: function(*arguments(i))

    def sequence(x: Tensor, weight: Tensor, bias: Tensor, far_weight: Tensor | None) -> Tensor:
        return around(x, weight, bias, far_weight, seen, *geometry[:2], dilations, relu)

    def definition(*tensors: Tensor | None) -> Tensor:
        return surround_conv2d_reference(*tensors, *geometry, relu)

    def ours(route: str) -> Version:
        def run(i: Inputs) -> Tensor:
            return OPERATOR(*arguments(i), *geometry, relu, route)

        def back(i: Inputs) -> tuple[Tensor, ...]:
            x, weight, _, far_weight = arguments(i)
            found = BACKWARD(i["dy"], x, weight, far_weight, *geometry, [True, True, True, far], route)
            return found if far else found[:3]

        return back if backward else run

    def plain(i: Inputs) -> Tensor | tuple[Tensor, ...]:
        if not backward:
            return F.conv2d(i["field"], i["plain"], i["bias"])
        layer = ([outputs], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3)
        return torch.ops.aten.convolution_backward(i["dy"], i["field"], i["plain"], *layer)

    versions = {SEQUENCE: of(sequence)}
    if scene.compiled:
        versions[COMPILED] = of(compiled(sequence))
    versions[PLAIN] = plain
    own = scene.versions("surround_conv", ours, dtype)
    count = counts.surround_backward if backward else counts.surround
    area = size[0] * size[1]
    work = count(int(seen.sum()), places, batch, (area, area), (inputs, outputs), dtype.itemsize)
    around_hole = f"{kernel}x{kernel}-{hole}x{hole}" + (f"+{8 * len(dilations)}" if far else "")
    return Case(
        "surround_conv2d backward" if backward else "surround_conv2d",
        f"{inputs}>{outputs} {around_hole} {size[0]}x{size[1]} batch {batch}",
        name_of(dtype),
        work,
        draw,
        lambda i: of(definition)(upcast(i)),
        versions | own,
        SEQUENCE,
        tuple(own),
        uncaptured=(SEQUENCE, COMPILED) if backward else (),
    )


def all_cases(scene: Scene) -> Iterator[Case]:
    """Every case, the ones that matter most first."""
    first, *others = scene.dtypes
    yield surround_case(scene, first, far=True)
    yield surround_case(scene, first, far=False)
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
    if scene.every_layer:
        # Minutes in the interpreter.
        yield surround_case(scene, first, far=True, backward=True)
    yield conv_case(scene, *found[1], first, masks=True)
    widest = next(pair for pair in plain if pair[0].stride == 1)
    for dtype in others:
        yield surround_case(scene, dtype, far=True)
        yield conv_case(scene, *widest, dtype)
        yield backward_case(scene, *widest, dtype)
