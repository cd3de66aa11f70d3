"""Partial convolution around a hole on the CPU: the ring's four strips by oneDNN, far places by products.

    y  = (Σ_strips conv(x, W_strip) + Σ_far x W_far) · T / seen + b      where seen > 0, 0 elsewhere
    g  = dy · T / seen                                                   where seen > 0, 0 elsewhere
    dX = Σ_strips convᵀ(g, W_strip) + Σ_far g W_farᵀ     dW alike, strip by strip     db = Σ dy where seen > 0

Every strip and far place is computed for those outputs alone that it has places inside the input for: on a
grid of 31 x 31 that spares an eighth of the ring and two fifths of places 8 and 12 away. A product a place
is slower than a strip as it passes over y more often, and faster where there is but one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.kernels.surround_conv.reference import count_seen, output_sizes, places


class Span(NamedTuple):
    """Along one axis: outputs [first, last), the input [start, stop) they read, and zeros around that."""

    first: int
    last: int
    start: int
    stop: int
    before: int
    after: int


class Strip(NamedTuple):
    """A box of the ring, and where its weights lie: rows of ``pitch`` places, from ``begin`` in each."""

    top: int
    left: int
    rows: int
    cols: int
    start: int
    pitch: int
    begin: int

    def of(self, weight: Tensor) -> Tensor:
        """Its weights, a view [O, C, rows, cols] of [O, C, T]."""
        box = weight[:, :, self.start : self.start + self.rows * self.pitch]
        return box.unflatten(2, (self.rows, self.pitch))[..., self.begin : self.begin + self.cols]


class Layer(NamedTuple):
    """What a geometry comes to on maps of one size."""

    out: tuple[int, int]
    strips: tuple[tuple[Strip, Span, Span], ...]
    # The place's index in the far weight, and its spans.
    far: tuple[tuple[int, Span, Span], ...]
    # [H', W']: T / seen, 0 where nothing is seen; and where that is, None if nowhere.
    ratio: Tensor
    blind: Tensor | None


def span(size: int, out: int, stride: int, first: int, length: int) -> Span:
    """Of places [first, first + length) from stride · output."""
    low = max(-((first + length - 1) // stride), 0)
    high = min((size - 1 - first) // stride + 1, out)
    if high <= low:
        return Span(0, 0, 0, 0, 0, 0)
    start, stop = low * stride + first, (high - 1) * stride + first + length
    return Span(low, high, max(start, 0), min(stop, size), max(-start, 0), max(stop - size, 0))


@lru_cache(maxsize=64)
def layer_of(
    size: tuple[int, int],
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    dtype: torch.dtype,
) -> Layer:
    """Strips and far places, each with the outputs that it reaches; those that reach none are left out."""
    (kh, kw), (hh, hw) = kernel, hole
    out = output_sizes(size, kernel, stride, padding)
    r, c = (kh - hh) // 2, (kw - hw) // 2
    side = r * kw
    strips = (
        Strip(0, 0, r, kw, 0, kw, 0),
        Strip(r, 0, hh, c, side, 2 * c, 0),
        Strip(r, kw - c, hh, c, side, 2 * c, c),
        Strip(r + hh, 0, r, kw, side + hh * 2 * c, kw, 0),
    )

    def spans(top: int, left: int, rows: int, cols: int) -> tuple[Span, Span]:
        boxes = zip(size, out, padding, (top, left), (rows, cols), strict=True)
        down, across = (span(s, o, stride, first - p, length) for s, o, p, first, length in boxes)
        return down, across

    def reached(found: Iterator) -> tuple:
        return tuple(f for f in found if all(s.last for s in f[1:]))

    where = places(kernel, hole, dilations)
    ring = kh * kw - hh * hw
    seen = count_seen(size, kernel, hole, stride, padding, dilations, torch.device("cpu"))
    ratio = (len(where) / seen.to(dtype)).masked_fill_(seen == 0, 0)
    return Layer(
        out,
        reached((s, *spans(*s[:4])) for s in strips if s.rows and s.cols),
        reached((i, *spans(*place, 1, 1)) for i, place in enumerate(where[ring:])),
        ratio,
        seen == 0 if bool((seen == 0).any()) else None,
    )


def window(x: Tensor, rows: Span, cols: Span) -> Tensor:
    """What outputs read of x, with the zeros around it."""
    frame = cols.before, cols.after, rows.before, rows.after
    box = x[:, :, rows.start : rows.stop, cols.start : cols.stop]
    return F.pad(box, frame) if any(frame) else box


def at_place(x: Tensor, rows: Span, cols: Span, stride: int) -> Tensor:
    """A view [N, rows, cols, C] of what outputs read of x at a single place."""
    return x[:, :, rows.start : rows.stop : stride, cols.start : cols.stop : stride].permute(0, 2, 3, 1)


def outputs(y: Tensor, rows: Span, cols: Span) -> Tensor:
    """A view [N, O, rows, cols] of y."""
    return y[:, :, rows.first : rows.last, cols.first : cols.last]


def types(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """What products are formed in, and what they are summed up in."""
    # oneDNN is slow at float16, and at bfloat16 where the processor has no instructions for it.
    slow = dtype == torch.float16 or (
        dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.float32 if slow else dtype, torch.promote_types(dtype, torch.float32)


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as it is, if it is that already."""
    return x.to(dtype=dtype).contiguous(memory_format=torch.channels_last)


