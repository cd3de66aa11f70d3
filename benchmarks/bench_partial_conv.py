"""partial_conv2d against the reference's sequence. Run: pytest benchmarks/bench_partial_conv.py.

64 to 64 channels, 3x3, channels-last, 8 images with one hole each, a quarter of their side. ``sequence`` is
what the paper's reference does: the mask as a tensor, multiplied and convolved too, eager and under
torch.compile; ``conv2d`` is the plain convolution, which no version can beat by much. ``in a net`` is ours
between two layers, where x is 0 in its holes already; ``ours`` gets numbers there and has to copy x.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.kernels import partial_conv2d
from glance_fast.kernels.partial_conv import partial_conv2d_inner
from glance_fast.kernels.partial_conv.reference import partial_conv2d_reference

BATCH, CHANNELS, KERNEL, PADDING = 8, 64, 3, 1
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROLES = {"sequence": "baseline", "conv2d": "floor"}
VERSIONS = ("ours", "in a net", "sequence", "sequence, compiled", "conv2d")


def sequence(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """The definition, an operation after the other."""
    return partial_conv2d_reference(x, weight, bias, mask, 1, PADDING)[0]


# Backward too is compiled for the shapes at hand.
COMPILED = torch.compile(sequence, dynamic=False)


class Layer:
    """Inputs of one layer, and the versions that take them."""

    def __init__(self, size: int, dtype: torch.dtype, grad: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            last = (
                {"dtype": dtype, "memory_format": torch.channels_last}
                if len(shape) == 4
                else {"dtype": dtype}
            )
            return torch.randn(shape, generator=generator).to(**last)

        quarter = size // 4
        self.holes = torch.tensor([[quarter, quarter, 2 * quarter, 2 * quarter]]).repeat(BATCH, 1)
        self.mask = torch.ones(BATCH, 1, size, size, dtype=dtype)
        self.mask[:, :, quarter : 2 * quarter, quarter : 2 * quarter] = 0
        self.x = draw(BATCH, CHANNELS, size, size)
        self.weight = draw(CHANNELS, CHANNELS, KERNEL, KERNEL) / (CHANNELS * KERNEL**2) ** 0.5
        self.bias, self.dy = draw(CHANNELS), draw(BATCH, CHANNELS, size, size)
        self.zeroed = self.x * self.mask
        for tensor in (self.x, self.zeroed, self.weight, self.bias):
            tensor.requires_grad_(grad)

    def run(self, version: str) -> Callable[[], Tensor | tuple[Tensor, ...]]:
        """Forward, or all three gradients and what they need."""
        x = self.zeroed if version == "in a net" else self.x
        leaves = x, self.weight, self.bias
        boxes = self.holes[:, None]
        forward = {
            "ours": lambda: partial_conv2d(*leaves, self.holes, 1, PADDING)[0],
            "in a net": lambda: partial_conv2d_inner(*leaves, boxes, 1, PADDING)[0],
            "sequence": lambda: sequence(*leaves, self.mask),
            "sequence, compiled": lambda: COMPILED(*leaves, self.mask),
            "conv2d": lambda: F.conv2d(*leaves, 1, PADDING),
        }[version]
        if not x.requires_grad:
            return forward
        return lambda: torch.autograd.grad(forward(), leaves, self.dy)

    def check(self, version: str) -> None:
        """Compare with the definition in float64."""
        exact = [
            t.detach().double().requires_grad_(t.requires_grad) for t in (self.x, self.weight, self.bias)
        ]
        expected = sequence(*exact, self.mask.double())
        if self.x.requires_grad:
            expected = torch.autograd.grad(expected, exact, self.dy.double())
        found = self.run(version)()
        for mine, theirs in zip(
            *(v if isinstance(v, tuple) else (v,) for v in (found, expected)), strict=True
        ):
            error = float((mine.double() - theirs).abs().max() / theirs.abs().max())
            if not error <= TOLERANCES[self.x.dtype]:
                raise AssertionError(f"{version}: a relative error of {error:.1e}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [64, 16])
@pytest.mark.parametrize("what", ["forward", "forward and backward"])
def test_partial_conv(benchmark, what, size, dtype, version):
    layer = Layer(size, dtype, grad=what != "forward")
    if version != "conv2d":
        layer.check(version)
    kind = str(dtype).removeprefix("torch.")
    benchmark.group = f"partial_conv2d {what}, {BATCH} maps of {size}x{size}, {CHANNELS} channels, {kind}"
    benchmark.extra_info.update(version=version, role=ROLES.get(version, ""))
    rounds = 40 if size > 16 else 200
    benchmark.pedantic(layer.run(version), rounds=rounds, warmup_rounds=5)
