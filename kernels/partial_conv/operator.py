"""Partial convolution as operators of torch: what torch.compile and torch.export see, and autograd.

``torch.library.custom_op`` says the same in fewer lines and costs 30 to 50 microseconds a call, as much as
a small layer; this costs 5 to 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.geometry import output_size
from glance_fast.kernels.dispatch import memory_format
from glance_fast.kernels.partial_conv import cpu

LIBRARY = torch.library.Library("glance_fast", "FRAGMENT")
LIBRARY.define(
    "partial_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor mask, SymInt stride, "
    "SymInt padding, bool relu, bool inner, str route) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "partial_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor mask, Tensor seen, SymInt stride, "
    "SymInt padding, bool inner, bool[] needs, str route) -> (Tensor, Tensor, Tensor)"
)
OPERATOR = torch.ops.glance_fast.partial_conv2d.default
BACKWARD = torch.ops.glance_fast.partial_conv2d_backward.default
# x, weight, bias, residual, mask, stride, padding, relu, inner, route
INPUTS = 10


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor,
    stride: int,
    padding: int,
    relu: bool,
    inner: bool,
    route: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(partial_conv(x) + residual), act ReLU if asked for.

    Parameters
    ----------
    x, weight, bias
        As for ``partial_conv2d``.
    residual : Tensor, optional
        [N, O, H', W'].
    mask : Tensor
        Int64 holes [N, K, 4], or a binary mask [N, 1, H, W] (not by route "cpu").
    inner : bool
        x is 0 in the holes, and they are disjoint, with space between them.
    route : {"cpu", "triton", "cudnn", "auto"}
        Who convolves. "auto" is "triton" or "cudnn", the faster one on the device for the shape; forward and
        backward each choose. They do it here, because what is traced must not read files.

    Returns
    -------
    y : Tensor
        [N, O, H', W'], channels-last where x or weight is.
    seen : Tensor
        int16 [N, 1, H', W'], sum(M).
    after : Tensor
        Int64 holes [N, K, 4] of y; [0] if a mask was given.
    """
    arguments = x, weight, bias, residual, mask, stride, padding, relu, inner
    if route == "cpu":
        return cpu.forward(*arguments)
    from glance_fast.kernels.partial_conv import gpu

    return gpu.forward(*arguments, gpu.by_library(x, weight, stride, route, "fwd"))


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
    route: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; [0] for those that ``needs`` does not ask for."""
    arguments = dy, x, weight, mask, seen, stride, padding, inner, needs
    if route == "cpu":
        return cpu.backward(*arguments)
    from glance_fast.kernels.partial_conv import gpu

    return gpu.backward(*arguments, gpu.by_library(x, weight, stride, route, "bwd"))


class PartialConv2d(torch.autograd.Function):
    """Differentiable in x, weight, bias and residual; once."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            y, seen, after = OPERATOR(*inputs)
        x, weight, _, _, mask, ctx.stride, ctx.padding, relu, ctx.inner, ctx.route = inputs
        ctx.save_for_backward(x, weight, mask, seen, y if relu else None)
        ctx.mark_non_differentiable(seen, after)
        ctx.set_materialize_grads(False)
        return y, seen, after

    @staticmethod
    def backward(ctx, dy, *_):
        grads = [None] * INPUTS
        if dy is None:
            return tuple(grads)
        x, weight, mask, seen, y = ctx.saved_tensors
        if y is not None:
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        needs = list(ctx.needs_input_grad[:3])
        if any(needs):
            found = BACKWARD(dy, x, weight, mask, seen, ctx.stride, ctx.padding, ctx.inner, needs, ctx.route)
            grads[:3] = [g if needed else None for g, needed in zip(found, needs, strict=True)]
        grads[3] = dy if ctx.needs_input_grad[3] else None
        return tuple(grads)


def differentiable(*inputs):
    """The operator where gradients are kept, if any is asked for: keeping them takes 20 microseconds."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:4]):
        return PartialConv2d.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return OPERATOR(*inputs)


class PartialConv2dBackward(torch.autograd.Function):
    """Refuses a second derivative, which would else be missing without a word."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return BACKWARD(*inputs)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("partial_conv2d can be differentiated only once")


def _fake_forward(x, weight, bias, residual, mask, stride, padding, relu, inner, route):
    out = [output_size(s, k, stride, padding) for s, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
    # Not len(x), which would fix the number of images.
    y = x.new_empty(x.shape[0], weight.shape[0], *out)
    y = torch.empty_like(y, memory_format=memory_format(x, weight))
    # Made of tensors, not for a device, which need not be there.
    seen = x.new_empty(x.shape[0], 1, *out, dtype=torch.int16)
    after = mask.new_empty(mask.shape if mask.dim() == 3 else 0, dtype=torch.int64)
    return y, seen, after


def _fake_backward(dy, x, weight, mask, seen, stride, padding, inner, needs, route):
    return (
        torch.empty_like(x, memory_format=memory_format(x)) if needs[0] else dy.new_empty(0),
        torch.empty_like(weight, memory_format=memory_format(weight)) if needs[1] else dy.new_empty(0),
        dy.new_empty(weight.shape[0]) if needs[2] else dy.new_empty(0),
    )


for name, run, fake in (
    ("partial_conv2d", forward, _fake_forward),
    ("partial_conv2d_backward", backward, _fake_backward),
):
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"glance_fast::{name}", fake, lib=LIBRARY)
LIBRARY.impl("partial_conv2d", differentiable, "Autograd")
LIBRARY.impl("partial_conv2d_backward", PartialConv2dBackward.apply, "Autograd")
