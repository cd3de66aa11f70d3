"""window_conv2d against what one would write in torch. Run: pytest benchmarks/bench_window_conv.py.

Four layers of net ``pyramid``, all 841 windows of one image of 256x256 pixels. ``sequence`` gathers what the
windows read by an index that is made beforehand, convolves, and does the rest an operation after the other,
eager and under torch.compile. ``conv2d`` is that convolution alone, of windows that lie ready. Ours computes
differences from the unmasked image, which takes fewer products, and may so be faster than that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.costs import counts
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.window_conv import Unmasked, WindowedMap, packed, window_conv2d_inner
from glance_fast.kernels.window_conv.reference import window_conv2d_reference
from glance_fast.nets.masked import MaskedNet

GRID = PatchGrid(256, 256, 32, 8)
NAMES = ("stem", "stage1.down", "stage1.block1.conv2", "stage3.block1.conv2")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROLES = {"sequence": "baseline"}
VERSIONS = ("ours", "sequence", "sequence, compiled", "conv2d")


def sequence(
    base: Tensor,
    window: Tensor | None,
    field_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    ratio: Tensor,
    valid: Tensor,
    added: WindowedMap | None,
    added_index: Tensor | None,
    stride: int,
) -> Tensor:
    """A gather, a convolution, and element by element the ratio, the bias, the residual and ReLU."""
    y = F.conv2d(gathered(base, window, field_index), weight, None, stride)
    y = (y * ratio + bias[:, None, None]) * valid
    return F.relu(y if added is None else y + gathered(added.base, added.window, added_index))


def gathered(base: Tensor, window: Tensor | None, index: Tensor) -> Tensor:
    """Pixels [P, C, h, w] by an index [P, h, w] into zero, the base and the windows."""
    maps = [base] if window is None else [base, window]
    rows = [m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]
    table = torch.cat([torch.zeros_like(rows[0][:1]), *rows])
    return table[index].permute(0, 3, 1, 2)


COMPILED = torch.compile(sequence, dynamic=False)


def crops(base: Tensor, origins: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows [P, C, h, w] of maps [1, C, H, W]."""
    y, x = (first[:, None] + torch.arange(n) for first, n in zip(origins.T, size, strict=True))
    return base[0].permute(1, 2, 0)[y[:, :, None], x[:, None]].permute(0, 3, 1, 2)


