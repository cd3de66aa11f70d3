"""Random batches: shifted and brightened images, and several disjoint holes in each.

Everything random in a step is drawn from a generator seeded by (seed, stage, step), so that a run that was
stopped and resumed draws what an uninterrupted one draws.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Draws of an image's holes before chance is given up for a lattice.
TRIES = 50


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """The source of all random numbers of one step.

    Parameters
    ----------
    seed : int
        Of the training.
    stage : str
        The stage's name; another name gives other numbers.
    step : int
        The step's number in its stage.

    Returns
    -------
    torch.Generator
        On the CPU.
    """
    words = np.random.SeedSequence((seed, zlib.crc32(stage.encode()), step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def draw_indices(count: int, batch: int, generator: torch.Generator) -> np.ndarray:
    """Indices of a batch: without repetition where there are enough images.

    Parameters
    ----------
    count : int
        How many images there are.
    batch : int
        How many are drawn.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    ndarray of int64 [batch]
        In [0, count).
    """
    if count >= batch:
        return torch.randperm(count, generator=generator)[:batch].numpy()
    return torch.randint(0, count, (batch,), generator=generator).numpy()


def augment(images: Tensor, shift: int, brightness: float, generator: torch.Generator) -> Tensor:
    """Shift and brighten every image by its own random amount.

    Parameters
    ----------
    images : Tensor
        uint8 [B, H, W, 3].
    shift : int
        Largest translation, pixels; what comes in at the border is mirrored.
    brightness : float
        Largest change, as a share.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    Tensor
        Float32 [B, H, W, 3], 0 to 255.
    """
    count, height, width = images.shape[:3]
    moves = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator).tolist()
    gains = 1 + brightness * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    shift = min(shift, height - 1, width - 1)
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (shift,) * 4, mode="reflect").permute(0, 2, 3, 1)
    shifted = [
        image[min(y, 2 * shift) :, min(x, 2 * shift) :][:height, :width]
        for image, (y, x) in zip(padded, moves, strict=True)
    ]
    return (torch.stack(shifted) * gains).clamp_(0, 255)


def draw_holes(
    batch: int, holes: int, patch: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Disjoint holes at random pixels, any place as likely as its neighbours allow.

    Places are drawn one after another; one that would touch an earlier hole is passed over.

    Parameters
    ----------
    batch, holes : int
        B images, K holes each; K is at most the number of cells of twice the patch that the image has.
    patch : int
        Side of a hole, pixels.
    size : (int, int)
        Height and width of the images.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    Tensor
        Int64 [B, K, 4], (top, left, bottom, right), half-open; between any two there is at least one free
        pixel.
    """
    room = torch.tensor([size[0] - patch + 1, size[1] - patch + 1])
    corners = np.empty((batch, holes, 2), np.int64)
    for image in corners:
        for _ in range(TRIES):
            places = (torch.rand(16 * holes, 2, generator=generator) * room).long().numpy()
            chosen = _apart(places, holes, patch)
            if len(chosen) == holes:
                break
        else:
            chosen = _lattice(holes, patch, size, generator)
        image[:] = chosen
    corner = torch.from_numpy(corners)
    return torch.cat([corner, corner + patch], dim=-1)


def _apart(places: np.ndarray, count: int, patch: int) -> np.ndarray:
    """The first ``count`` of places [N, 2] that leave a free pixel between each other, or as many as do."""
    chosen = np.empty((count, 2), np.int64)
    found = 0
    for place in places:
        if (np.abs(chosen[:found] - place).max(1) > patch).all():
            chosen[found] = place
            found += 1
            if found == count:
                break
    return chosen[:found]


def _lattice(count: int, patch: int, size: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    """Places [count, 2] in cells of their own, where an image is too small for chance."""
    rows, cols = max(1, size[0] // (2 * patch)), max(1, size[1] // (2 * patch))
    cell = torch.randperm(rows * cols, generator=generator)[:count]
    sides = torch.tensor([size[0] // rows, size[1] // cols])
    offset = (torch.rand(count, 2, generator=generator) * (sides - patch).clamp_min(1)).long()
    return (torch.stack([cell // cols, cell % cols], dim=-1) * sides + offset).numpy()


def crop(images: Tensor, holes: Tensor) -> Tensor:
    """The patches under holes.

    Parameters
    ----------
    images : Tensor
        [B, H, W, 3], any dtype.
    holes : Tensor
        Int64 [B, K, 4], squares of one size within the images.

    Returns
    -------
    Tensor
        [B * K, 3, patch, patch], channels-last, in the dtype of ``images``.
    """
    side = torch.arange(int(holes[0, 0, 2] - holes[0, 0, 0]))
    y = (holes[..., 0, None] + side).flatten(0, 1)
    x = (holes[..., 1, None] + side).flatten(0, 1)
    image = torch.arange(len(images)).repeat_interleave(holes.shape[1])
    return images[image[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
