"""Partial convolution on the CPU: oneDNN's convolution, and an epilogue from integers.

With boxes for holes, ``sum(M)`` at an output is ``rows·cols - Σ_k overlap_rows_k·overlap_cols_k``: no
mask is convolved. With a mask there is nothing to save, and the definition runs as it stands.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.geometry import output_size


def inside(holes: Tensor, height: int, width: int) -> Tensor:
    """Bool [N, 1, height, width]: places that lie in a hole of ``holes`` [N, K, 4]."""
    y = torch.arange(height, device=holes.device)
    x = torch.arange(width, device=holes.device)
    rows = (y >= holes[..., 0, None]) & (y < holes[..., 2, None])  # [N, K, H]
    cols = (x >= holes[..., 1, None]) & (x < holes[..., 3, None])  # [N, K, W]
    # A product over K never holds [N, K, H, W].
    return (rows.float().mT @ cols.float() > 0)[:, None]


def overlap(start: Tensor, stop: Tensor, size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Int [..., outputs]: places of [start, stop) in the window of each output, along one axis."""
    first = torch.arange(output_size(size, kernel, stride, padding), device=start.device) * stride - padding
    low = torch.maximum(start[..., None], first)
    return (torch.minimum(stop[..., None], first + kernel) - low).clamp_min(0)


def count_seen(
    holes: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> Tensor:
    """Int [N, 1, H', W']: sum(M) of every window, for disjoint holes [N, K, 4]."""
    nothing = holes.new_zeros(())
    rows = overlap(nothing, holes.new_tensor(size[0]), size[0], kernel[0], stride, padding)
    cols = overlap(nothing, holes.new_tensor(size[1]), size[1], kernel[1], stride, padding)
    hidden_rows = overlap(holes[..., 0], holes[..., 2], size[0], kernel[0], stride, padding)
    hidden_cols = overlap(holes[..., 1], holes[..., 3], size[1], kernel[1], stride, padding)
    # Small integers are exact in float32, whose batched product is the fast one.
    hidden = hidden_rows.float().mT @ hidden_cols.float()
    return (rows[:, None] * cols - hidden.to(holes.dtype))[:, None]


def partial_conv2d_holes(
    x: Tensor, weight: Tensor, bias: Tensor | None, holes: Tensor, seen: Tensor, stride: int, padding: int
) -> Tensor:
    """Partial convolution under holes [N, K, 4] whose ``seen`` was counted by ``count_seen``."""
    return partial_conv2d_zeroed(
        x.masked_fill(inside(holes, *x.shape[-2:]), 0), weight, bias, seen, stride, padding
    )


def partial_conv2d_zeroed(
    x: Tensor, weight: Tensor, bias: Tensor | None, seen: Tensor, stride: int, padding: int
) -> Tensor:
    """The same of an ``x`` that is 0 in its holes already, as every layer of a net leaves it."""
    y = F.conv2d(x, weight, None, stride, padding)
    full = weight.shape[-2] * weight.shape[-1]
    ratio = full / seen.clamp_min(1).to(torch.promote_types(y.dtype, torch.float32))
    ratio = ratio.to(y.dtype)
    if bias is None:
        # What sees nothing is a sum of zeros.
        return y * ratio
    bias = bias.to(y.dtype)[:, None, None]
    if y.requires_grad:
        return (y * ratio + bias).masked_fill(seen == 0, 0)
    # Nothing else holds y, and copies cost as much as the convolution.
    return y.mul_(ratio).add_(bias).masked_fill_(seen == 0, 0)
