"""Floating-point operations and bytes of every kernel, from the geometry of the nets.

A multiply-add is two operations. Bytes are the least that must cross the device's memory: every input
read once, every output written once. Over a device's two rates they give the floor under a kernel's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from torch import nn

from glance_fast.geometry import output_size, reach, shrink
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import RING, MaskedNet

FLOAT = 4  # bytes, and the next two
HALF = 2
INDEX = 4
# Of one distance: two differences, two products, a sum, a division, a power of 2, and the sum of weights.
IDW_WEIGHT = 8


@dataclass(frozen=True)
class Work:
    """What a launch must do.

    Attributes
    ----------
    operations : int
        Floating-point operations.
    read, written : int
        Bytes from and to the device's memory.
    """

    operations: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.read + other.read, self.written + other.written)

    def __mul__(self, times: int) -> Work:
        return Work(self.operations * times, self.read * times, self.written * times)

    def floor(self, rate: float, bandwidth: float) -> float:
        """Least seconds at ``rate`` operations and ``bandwidth`` bytes a second."""
        return max(self.operations / rate, self.bytes / bandwidth)

    def bound(self, rate: float, bandwidth: float) -> str:
        """Which of the two sets the floor."""
        return "arithmetic" if self.operations / rate >= self.bytes / bandwidth else "bytes"


def total(parts: Iterator[Work] | list[Work]) -> Work:
    """The sum."""
    return reduce(add, parts, Work())


@dataclass(frozen=True)
class Conv:
    """A convolution in its place in a net.

    Attributes
    ----------
    name : str
        Stage and role, such as ``"stage2.block1.conv2"``.
    inputs, outputs, kernel, stride, padding : int
        As for a convolution; square.
    size : (int, int)
        Height and width of the input.
    residual : bool
        Whether the input of the layer before is added to its output.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    size: tuple[int, int]
    residual: bool = False

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (output_size(s, self.kernel, self.stride, self.padding) for s in self.size)
        return height, width

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return self.inputs * self.outputs * self.kernel**2


def global_layers(net: MaskedNet, size: tuple[int, int]) -> list[Conv]:
    """The convolutions of a Global-Net on an image of ``size``, in order."""
    found: list[Conv] = []

    def append(name: str, layer: nn.Module, residual: bool = False) -> None:
        outputs, inputs, kernel, _ = layer.weight.shape
        before = found[-1].out if found else size
        found.append(Conv(name, inputs, outputs, kernel, layer.stride, layer.padding, before, residual))

    append("stem", net.stem)
    for s, stage in enumerate(net.stages, 1):
        append(f"stage{s}.down", stage.down)
        for b, block in enumerate(stage.blocks, 1):
            append(f"stage{s}.block{b}.conv1", block.conv1)
            append(f"stage{s}.block{b}.conv2", block.conv2, residual=True)
    return found


def local_layers(net: LocalNet, size: tuple[int, int], stride: int) -> list[Conv]:
    """The convolutions of a Local-Net's pass over an image, for patches ``stride`` pixels apart."""
    found: list[Conv] = []

    def append(name: str, layer: nn.Conv2d, before: tuple[int, int], step: int, residual: bool = False):
        kernel = layer.kernel_size[0]
        found.append(Conv(name, layer.in_channels, layer.out_channels, kernel, step, 0, before, residual))
        return found[-1].out

    size = append("conv1", net.conv1, size, 2)
    size = output_size(size[0], 3, 2), output_size(size[1], 3, 2)
    for b, block in enumerate(net.layer1, 1):
        size = append(f"layer1.block{b}.conv1", block.conv1, size, 1)
        size = append(f"layer1.block{b}.conv2", block.conv2, size, 1, residual=True)
    for r, conv in enumerate(net.reduce, 1):
        # The last one skips the places between patches.
        step = stride // net.step if r == len(net.reduce) else conv.stride[0]
        size = append(f"reduce{r}", conv, size, step)
    for name in ("hidden", "project"):
        size = append(name, getattr(net, name), size, 1)
    return found


def area(size: tuple[int, int]) -> int:
    """Places of a map."""
    return size[0] * size[1]


def forward(conv: Conv, batch: int, element: int) -> Work:
    """One convolution of whole maps, ``element`` bytes a number."""
    places = batch * area(conv.out)
    inputs = batch * area(conv.size) * conv.inputs + conv.weights
    added = places * conv.outputs if conv.residual else 0
    return Work(2 * places * conv.weights, (inputs + added) * element, places * conv.outputs * element)


