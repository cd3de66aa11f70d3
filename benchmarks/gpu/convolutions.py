"""Cases of the convolutions: forward, backward, and windows over a shared base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.costs import counts
from benchmarks.costs.counts import Conv, Windows
from benchmarks.gpu.scene import (
    COMPILED,
    PLAIN,
    SEQUENCE,
    WHOLE,
    Case,
    Inputs,
    Scene,
    Version,
    compiled,
    name_of,
    normal,
    upcast,
)
from glance_fast.kernels.partial_conv.operator import BACKWARD, OPERATOR
from glance_fast.kernels.partial_conv.reference import inside, partial_conv2d_reference
from glance_fast.kernels.window_conv import Unmasked, WindowedMap, window_conv2d_inner
from glance_fast.kernels.window_conv.reference import window_conv2d_reference
from glance_fast.nets.masked import MaskedNet

CHECKED = 48  # windows that are compared with float64


def layers(scene: Scene) -> list[tuple[Conv, np.ndarray]]:
    """The different convolutions of Global-Net, each with the holes of its input, [P, 4]."""
    net = MaskedNet(scene.patch, (scene.width,) * 4)
    found: dict[Conv, np.ndarray] = {}
    hidden = scene.grid.holes
    for conv in counts.global_layers(net, (scene.image, scene.image)):
        found.setdefault(replace(conv, name=""), hidden)
        hidden = counts.hide(hidden, conv)
    return [pair for pair in found.items() if scene.every_layer or pair[0] in examples(found)]


def examples(convs: Iterable[Conv]) -> list[Conv]:
    """The first of each kernel, stride and addition."""
    kinds: dict[tuple, Conv] = {}
    for conv in convs:
        kinds.setdefault((conv.kernel, conv.stride, conv.residual), conv)
    return list(kinds.values())


def conv_name(conv: Conv, batch: int) -> str:
    """Readable: channels, kernel and stride, size, batch, and what is added."""
    added = " + residual" if conv.residual else ""
    return (
        f"{conv.inputs}>{conv.outputs} {conv.kernel}x{conv.kernel}/{conv.stride} "
        f"{conv.size[0]}x{conv.size[1]} batch {batch}{added}"
    )


def draw_conv(conv: Conv, holes: np.ndarray, batch: int, dtype: torch.dtype) -> Callable:
    """Inputs of a partial convolution: one hole an image, all images different."""

    def draw(generator: torch.Generator) -> Inputs:
        last = {"dtype": dtype, "memory_format": torch.channels_last}
        kernel = (conv.inputs, conv.kernel, conv.kernel)
        chosen = torch.randint(len(holes), (batch,), generator=generator, device=generator.device)
        boxes = torch.from_numpy(holes).to(generator.device)[chosen, None]
        x = normal(generator, batch, conv.inputs, *conv.size).to(**last)
        seen = ~inside(boxes, *conv.size)
        scale = (conv.inputs * conv.kernel**2) ** -0.5
        return {
            "x": x.masked_fill(~seen, 0),
            "weight": (normal(generator, conv.outputs, *kernel) * scale).to(**last),
            "bias": normal(generator, conv.outputs).to(dtype),
            "residual": normal(generator, batch, conv.outputs, *conv.out).to(**last),
            "dy": normal(generator, batch, conv.outputs, *conv.out).to(**last),
            "holes": boxes,
            "mask": seen.to(dtype),
            "seen": None,
        }

    return draw


def conv_case(scene: Scene, conv: Conv, holes: np.ndarray, dtype: torch.dtype, masks: bool = False) -> Case:
    """Forward, with ReLU, and the residual where the layer has one; ``masks``: under arbitrary masks."""

    def definition(x, weight, bias, residual, mask):
        y, _ = partial_conv2d_reference(x, weight, bias, mask, conv.stride, conv.padding)
        return F.relu(y + residual) if conv.residual else F.relu(y)

    def of(function: Callable) -> Version:
        names = ("x", "weight", "bias", "residual", "mask")
        return lambda i: function(*(i[name] for name in names))

    def ours(route: str) -> Version:
        def run(i: Inputs) -> Tensor:
            added = i["residual"] if conv.residual else None
            layer = (conv.stride, conv.padding, True, not masks, route)
            mask = i["mask" if masks else "holes"]
            return OPERATOR(i["x"], i["weight"], i["bias"], added, mask, *layer)[0]

        return run

    versions = {SEQUENCE: of(definition)}
    if scene.compiled:
        versions[COMPILED] = of(compiled(definition))
    versions[PLAIN] = lambda i: F.conv2d(i["x"], i["weight"], i["bias"], conv.stride, conv.padding)
    own = scene.versions("partial_conv", ours, dtype)
    if masks:
        # On a CPU they go by the definition.
        own.pop("ours", None)
    work = counts.forward(conv, scene.maps, dtype.itemsize)
    shape = conv_name(conv, scene.maps) + (", masks" if masks else "")
    draw = draw_conv(conv, holes, scene.maps, dtype)
    exact = lambda i: of(definition)(upcast(i))  # noqa: E731
    return Case(
        "partial_conv2d", shape, name_of(dtype), work, draw, exact, versions | own, SEQUENCE, tuple(own)
    )


def backward_case(scene: Scene, conv: Conv, holes: np.ndarray, dtype: torch.dtype) -> Case:
    """All three gradients, from what the forward pass left behind."""
    arguments = (conv.stride, conv.padding)

    def definition(x, weight, bias, mask):
        return partial_conv2d_reference(x, weight, bias, mask, *arguments)[0]

    def of(function: Callable) -> Version:
        def run(i: Inputs) -> tuple[Tensor, ...]:
            # The graph is kept with the inputs, so that only the way back is timed.
            key = id(function)
            if key not in i:
                leaves = [i[name].detach().requires_grad_() for name in ("x", "weight", "bias")]
                i[key] = function(*leaves, i["mask"]), leaves
            y, leaves = i[key]
            return torch.autograd.grad(y, leaves, i["dy"], retain_graph=True)

        return run

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        size = ([conv.outputs], *([n] * 2 for n in (*arguments, 1)), False, [0, 0], 1, [True] * 3)
        return torch.ops.aten.convolution_backward(i["dy"], i["x"], i["weight"], *size)

    def ours(route: str) -> Version:
        def run(i: Inputs) -> tuple[Tensor, ...]:
            x, weight, holes = i["x"], i["weight"], i["holes"]
            if i["seen"] is None:
                i["seen"] = OPERATOR(x, weight, i["bias"], None, holes, *arguments, False, True, route)[1]
            return BACKWARD(i["dy"], x, weight, holes, i["seen"], *arguments, True, [True] * 3, route)

        return run

    versions = {SEQUENCE: of(definition)}
    if scene.compiled:
        versions[COMPILED] = of(compiled(definition))
    versions[PLAIN] = plain
    own = scene.versions("partial_conv", ours, dtype)
    parts = (counts.backward_input, counts.backward_weight)
    work = counts.total(part(conv, scene.maps, dtype.itemsize) for part in parts)
    draw = draw_conv(conv, holes, scene.maps, dtype)
    shape = conv_name(conv, scene.maps)
    exact = lambda i: of(definition)(upcast(i))  # noqa: E731
    return Case(
        "partial_conv2d backward",
        shape,
        name_of(dtype),
        work,
        draw,
        exact,
        versions | own,
        SEQUENCE,
        tuple(own),
        uncaptured=(SEQUENCE, COMPILED),
    )


# ---- windows over a shared base


def window_case(
    scene: Scene, w: Windows, before: Windows | None, hidden: np.ndarray, dtype: torch.dtype
) -> Case:
    """One layer of the dense engine: all windows of a few images.

    ``before`` is the layer whose windows are read, ``hidden`` [P, 4] are the holes of the input.
    """
    conv, patches, count = w.conv, len(w.after), scene.windowed * len(w.after)
    last = {"dtype": dtype, "memory_format": torch.channels_last}

    def draw(generator: torch.Generator) -> Inputs:
        device = generator.device

        def maps(number: int, channels: int, size: tuple[int, int]) -> Tensor:
            return normal(generator, number, channels, *size).to(**last)

        scale = (conv.inputs * conv.kernel**2) ** -0.5
        kernel = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
        source = WindowedMap(maps(scene.windowed, conv.inputs, conv.size))
        if before is not None:
            window = maps(count, conv.inputs, before.largest)
            origins = torch.from_numpy(before.placed[:, :2].copy()).to(device)
            source = source._replace(window=window, origins=origins)
        residual, placed = None, torch.from_numpy(w.placed[:, :2].copy()).to(device)
        if conv.residual:
            # The same windows as the output's serve for timing: a little more is read than in the net.
            window = maps(count, conv.outputs, w.largest)
            residual = WindowedMap(maps(scene.windowed, conv.outputs, conv.out), window, placed)
        weight = (normal(generator, *kernel) * scale).to(**last)
        raw = F.conv2d(source.base.float(), weight.float(), None, conv.stride, conv.padding)
        return {
            "source": source,
            "unmasked": Unmasked(
                raw.contiguous(memory_format=torch.channels_last),
                maps(scene.windowed, conv.outputs, conv.out),
            ),
            "weight": weight,
            "bias": normal(generator, conv.outputs).to(dtype),
            "holes": torch.from_numpy(hidden).to(device),
            "images": torch.arange(scene.windowed, device=device).repeat_interleave(patches),
            "origins": placed,
            "residual": residual,
            "checked": torch.randint(count, (CHECKED,), generator=generator, device=device),
        }

    def ours(backend: str) -> Version:
        def run(i: Inputs) -> Tensor:
            names = ("source", "unmasked", "weight", "bias", "holes", "images", "origins")
            layer = (w.largest, conv.stride, conv.padding, i["residual"], True)
            return window_conv2d_inner(*(i[n] for n in names), *layer, backend=backend)

        return run

    def exact(i: Inputs) -> Tensor:
        chosen = i["checked"]

        def part(m: WindowedMap | None) -> WindowedMap | None:
            if m is None or m.window is None:
                return m and WindowedMap(m.base.double())
            return WindowedMap(m.base.double(), m.window[chosen].double(), m.origins[chosen % patches])

        places = i["holes"][chosen % patches], i["images"][chosen], i["origins"][chosen % patches]
        layer = (w.largest, conv.stride, conv.padding, part(i["residual"]), True)
        return window_conv2d_reference(
            part(i["source"]), Unmasked(*(m.double() for m in i["unmasked"])), i["weight"].double(),
            i["bias"].double(), *places, *layer,
        )  # fmt: skip

    def whole(i: Inputs) -> Tensor:
        """What the windows save: the definition over a whole map for every patch."""
        if "whole" not in i:
            image = i["images"]
            boxes = i["holes"].repeat(scene.windowed, 1)[:, None]
            i["mask"] = (~inside(boxes, *conv.size)).to(dtype)
            i["whole"] = i["source"].base[image].contiguous(memory_format=torch.channels_last)
            i["added"] = None if i["residual"] is None else i["residual"].base[image]
        y, _ = partial_conv2d_reference(
            i["whole"], i["weight"], i["bias"], i["mask"], conv.stride, conv.padding
        )
        return F.relu(y if i["added"] is None else y + i["added"])

    def plain(i: Inputs) -> Tensor:
        """A convolution of windows that lie ready."""
        if "field" not in i:
            reads = [(s - 1) * conv.stride + conv.kernel for s in w.largest]
            field = torch.randn(1, conv.inputs, *reads, device=i["weight"].device)
            i["field"] = field.expand(count, -1, -1, -1).to(**last)
        return F.conv2d(i["field"], i["weight"], i["bias"], conv.stride)

    own = scene.versions("window_conv", ours, dtype)
    height, width = w.largest
    shape = f"{conv.name} {conv.size[0]}x{conv.size[1]}, {count} windows {height}x{width}"
    return Case(
        "window_conv2d",
        shape,
        name_of(dtype),
        counts.window_forward(w, scene.windowed, dtype.itemsize),
        draw,
        exact,
        {WHOLE: whole, PLAIN: plain} | own,
        WHOLE,
        tuple(own),
        pick=lambda i, found: found[i["checked"]],
    )


def window_cases(scene: Scene, dtype: torch.dtype) -> Iterator[Case]:
    """Every layer of the dense engine."""
    net = MaskedNet(scene.patch, (scene.width,) * 4)
    hidden, before = scene.grid.holes, None
    convs = counts.global_layers(net, (scene.image, scene.image))
    for w in counts.windows(convs, hidden):
        if scene.every_layer or w.conv in examples(convs):
            yield window_case(scene, w, before, hidden, dtype)
        hidden, before = w.hidden, w
