"""Which turns and mirrorings a category allows: found from normal images, used as augmentation.

An image of a category at any angle is as normal turned as it is unturned; an aligned one is not. Local-Net's
features tell: with a Gaussian per grid position fitted to training images, held-out images are compared with
their own turned selves by their mean squared Mahalanobis distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glance_fast.geometry import PatchGrid
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.preprocess import mirrored, to_input
from glance_fast.training.whitening import whitenings

# Distances up to this many times those of plain images count as harmless. A guess from few: 1.0 to 1.1 on
# grass, gravel and transistors turned by any angle; 3.5 (turned) on brick; 1.5 (mirrored) and 8.5 (turned) on
# transistor as it is, which set the bound.
HARMLESS = 1.4
# The bound is FEW / images where that is more: few images teach Global-Net too little to do without turned
# copies. 28 loose cookies (mirrored 1.4, turned 2.1) gained 2 points of PRO on their test images by turns.
FEW = 80
SHRINKAGE = 0.5
BATCH = 8


class Symmetry(NamedTuple):
    """Whether images may be turned by quarters, and mirrored, without leaving their category."""

    turns: bool
    mirrors: bool


def find_symmetry(local: LocalNet, grid: PatchGrid, train: Tensor, held_out: Tensor) -> tuple[Symmetry, str]:
    """Measure what a category allows.

    Parameters
    ----------
    local : LocalNet
        In evaluation mode.
    grid : PatchGrid
        Its patches; quarter turns need a square image.
    train, held_out : Tensor
        uint8 [N, H, W, 3].

    Returns
    -------
    symmetry : Symmetry
    said : str
        The measured ratios, in words.
    """
    features = torch.cat([_features(local, grid, part) for part in train.split(BATCH)])
    fitted = list(whitenings(features, grid, SHRINKAGE))

    def distance(images: Tensor) -> float:
        total = 0.0
        for part in images.split(BATCH):
            found = _features(local, grid, part)
            for places, mean, whitening in fitted:
                apart = (found[:, places] - mean).transpose(0, 1)
                total += float(torch.bmm(apart, whitening.mT).square().mean(2).sum())
        return total / len(grid) / len(images)

    plain = distance(held_out)
    mirrored = distance(held_out.flip(2)) / plain
    turned = max(distance(turn(held_out, k)) for k in (1, 2, 3)) / plain if grid.rows == grid.cols else None
    bound = max(HARMLESS, FEW / len(train))
    symmetry = Symmetry(turned is not None and turned <= bound, mirrored <= bound)
    allowed = " and ".join(
        name for name, yes in zip(("quarter turns", "mirroring"), symmetry, strict=True) if yes
    )
    ratios = f"mirrored {mirrored:.1f}" + ("" if turned is None else f", turned {turned:.1f}")
    return (
        symmetry,
        f"augmentation: {allowed or 'neither turns nor mirroring'} (distance over that of plain: {ratios})",
    )


def turn(images: Tensor, quarters: int) -> Tensor:
    """Images [B, H, W, 3] turned by quarters."""
    return torch.rot90(images, quarters, (1, 2))


def vary(images: Tensor, symmetry: Symmetry, generator: torch.Generator) -> Tensor:
    """Every image [B, H, W, 3] turned and mirrored at random as far as its category allows."""
    if symmetry.turns:
        quarters = torch.randint(0, 4, (len(images),), generator=generator).tolist()
        images = torch.stack(
            [torch.rot90(image, k, (0, 1)) for image, k in zip(images, quarters, strict=True)]
        )
    if symmetry.mirrors:
        flips = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flips[:, None, None, None], images.flip(2), images)
    return images


@torch.inference_mode()
def _features(local: LocalNet, grid: PatchGrid, images: Tensor) -> Tensor:
    x = to_input(mirrored(images.to(next(local.parameters()).device), grid.frame))
    return local(x, grid.stride).float().flatten(2).mT.cpu()
