"""Random stains: the negative patches p⁻ of the distortion head (Section 3.2).

A stain has a shape (stroke or blob), a content (flat colour, mottled texture, a piece of something else, or
another tint), an opacity and a soft or hard edge, all drawn at random. ``stain`` puts a small one on every
patch, as the paper does; ``stain_image`` a few of any size on a whole image, so that a patch's surrounding is
stained too, as real defects have it.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Value = TypeVar("Value", np.uint8, np.float32)

# Share of a patch's side: thinnest and thickest stroke, smallest and largest blob radius.
STROKE = (0.03, 0.12)
BLOB = (0.1, 0.4)
# Stains of a whole image: how many at most, the smallest across, pixels, and the largest, share of the side.
MOST_STAINS = 3
SMALLEST, LARGEST = 4.0, 0.5
# A stroke's length and half width, pixels.
LENGTHS, WIDTHS = (20.0, 120.0), (0.7, 2.5)
# Grey levels by which a pixel must change to count as stained.
VISIBLE = 4.0


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


def stain_image(
    image: NDArray[Value], others: NDArray[Value], rng: np.random.Generator
) -> tuple[NDArray[Value], NDArray[np.bool_]]:
    """A whole image with one to three stains, as small as a speck or as large as half a side.

    Parameters
    ----------
    image : ndarray, uint8 or float32 of 0 to 255 [H, W, 3]
    others : ndarray, of the same type, [N, H, W, 3]
        Images that pieces are taken from; ``image`` may be among them.
    rng : numpy.random.Generator
        Source of every random number.

    Returns
    -------
    stained : ndarray, of the same type, [H, W, 3]
    mask : ndarray, bool [H, W]
        Pixels that a stain changed visibly; a later one may have hidden it.
    """
    height, width = image.shape[:2]
    out = image.astype(np.float32)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(rng.integers(1, MOST_STAINS + 1)):
        inside = _stroke(rng, height, width) if rng.random() < 0.25 else _blob(rng, height, width)
        if not inside.any():
            continue
        softness = rng.uniform(0.3, 1.5)
        rows, cols = (_span(inside, axis, math.ceil(4 * softness)) for axis in (0, 1))
        place, inside = out[rows, cols], inside[rows, cols]
        content, opacity = _content(rng, place, inside, others, rows, cols)
        cover = opacity * ndimage.gaussian_filter(inside.astype(np.float32), softness)[..., None]
        changed = cover * (content - place)
        out[rows, cols] = place + changed
        mask[rows, cols] |= np.abs(changed).mean(2) > VISIBLE
    out = out.clip(0, 255)
    return (np.rint(out) if image.dtype == np.uint8 else out).astype(image.dtype), mask


def _span(inside: NDArray[np.bool_], axis: int, margin: int) -> slice:
    """The slice of an axis that is used, and a margin."""
    where = np.flatnonzero(inside.any(1 - axis))
    return slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, inside.shape[axis]))


def _turned(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray, NDArray]:
    """Coordinates along and across a random direction, about a random point."""
    angle, y, x = rng.uniform(0, math.pi), rng.uniform(0, height), rng.uniform(0, width)
    dy, dx = np.arange(height)[:, None] - y, np.arange(width) - x
    return dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)


def _stroke(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """A line with a slight bend."""
    along, across = _turned(rng, height, width)
    length, half = rng.uniform(*LENGTHS), rng.uniform(*WIDTHS)
    across = across - rng.uniform(-0.25, 0.25) * along**2 / length
    return np.hypot(np.maximum(np.abs(along) - length / 2, 0), across) < half


def _blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """An ellipse with a wavy outline, every size as likely as its double."""
    size = math.exp(rng.uniform(math.log(SMALLEST), math.log(max(LARGEST * min(height, width), SMALLEST))))
    along, across = _turned(rng, height, width)
    across = across / rng.uniform(0.4, 1)
    theta = np.arctan2(across, along)
    waves = ((k, rng.uniform(0, 0.25) / k, rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4, 5))
    outline = 1 + sum(depth * np.cos(k * theta + start) for k, depth, start in waves)
    return np.hypot(along, across) < outline * size / 2


def _content(
    rng: np.random.Generator,
    place: NDArray[np.float32],
    inside: NDArray[np.bool_],
    others: NDArray[Value],
    rows: slice,
    cols: slice,
) -> tuple[NDArray[np.floating], float]:
    """What a stain consists of, [h, w, 3], and its opacity."""
    level, opacity = place[inside].mean(0), rng.uniform(0.4, 1)
    kind = rng.integers(0, 5)
    if kind == 0:
        return np.broadcast_to(level + rng.normal(0, 40, 3), place.shape), opacity
    if kind == 1:
        coarse = rng.normal(0, rng.uniform(8, 40), [side // 4 + 2 for side in inside.shape])
        mottled = ndimage.zoom(coarse, 4, order=1)[: inside.shape[0], : inside.shape[1], None]
        return level + mottled, opacity
    if kind == 2:
        return place + rng.normal(0, 25, 3), opacity
    # Pieces of the parts themselves are the likeliest: they look like what real defects are made of. A pasted
    # piece hides what was there.
    other = others[rng.integers(len(others))]
    other = other[:, ::-1] if rng.random() < 0.5 else other
    if rng.random() < 0.3:
        other = np.rot90(other) if other.shape[0] == other.shape[1] else other[::-1]
    shift = [rng.integers(side) for side in other.shape[:2]]
    y, x = (np.arange(s.start, s.stop) + d for s, d in zip((rows, cols), shift, strict=True))
    piece = other[np.ix_(y % other.shape[0], x % other.shape[1])].astype(np.float32)
    # By its brightness alone it is not to be found always.
    return piece + (level - piece[inside].mean(0) if rng.random() < 0.3 else 0), 1.0


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