def empty_last(n: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Zeros [N, C, H, W], channels-last whatever the sizes are."""
    return torch.zeros(n, *size, channels, dtype=dtype).permute(0, 3, 1, 2)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    far_weight: Tensor | None,
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    relu: bool,
) -> Tensor:
    """y [N, O, H', W']; see ``operator.py``."""
    product, wide = types(x.dtype)
    layer = layer_of(tuple(x.shape[-2:]), kernel, hole, stride, padding, dilations, wide)
    y = empty_last(len(x), len(weight), layer.out, wide)
    if product == torch.bfloat16 and x.shape[1] % 2:
        x, weight = paired(x), paired(weight)
        far_weight = None if far_weight is None else paired(far_weight)
    inputs, weight = channels_last(x, product), weight.to(product)
    for strip, rows, cols in layer.strips:
        outputs(y, rows, cols).add_(F.conv2d(window(inputs, rows, cols), strip.of(weight), None, stride))
    if layer.far:
        assert far_weight is not None
        taps = far_weight.to(product).permute(2, 1, 0).contiguous()  # [places, C, O]
    for i, rows, cols in layer.far:
        outputs(y, rows, cols).permute(0, 2, 3, 1).add_(at_place(inputs, rows, cols, stride) @ taps[i])
    y *= layer.ratio
    if bias is not None:
        y += bias.to(wide)[:, None, None]
    if layer.blind is not None:
        y.masked_fill_(layer.blind, 0)
    return (y.relu_() if relu else y).to(x.dtype)


def paired(t: Tensor) -> Tensor:
    """t with a channel of zeros after its last, on axis 1.

    bfloat16 instructions multiply channels by twos. Beside the last of an odd number oneDNN reads what lies
    next in memory, the next pixel, and counts it 0 times, which is NaN where that pixel is.
    """
    return torch.cat([t, torch.zeros_like(t[:, :1])], 1)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    far_weight: Tensor | None,
    kernel: tuple[int, int],
    hole: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilations: tuple[int, ...],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and far_weight; see ``operator.py``."""
    product, wide = types(x.dtype)
    layer = layer_of(tuple(x.shape[-2:]), kernel, hole, stride, padding, dilations, wide)
    g = channels_last(dy, wide)
    if layer.blind is not None:
        g = g.masked_fill(layer.blind, 0)
    db = g.sum((0, 2, 3)).to(x.dtype) if needs[2] else None
    g = (g * layer.ratio).to(product)
    inputs, weights = channels_last(x, product), weight.to(product)
    dx = empty_last(len(x), x.shape[1], (x.shape[-2], x.shape[-1]), wide) if needs[0] else None
    # Zeros, for what reaches no output.
    dw = weight.new_zeros(weight.shape) if needs[1] else None
    df = far_weight.new_zeros(far_weight.shape) if far_weight is not None and needs[3] else None
    for strip, rows, cols in layer.strips if needs[0] or needs[1] else ():
        found = torch.ops.aten.convolution_backward(
            outputs(g, rows, cols), window(inputs, rows, cols), strip.of(weights), None,
            [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1, [needs[0], needs[1], False],
        )  # fmt: skip
        if dx is not None:
            box = dx[:, :, rows.start : rows.stop, cols.start : cols.stop]
            box += found[0][:, :, rows.before :, cols.before :][:, :, : box.shape[2], : box.shape[3]]
        if dw is not None:
            strip.of(dw).copy_(found[1])
    for i, rows, cols in layer.far if needs[0] or needs[3] else ():
        assert far_weight is not None
        part = outputs(g, rows, cols).permute(0, 2, 3, 1)
        if dx is not None:
            at_place(dx, rows, cols, stride).add_(part @ far_weight[:, :, i].to(product))
        if df is not None:
            read = at_place(inputs, rows, cols, stride).flatten(0, 2)
            df[:, :, i] = part.flatten(0, 2).mT @ read
    dx = None if dx is None else dx.to(x.dtype)
    dx, dw, db, df = (dy.new_empty(0) if grad is None else grad for grad in (dx, dw, db, df))
    return dx, dw, db, df
