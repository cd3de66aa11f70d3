"""Partial convolution around a hole as operators of torch: for torch.compile, torch.export and autograd.

Registered as ``partial_conv/operator.py`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.surround_conv import cpu
from glance_fast.kernels.surround_conv.reference import output_sizes

LIBRARY = torch.library.Library("glance_fast", "FRAGMENT")
GEOMETRY = "int[] kernel, int[] hole, int stride, int[] padding, int[] dilations"
LIBRARY.define(
    "surround_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? far_weight, "
    f"{GEOMETRY}, bool relu, str route) -> Tensor"
)
LIBRARY.define(
    "surround_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? far_weight, "
    f"{GEOMETRY}, bool[] needs, str route) -> (Tensor, Tensor, Tensor, Tensor)"
)
OPERATOR = torch.ops.glance_fast.surround_conv2d.default
BACKWARD = torch.ops.glance_fast.surround_conv2d_backward.default
# x, weight, bias, far_weight; kernel, hole, stride, padding, dilations; relu, route
TENSORS, INPUTS = 4, 11


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    far_weight: Tensor | None,
    kernel: list[int],
    hole: list[int],
    stride: int,
    padding: list[int],
    dilations: list[int],
    relu: bool,
    route: str,
) -> Tensor:
    """y [N, O, H', W'], channels-last; arguments as for ``surround_conv2d``, pairs for pairs.

    ``route`` is "cpu" or "triton".
    """
    arguments = x, weight, bias, far_weight, *_geometry(kernel, hole, stride, padding, dilations), relu
    if route == "cpu":
        return cpu.forward(*arguments)
    from glance_fast.kernels.surround_conv import gpu

    return gpu.forward(*arguments)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    far_weight: Tensor | None,
    kernel: list[int],
    hole: list[int],
    stride: int,
    padding: list[int],
    dilations: list[int],
    needs: list[bool],
    route: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and far_weight; [0] for those that ``needs`` does not ask for."""
    arguments = dy, x, weight, far_weight, *_geometry(kernel, hole, stride, padding, dilations), needs
    if route == "cpu":
        return cpu.backward(*arguments)
    from glance_fast.kernels.surround_conv import gpu

    return gpu.backward(*arguments)


def _geometry(kernel, hole, stride, padding, dilations):
    """As tuples, which caches can take; torch hands over lists."""
    return tuple(kernel), tuple(hole), stride, tuple(padding), tuple(dilations)


class SurroundConv2d(torch.autograd.Function):
    """Differentiable in x, weight, bias and far_weight; once."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            y = OPERATOR(*inputs)
        x, weight, _, far_weight, *ctx.geometry, relu, ctx.route = inputs
        ctx.save_for_backward(x, weight, far_weight, y if relu else None)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx, dy):
        grads = [None] * INPUTS
        if dy is None:
            return tuple(grads)
        x, weight, far_weight, y = ctx.saved_tensors
        if y is not None:
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        needs = list(ctx.needs_input_grad[:TENSORS])
        found = BACKWARD(dy, x, weight, far_weight, *ctx.geometry, needs, ctx.route)
        grads[:TENSORS] = [g if needed else None for g, needed in zip(found, needs, strict=True)]
        return tuple(grads)


def differentiable(*inputs):
    """The operator where gradients are kept, if any is asked for: keeping them takes 20 microseconds."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:TENSORS]):
        return SurroundConv2d.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return OPERATOR(*inputs)


class SurroundConv2dBackward(torch.autograd.Function):
    """Refuses a second derivative, which would else be missing without a word."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return BACKWARD(*inputs)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("surround_conv2d can be differentiated only once")


def _fake_forward(x, weight, bias, far_weight, kernel, hole, stride, padding, dilations, relu, route):
    rows, cols = output_sizes(x.shape[-2:], kernel, stride, padding)
    # Not len(x), which would fix the number of images.
    return x.new_empty(x.shape[0], rows, cols, weight.shape[0]).permute(0, 3, 1, 2)


def _fake_backward(dy, x, weight, far_weight, kernel, hole, stride, padding, dilations, needs, route):
    n, c, h, w = x.shape
    return (
        x.new_empty(n, h, w, c).permute(0, 3, 1, 2) if needs[0] else dy.new_empty(0),
        weight.new_empty(weight.shape) if needs[1] else dy.new_empty(0),
        dy.new_empty(weight.shape[0]) if needs[2] else dy.new_empty(0),
        far_weight.new_empty(far_weight.shape) if needs[3] else dy.new_empty(0),
    )


for name, run, fake in (
    ("surround_conv2d", forward, _fake_forward),
    ("surround_conv2d_backward", backward, _fake_backward),
):
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"glance_fast::{name}", fake, lib=LIBRARY)
LIBRARY.impl("surround_conv2d", differentiable, "Autograd")
LIBRARY.impl("surround_conv2d_backward", SurroundConv2dBackward.apply, "Autograd")