def backward_input(conv: Conv, batch: int, element: int) -> Work:
    """The gradient of the input from that of the output: reads dy and the weight, writes dx."""
    dy = batch * area(conv.out) * conv.outputs
    dx = batch * area(conv.size) * conv.inputs
    return Work(2 * batch * area(conv.out) * conv.weights, (dy + conv.weights) * element, dx * element)


def backward_weight(conv: Conv, batch: int, element: int) -> Work:
    """The gradient of the weight: reads dy and x, writes dw in float32."""
    dy = batch * area(conv.out) * conv.outputs
    x = batch * area(conv.size) * conv.inputs
    return Work(2 * batch * area(conv.out) * conv.weights, (dy + x) * element, conv.weights * FLOAT)


def grow(boxes: np.ndarray, conv: Conv) -> np.ndarray:
    """Windows of the output that boxes [P, 4] of the input reach."""
    return _by_axis(reach, boxes, conv)


def hide(boxes: np.ndarray, conv: Conv) -> np.ndarray:
    """The holes of the output where boxes [P, 4] of the input are holes; all 0 where there is none."""
    after = _by_axis(shrink, boxes, conv)
    after[(after[:, 2] <= after[:, 0]) | (after[:, 3] <= after[:, 1])] = 0
    return after


def _by_axis(rule, boxes: np.ndarray, conv: Conv) -> np.ndarray:
    top, bottom = rule(boxes[:, 0], boxes[:, 2], conv.size[0], conv.kernel, conv.stride, conv.padding)
    left, right = rule(boxes[:, 1], boxes[:, 3], conv.size[1], conv.kernel, conv.stride, conv.padding)
    return np.stack([top, left, bottom, right], axis=1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Places of each box [P, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@dataclass(frozen=True)
class Windows:
    """What the holes of a grid can change of one layer's output.

    Attributes
    ----------
    conv : Conv
        The layer.
    before, after : ndarray, int64 [P, 4]
        Windows of its input and of its output.
    hidden : ndarray, int64 [P, 4]
        The holes of its output, where nothing is seen and nothing need be computed.
    first : bool
        Whether its input is the image, which no hole has windows of.
    """

    conv: Conv
    before: np.ndarray
    after: np.ndarray
    hidden: np.ndarray
    first: bool

    @property
    def places(self) -> int:
        """Outputs of all windows."""
        return int(areas(self.after).sum())

    @property
    def seen(self) -> int:
        """Outputs that see anything."""
        return self.places - int(areas(self.hidden).sum())

    @property
    def products(self) -> int:
        """Taps of seen outputs that read what differs: all others add 0."""
        return self._products(self.after) - self._products(self.hidden)

    def _products(self, outputs: np.ndarray) -> int:
        """Taps of outputs in boxes [P, 4] that read their window of the input."""
        conv, taps = self.conv, []
        for axis in (0, 1):
            place = np.arange(conv.out[axis])
            first = place * conv.stride - conv.padding
            start, stop = self.before[:, axis, None], self.before[:, axis + 2, None]
            read = np.minimum(first + conv.kernel, stop) - np.maximum(first, start)
            chosen = (place >= outputs[:, axis, None]) & (place < outputs[:, axis + 2, None])
            taps.append((read.clip(0) * chosen).sum(1))
        return int((taps[0] * taps[1]).sum())

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width that hold any of the windows."""
        height, width = (self.after[:, 2:] - self.after[:, :2]).max(axis=0)
        return int(height), int(width)

    @property
    def placed(self) -> np.ndarray:
        """Boxes [P, 4], all as large as the largest window, moved inwards at the border."""
        size = np.array(self.largest)
        first = np.minimum(self.after[:, :2], np.array(self.conv.out) - size)
        return np.concatenate([first, first + size], axis=1)

    @property
    def of_map(self) -> float:
        """Mean share of the map that a window is."""
        return self.places / (len(self.after) * area(self.conv.out))


def windows(convs: list[Conv], holes: np.ndarray) -> list[Windows]:
    """The windows of influence of holes [P, 4] in every layer of a net."""
    found, window, hidden = [], holes, holes
    inputs: list[np.ndarray] = []
    for index, conv in enumerate(convs):
        inputs.append(window)
        after, hidden = grow(window, conv), hide(hidden, conv)
        if conv.residual:
            # What is added is the input of the layer before.
            after = np.concatenate(
                [np.minimum(after[:, :2], inputs[-2][:, :2]), np.maximum(after[:, 2:], inputs[-2][:, 2:])], 1
            )
        found.append(Windows(conv, window, after, hidden, index == 0))
        window = after
    return found


def window_forward(w: Windows, images: int, element: int) -> Work:
    """One layer of the dense engine over all windows of ``images`` images.

    Read are the windows of the layer before, each once, what the layer makes of the unmasked image, float32
    sums and outputs, once an image, and the weight. What lies in a hole is written and not computed.
    """
    conv = w.conv
    own = 0 if w.first else int(areas(w.before).sum()) * conv.inputs
    added = w.places * conv.outputs if conv.residual else 0
    maps = area(conv.out) * conv.outputs * (2 if conv.residual else 1)
    maps += area(conv.size) * conv.inputs if w.first else 0
    sums = area(conv.out) * conv.outputs * FLOAT
    return Work(
        2 * images * w.products * conv.inputs * conv.outputs,
        (images * (own + added + maps) + conv.weights) * element + images * sums,
        images * w.places * conv.outputs * element,
    )


def rectangles(w: Windows) -> int:
    """Outputs computed if every window is as large as the largest, holes and all."""
    return len(w.after) * area(w.largest)


def surround(
    seen: int, places: int, batch: int, sizes: tuple[int, int], channels: tuple[int, int], element: int
) -> Work:
    """A partial convolution around a hole: ``seen`` places over all outputs of a map, of ``places`` each.

    ``sizes`` are places of the input and of the output, ``channels`` theirs; what lies outside is no work.
    """
    inputs, outputs = channels
    read = batch * sizes[0] * inputs + places * inputs * outputs
    written = batch * sizes[1] * outputs
    return Work(2 * batch * seen * inputs * outputs, read * element, written * element)


def surround_backward(
    seen: int, places: int, batch: int, sizes: tuple[int, int], channels: tuple[int, int], element: int
) -> Work:
    """Its gradients: of x from dy and the weight, and of the weight, in float32, from dy and x."""
    inputs, outputs = channels
    x, dy = batch * sizes[0] * inputs, batch * sizes[1] * outputs
    weights = places * inputs * outputs
    operations = 4 * batch * seen * inputs * outputs
    return Work(operations, (2 * dy + weights + x) * element, x * element + weights * FLOAT)


def readout(net: MaskedNet, last: Windows, patches: int, element: int) -> Work:
    """What the head is given, of all patches of an image: the last window's sum, and 19 bilinear readings."""
    channels, cells = last.conv.outputs, 1 + 2 * RING * RING
    # Four places around each, of the window from memory, and of the base, which a cache holds.
    read = patches * 4 * cells * channels + last.places * channels
    return Work(2 * patches * cells * 8 * channels, read * element, patches * net.inputs * FLOAT)


def global_head(net: MaskedNet, patches: int, element: int = FLOAT) -> Work:
    """The perceptron behind Global-Net, for all patches of an image."""
    linear = [m for m in net.head if isinstance(m, nn.Linear)]
    return total(
        [
            Work(
                2 * patches * m.in_features * m.out_features,
                (patches * m.in_features + m.weight.numel()) * element,
                patches * m.out_features * element,
            )
            for m in linear
        ]
    )


def score_patches(
    batch: int, patches: int, features: int, hidden: int, whitening: int = HALF, element: int = FLOAT
) -> Work:
    """All scores of a batch in one launch; ``whitening`` is a matrix a patch, so many bytes a number."""
    pairs = batch * patches
    # Difference and mean, whitening, squares; the perceptron's three layers.
    products = features**2 + 3 * features * hidden + hidden**2 + hidden
    perceptron = 3 * features * hidden + hidden**2 + 3 * hidden
    read = pairs * 2 * features * element + patches * (features**2 * whitening + features * element)
    return Work(pairs * (2 * products + 4 * features), read + perceptron * element, 3 * pairs * element)


def idw_map(batch: int, centres: int, pixels: int, neighbours: int | None, tabled: bool = True) -> Work:
    """Maps from patch scores: from tables of the nearest ``neighbours``, or by all centres."""
    scores, maps = batch * centres * FLOAT, batch * pixels * FLOAT
    if neighbours is None:
        return Work(pixels * centres * (2 * batch + IDW_WEIGHT), scores, maps)
    table = pixels * neighbours * (INDEX + FLOAT) if tabled else 0
    weights = 0 if tabled else IDW_WEIGHT
    return Work(pixels * neighbours * (2 * batch + weights), scores + table, maps)
