"""surround_conv2d against torch's operations. Run: pytest benchmarks/bench_surround_conv.py.

64 to 128 channels on a grid of 31 x 31 patches, channels-last: two rings around a hole of 7 x 7 patches, by
themselves and with 16 patches 8 and 12 away. ``conv2d`` is the plain convolution with as many places, 8 x 9
or 8 x 11, over a field that needs no padding, with as many outputs; ``padded`` has it on the grid itself.
``strips`` is what torch has for the same answer, a convolution a strip, eager and under torch.compile;
``every patch`` is ``partial_conv2d`` over the window of each output, its hole and what lies outside as boxes
(the ring by itself).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import around
from glance_fast.kernels import partial_conv2d, surround_conv2d
from glance_fast.kernels.surround_conv.reference import count_seen, surround_conv2d_reference

SIZE, INPUTS, OUTPUTS, KERNEL, HOLE, DILATIONS = 31, 64, 128, 11, 7, (8, 12)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROLES = {"strips": "baseline", "conv2d": "floor"}
VERSIONS = ("ours", "strips", "strips, compiled", "every patch", "conv2d", "conv2d, padded")


# For the shapes at hand.
COMPILED = torch.compile(around, dynamic=False)


class Layer:
    """Inputs of one layer, and the versions that take them."""

    def __init__(self, batch: int, dilations: tuple[int, ...], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.dilations = dilations
        self.geometry = (KERNEL,) * 2, (HOLE,) * 2, 1, (KERNEL // 2,) * 2, dilations
        ring, far = KERNEL**2 - HOLE**2, 8 * len(dilations)

        def draw(*shape: int) -> Tensor:
            found = torch.randn(shape, generator=generator).to(dtype)
            return found.to(memory_format=torch.channels_last) if len(shape) == 4 else found

        scale = (INPUTS * (ring + far)) ** -0.5
        self.x, self.bias = draw(batch, INPUTS, SIZE, SIZE), draw(OUTPUTS)
        self.weight = draw(OUTPUTS, INPUTS, ring) * scale
        self.far_weight = draw(OUTPUTS, INPUTS, far) * scale if far else None
        self.seen = count_seen((SIZE, SIZE), *self.geometry, torch.device("cpu"))
        self.plain = draw(OUTPUTS, INPUTS, 8, (ring + far) // 8) * scale
        self.field = draw(batch, INPUTS, SIZE + 7, SIZE + self.plain.shape[3] - 1)

    def every_patch(self) -> Callable[[], Tensor]:
        """A partial convolution of all windows as a batch, which lies ready."""
        side, half, edge = KERNEL, KERNEL // 2, (KERNEL - HOLE) // 2
        windows = F.unfold(self.x.float(), side, padding=half).to(self.x.dtype)
        windows = windows.unflatten(1, (INPUTS, side, side)).permute(0, 4, 1, 2, 3).flatten(0, 1)
        windows = windows.contiguous(memory_format=torch.channels_last)
        weight = torch.zeros(OUTPUTS, INPUTS, side * side, dtype=self.x.dtype)
        ring = torch.ones(side, side, dtype=torch.bool)
        ring[edge : side - edge, edge : side - edge] = False
        weight[:, :, ring.flatten()] = self.weight
        weight = weight.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
        boxes = []
        for i in range(SIZE):
            for j in range(SIZE):
                top, left = max(half - i, 0), max(half - j, 0)
                bottom, right = min(SIZE + half - i, side), min(SIZE + half - j, side)
                boxes.append(
                    [
                        (0, 0, top, side),
                        (bottom, 0, side, side),
                        (top, 0, bottom, left),
                        (top, right, bottom, side),
                        (max(edge, top), max(edge, left), min(side - edge, bottom), min(side - edge, right)),
                    ]
                )
        holes = torch.tensor(boxes).repeat(len(self.x), 1, 1)
        # There the ratio counts the hole's places too.
        share = self.weight.shape[2] / side**2

        def run() -> Tensor:
            y, _ = partial_conv2d(windows, weight, None, holes)
            y = y.view(len(self.x), SIZE, SIZE, OUTPUTS).permute(0, 3, 1, 2)
            return F.relu(y * share + self.bias[:, None, None])

        return run

    def run(self, version: str) -> Callable[[], Tensor]:
        """A version of the layer, its arguments bound."""
        leaves = self.x, self.weight, self.bias
        layer = {"kernel": KERNEL, "hole": HOLE, "far_weight": self.far_weight, "dilations": self.dilations}
        sizes = self.far_weight, self.seen, *self.geometry[:2], self.dilations
        # A row less, for as many outputs.
        grid = self.x[:, :, 1:].contiguous(memory_format=torch.channels_last)
        padding = 4, self.plain.shape[3] // 2
        return {
            "ours": lambda: surround_conv2d(*leaves, **layer, relu=True),
            "strips": lambda: around(*leaves, *sizes),
            "strips, compiled": lambda: COMPILED(*leaves, *sizes),
            "every patch": self.every_patch() if version == "every patch" else None,
            "conv2d": lambda: F.conv2d(self.field, self.plain, self.bias),
            "conv2d, padded": lambda: F.conv2d(grid, self.plain, self.bias, 1, padding),
        }[version]

    def check(self, version: str) -> None:
        """Compare with the definition in float64."""
        inputs = self.x, self.weight, self.bias, self.far_weight
        exact = (None if t is None else t.double() for t in inputs)
        expected = surround_conv2d_reference(*exact, *self.geometry, relu=True)
        error = float((self.run(version)().double() - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCES[self.x.dtype]:
            raise AssertionError(f"{version}: a relative error of {error:.1e}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dilations", [(), DILATIONS], ids=["ring", "ring and far"])
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_surround_conv(benchmark, batch, dilations, dtype, version):
    if version == "every patch" and (dilations or batch > 1):
        pytest.skip("its windows hold the ring alone; more images take as much longer")
    layer = Layer(batch, dilations, dtype)
    if not version.startswith("conv2d"):
        layer.check(version)
    kind = str(dtype).removeprefix("torch.")
    places = f"{KERNEL}x{KERNEL} without {HOLE}x{HOLE}" + (f" and {8 * len(dilations)}" if dilations else "")
    benchmark.group = f"surround_conv2d, {batch} grids of {SIZE}x{SIZE}, {places}, {kind}"
    benchmark.extra_info.update(version=version, role=ROLES.get(version, ""))
    benchmark.pedantic(layer.run(version), rounds=15, warmup_rounds=3)
