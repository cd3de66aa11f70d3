"""Partial convolution (Eq. 5) as it is defined: a mask, convolved.

    y = (W · (X ⊙ M)) · k_h k_w / sum(M) + b    where sum(M) > 0
    y = 0                                        elsewhere

``sum(M)`` runs over the kernel's window; zero padding counts as masked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.geometry import output_size, shrink
from glance_fast.kernels.dispatch import refuse


def partial_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Partial convolution of [N, C, H, W] under a mask [N, 1, H, W]; returns y and the new mask."""
    valid_in = mask != 0
    kernel = torch.ones_like(weight[:1, :1])
    seen = F.conv2d(valid_in.to(weight.dtype), kernel, None, stride, padding)
    # where, not a product: a NaN under the mask must not spread.
    y = F.conv2d(torch.where(valid_in, x, 0), weight, None, stride, padding)
    y = y * (kernel.numel() / seen.clamp_min(1))
    if bias is not None:
        y = y + bias[:, None, None]
    valid = seen > 0
    return torch.where(valid, y, 0), valid.to(mask.dtype)


def inside(holes: Tensor, height: int, width: int) -> Tensor:
    """Bool [N, 1, height, width]: places that lie in a hole of ``holes`` [N, K, 4]."""
    y = torch.arange(height, device=holes.device)
    x = torch.arange(width, device=holes.device)
    rows = (y >= holes[..., 0, None]) & (y < holes[..., 2, None])  # [N, K, H]
    cols = (x >= holes[..., 1, None]) & (x < holes[..., 3, None])  # [N, K, W]
    # A product over K never holds [N, K, H, W].
    return (rows.float().mT @ cols.float() > 0)[:, None]


def clip(holes: Tensor, height: int, width: int) -> Tensor:
    """Int64 [N, K, 4]: holes cut off at the border, the empty ones as zeros."""
    # Sums of sides and sizes do not fit into the narrow types.
    # Side by side, because numbers that are put into a tensor of a GPU wait for it.
    sides = zip(holes.long().unbind(-1), (height, width, height, width), strict=True)
    holes = torch.stack([side.clamp(0, most) for side, most in sides], dim=-1)
    empty = (holes[..., 2] <= holes[..., 0]) | (holes[..., 3] <= holes[..., 1])
    return holes.masked_fill(empty[..., None], 0)


def holes_after(
    holes: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> Tensor:
    """Clipped holes [N, K, 4] after a convolution of an input of ``size``."""
    top, bottom = shrink(holes[..., 0], holes[..., 2], size[0], kernel[0], stride, padding)
    left, right = shrink(holes[..., 1], holes[..., 3], size[1], kernel[1], stride, padding)
    out = (output_size(s, k, stride, padding) for s, k in zip(size, kernel, strict=True))
    return clip(torch.stack([top, left, bottom, right], dim=-1), *out)


def check_holes(holes: Tensor, valid: Tensor, after: Tensor) -> None:
    """Refuse clipped holes [N, K, 4] that cannot be carried on as boxes.

    ``valid`` [N, 1, H', W'] is what is seen of the output, ``after`` [N, K, 4] its holes.
    """

    def areas(boxes: Tensor) -> Tensor:
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])

    low = torch.maximum(holes[:, :, None, :2], holes[:, None, :, :2])
    high = torch.minimum(holes[:, :, None, 2:], holes[:, None, :, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    refuse((common.sum((1, 2)) != areas(holes).sum(1)).any(), OVERLAP)
    refuse(((valid == 0).sum((1, 2, 3)) != areas(after).sum(1)).any(), TOGETHER)


OVERLAP = "mask: holes of one image overlap; give disjoint boxes, or a mask [N, 1, H, W]"
TOGETHER = (
    "mask: two holes together hide all that one output sees; leave space between them, "
    "or give a mask [N, 1, H, W]"
)
