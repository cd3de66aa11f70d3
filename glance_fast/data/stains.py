"""Random small stains on patches: the negative patches p⁻ of the distortion head (Section 3.2).

A stain has a shape (stroke or blob), a content (flat colour, mottled texture, or a piece of another
patch), an opacity and a soft or hard edge, all drawn at random.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of a patch's side: thinnest and thickest stroke, smallest and largest blob radius.
STROKE = (0.03, 0.12)
BLOB = (0.1, 0.4)
# Stains of a whole image, and the side of the square that each is drawn in, pixels.
IMAGE_STAINS = 6
IMAGE_SIDES = (24, 64)


def stain(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Every patch with one stain.

    Parameters
    ----------
    patches : Tensor
        Float [P, 3, h, w], any scale; P of at least 2, so that pieces of another patch can be had.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    Tensor
        [P, 3, h, w].
    """
    count, _, height, width = patches.shape
    if count < 2:
        raise ValueError(f"patches: at least 2 are needed, got {count}")
    shape = torch.where(
        _uniform((count, 1, 1), 0, 1, generator) < 0.5,
        _strokes(count, height, width, generator),
        _blobs(count, height, width, generator),
    )
    # Pieces of other patches are the likeliest: they look like what real defects are made of.
    kind = torch.randint(0, 4, (count, 1, 1, 1), generator=generator).clamp_max(2)
    content = torch.where(
        kind == 0,
        _colours(patches, generator),
        torch.where(kind == 1, _textures(patches, generator), _pieces(patches, generator)),
    )
    opacity = _uniform((count, 1, 1, 1), 0.5, 1.0, generator)
    # A pasted piece hides what was there.
    opacity = torch.where(kind == 2, torch.ones_like(opacity), opacity)
    return torch.lerp(patches, content, (shape[:, None] * opacity).to(patches.dtype))


def stain_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Whole images with several stains each.

    Parameters
    ----------
    images : Tensor
        Float [B, H, W, 3], 0 to 255; B of at least 2.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    Tensor
        [B, H, W, 3], 0 to 255.
    """
    out = images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    height, width = out.shape[2:]
    side = int(torch.randint(IMAGE_SIDES[0], IMAGE_SIDES[1] + 1, (1,), generator=generator))
    side = min(side, height, width)
    room = torch.tensor([height - side + 1, width - side + 1])
    for _ in range(IMAGE_STAINS):
        corners = (torch.rand(len(out), 2, generator=generator) * room).long().tolist()
        places = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(out, corners, strict=True)]
        for place, stained in zip(places, stain(torch.stack(places), generator), strict=True):
            place.copy_(stained)
    return out.clamp_(0, 255).permute(0, 2, 3, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _log_uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(bounds[0]), math.log(bounds[1]), generator).exp()


def _pixels(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.arange(height, dtype=torch.float32)[:, None], torch.arange(width, dtype=torch.float32)[None]


def _coverage(distance: Tensor, generator: torch.Generator) -> Tensor:
    """Signed distance (inside negative), pixels, to coverage in [0, 1] with an edge of 1 to 3 pixels."""
    edge = _uniform((len(distance), 1, 1), 1, 3, generator)
    return (0.5 - distance / edge).clamp(0, 1)


def _strokes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Coverage [P, h, w] of a line with a slight bend."""
    y, x = _pixels(height, width)
    side = min(height, width)
    one = (count, 1, 1)
    angle = _uniform(one, 0, math.pi, generator)
    along_y, along_x = angle.sin(), angle.cos()
    dy = y - _uniform(one, 0, height, generator)
    dx = x - _uniform(one, 0, width, generator)
    half = _uniform(one, 0.1, 0.6, generator) * side
    along = dy * along_y + dx * along_x
    bend = _uniform(one, -0.3, 0.3, generator) * along.square() / side
    across = dx * along_y - dy * along_x - bend
    beyond = (along.abs() - half).clamp_min(0)
    thickness = (_log_uniform(one, STROKE, generator) * side).clamp_min(0.7)
    return _coverage(torch.hypot(across, beyond) - thickness, generator)


def _blobs(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Coverage [P, h, w] of an ellipse with a wavy outline."""
    y, x = _pixels(height, width)
    one = (count, 1, 1)
    dy = y - _uniform(one, 0, height, generator)
    dx = x - _uniform(one, 0, width, generator)
    theta = torch.atan2(dy, dx)
    radius = (_log_uniform(one, BLOB, generator) * min(height, width)).clamp_min(1.0)
    squeeze = _uniform(one, 0, 0.4, generator) * torch.cos(
        2 * theta - _uniform(one, 0, 2 * math.pi, generator)
    )
    wave = sum(
        _uniform(one, 0, 0.15, generator) * torch.cos(k * theta - _uniform(one, 0, 2 * math.pi, generator))
        for k in (3, 5)
    )
    return _coverage(torch.hypot(dy, dx) - radius * (1 + squeeze + wave), generator)


def _colours(patches: Tensor, generator: torch.Generator) -> Tensor:
    """A flat colour each: the patch's own mean, moved by a visible step that is grey half of the time."""
    mean, deviation = patches.mean((2, 3), keepdim=True), patches.std()
    step = torch.randn((len(patches), 3, 1, 1), generator=generator)
    grey = torch.randn((len(patches), 1, 1, 1), generator=generator)
    step = torch.where(torch.rand(grey.shape, generator=generator) < 0.5, grey.expand_as(step), step)
    return mean + deviation * (step + step.sign())


def _textures(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Mottled noise about the patch's mean, grey half of the time."""
    count, _, height, width = patches.shape
    coarse = torch.randn((count, 3, max(height // 4, 2), max(width // 4, 2)), generator=generator)
    grey = torch.rand((count, 1, 1, 1), generator=generator) < 0.5
    coarse = torch.where(grey, coarse[:, :1].expand_as(coarse), coarse)
    noise = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return patches.mean((2, 3), keepdim=True) + patches.std() * noise


def _pieces(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Another patch of the batch, rolled at random."""
    count, _, height, width = patches.shape
    other = (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count
    y = (torch.arange(height) + torch.randint(0, height, (count, 1), generator=generator)) % height
    x = (torch.arange(width) + torch.randint(0, width, (count, 1), generator=generator)) % width
    return patches[other[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
