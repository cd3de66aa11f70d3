"""Partial convolution (Eq. 5) as it is defined: a mask, convolved.

    y = (W · (X ⊙ M)) · k_h k_w / sum(M) + b    where sum(M) > 0
    y = 0                                        elsewhere

``sum(M)`` runs over the kernel's window; zero padding counts as masked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