def index_of(size, corners, side, origins, lengths, hidden) -> Tensor:
    """[P, h, w] of a map of one image: 0 outside and in the hole, then the base, then the windows."""
    height, width = size
    y, x = (first[:, None] + np.arange(n) for first, n in zip(origins.T, lengths, strict=True))
    y, x = y[:, :, None], x[:, None, :]
    index = 1 + y * width + x
    if side is not None:
        row, column = y - corners[:, 0, None, None], x - corners[:, 1, None, None]
        inside = (row >= 0) & (row < side[0]) & (column >= 0) & (column < side[1])
        first = 1 + height * width + np.arange(len(origins))[:, None, None] * side[0] * side[1]
        index = np.where(inside, first + row * side[1] + column, index)
    top, left, bottom, right = (h[:, None, None] for h in hidden.T)
    unseen = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    unseen |= (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return torch.from_numpy(np.where(unseen, 0, index))


class Layer:
    """Inputs of one layer, and the versions that take them."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        last = {"dtype": dtype, "memory_format": torch.channels_last}
        convs = counts.global_layers(MaskedNet(GRID.patch), (GRID.height, GRID.width))
        plan = counts.windows(convs, GRID.holes)
        at = [conv.name for conv in convs].index(name)
        layer, before = plan[at], plan[at - 1] if at else None
        conv, hidden = layer.conv, before.hidden if at else GRID.holes

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(**last)

        def windowed(
            channels: int, size: tuple[int, int], w: counts.Windows | None, holes: np.ndarray | None = None
        ) -> tuple[WindowedMap, Tensor | None]:
            """Maps as the kernel takes them, and what is in the windows: the masked image's numbers."""
            base = draw(1, channels, *size)
            if w is None:
                return WindowedMap(base), None
            window = draw(len(w.placed), channels, *w.largest)
            if holes is not None:
                for own, (top, left, *_), hole in zip(window, w.placed, holes, strict=True):
                    own[:, max(hole[0] - top, 0) : hole[2] - top, max(hole[1] - left, 0) : hole[3] - left] = 0
            boxes = torch.from_numpy(w.after)
            corners = torch.from_numpy(w.placed[:, :2].copy())
            part = crops(base, corners, w.largest)
            # Nothing differs outside the boxes.
            y, x = (first[:, None] + torch.arange(n) for first, n in zip(corners.T, w.largest, strict=True))
            rows = (y >= boxes[:, :1]) & (y < boxes[:, 2:3])
            inside = rows[:, :, None] & ((x >= boxes[:, 1:2]) & (x < boxes[:, 3:]))[:, None]
            window = torch.where(inside[:, None], window, part).to(memory_format=torch.channels_last)
            return WindowedMap(base, window - part, corners, boxes), window

        self.size, self.stride, self.padding = layer.largest, conv.stride, conv.padding
        self.source, self.window = windowed(conv.inputs, conv.size, before, hidden)
        self.added = self.added_window = None
        if conv.residual:
            self.added, self.added_window = windowed(conv.outputs, conv.out, plan[at - 2])
        self.weight = draw(conv.outputs, conv.inputs, conv.kernel, conv.kernel) / conv.weights**0.5
        self.weight *= conv.outputs**0.5
        self.bias = torch.randn(conv.outputs, generator=generator).to(dtype)
        self.packed = packed(self.weight)
        raw = F.conv2d(self.source.base.float(), self.weight.float(), None, conv.stride, conv.padding)
        out = draw(1, conv.outputs, *conv.out)
        self.unmasked = Unmasked(raw.contiguous(memory_format=torch.channels_last), out)
        self.boxes = torch.from_numpy(layer.after)
        self.holes = torch.from_numpy(hidden)
        self.images = torch.zeros(len(hidden), dtype=torch.long)
        self.origins = torch.from_numpy(layer.placed[:, :2].copy())

        reads = [(s - 1) * conv.stride + conv.kernel for s in self.size]
        corners = None if before is None else before.placed
        first = self.origins.numpy() * conv.stride - conv.padding
        self.index = index_of(conv.size, corners, before and before.largest, first, reads, hidden)
        seen = F.conv2d((self.index > 0).float()[:, None], torch.ones(1, 1, conv.kernel, conv.kernel),
                        None, conv.stride)  # fmt: skip
        self.ratio = (conv.kernel**2 / seen.clamp_min(1)).to(dtype)
        self.valid = (seen > 0).to(dtype)
        self.added_index = None
        if self.added is not None:
            a, nowhere = plan[at - 2], np.zeros_like(hidden)
            where = a.placed, a.largest, self.origins.numpy(), self.size
            self.added_index = index_of(conv.out, *where, nowhere)
        self.field = gathered(self.source.base, self.window, self.index)

    def run(self, version: str) -> Callable[[], Tensor]:
        """A version of the layer, its arguments bound."""
        source, added = self.source, self.added
        sums = None if added is None else WindowedMap(added.base, self.added_window)
        places = self.holes, self.images, self.origins, self.size, self.stride, self.padding
        values = self.weight, self.bias, self.ratio, self.valid, sums, self.added_index, self.stride
        layer = self.weight, self.bias, *places, added, True, self.boxes, self.packed
        return {
            "ours": lambda: window_conv2d_inner(source, self.unmasked, *layer),
            "sequence": lambda: sequence(source.base, self.window, self.index, *values),
            "sequence, compiled": lambda: COMPILED(source.base, self.window, self.index, *values),
            "conv2d": lambda: F.conv2d(self.field, self.weight, None, self.stride),
        }[version]

    def check(self, version: str, step: int = 24) -> None:
        """Compare every ``step``-th window with the definition in float64."""

        def few(m: WindowedMap | None) -> WindowedMap | None:
            if m is None or m.window is None:
                return m and WindowedMap(m.base.double())
            return WindowedMap(m.base.double(), m.window[::step].double(), m.origins[::step])

        places = (t[::step] for t in (self.holes, self.images, self.origins))
        rest = self.size, self.stride, self.padding, few(self.added), True
        unmasked = Unmasked(*(m.double() for m in self.unmasked))
        expected = window_conv2d_reference(
            few(self.source), unmasked, self.weight.double(), self.bias.double(), *places, *rest
        )
        found = self.run(version)()[::step].double()
        if version == "ours":
            y, x = (o[::step, None] + torch.arange(n) for o, n in zip(self.origins.T, self.size, strict=True))
            boxes = self.boxes[::step]
            rows, columns = (
                (y >= boxes[:, :1]) & (y < boxes[:, 2:3]),
                (x >= boxes[:, 1:2]) & (x < boxes[:, 3:]),
            )
            expected = expected * (rows[:, :, None] & columns[:, None])[:, None]
        else:
            expected += crops(unmasked.out, self.origins[::step], self.size)
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCES[self.weight.dtype]:
            raise AssertionError(f"{version}: a relative error of {error:.1e}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_window_conv(benchmark, name, dtype, version):
    layer = Layer(name, dtype)
    if version != "conv2d":
        layer.check(version)
    height, width = layer.size
    kind = str(dtype).removeprefix("torch.")
    benchmark.group = f"window_conv2d {name}, {len(GRID)} windows of {height}x{width}, {kind}"
    benchmark.extra_info.update(version=version, role=ROLES.get(version, ""))
    benchmark.pedantic(layer.run(version), rounds=15, warmup_rounds=3)
