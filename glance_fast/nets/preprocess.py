"""From pixels to what the nets take: the frame, and ImageNet's normalisation."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to normalised float32 [B, 3, H, W], channels-last in memory."""
    middle, gain = _moments(images.device)
    return torch.sub(images, middle).mul_(gain).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(False)
def _moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """What to subtract and what to multiply by, of pixels from 0 to 255.

    Kept, because a copy to a GPU waits for all that was asked of it before.
    """
    mean, std = (torch.tensor(m, dtype=torch.float64) for m in (IMAGENET_MEAN, IMAGENET_STD))
    return (255 * mean).to(device, torch.float32), (1 / (255 * std)).to(device, torch.float32)


def mirrored(images: Tensor, frame: int) -> Tensor:
    """Images [B, H, W, C] continued by their mirror image, [B, H + 2 frame, W + 2 frame, C].

    The outermost pixels are repeated, so that all that is mirrored into a patch lies in that patch as long as
    the frame is at most half of it.
    """
    if not frame:
        return images
    for axis in (1, 2):
        place = torch.arange(-frame, images.shape[axis] + frame, device=images.device)
        place = torch.where(place < 0, -1 - place, place)
        place = torch.where(place >= images.shape[axis], 2 * images.shape[axis] - 1 - place, place)
        images = images.index_select(axis, place)
    return images
