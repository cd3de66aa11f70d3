"""Global-Net before it sees a category: what surroundings say of patches in photographs of anything."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.nets.builtin import builtin_local_net
from glance_fast.nets.global_start import GlobalStart
from glance_fast.nets.heads import inconsistency_loss
from glance_fast.nets.preprocess import to_input
from glance_fast.training.explained import Explained
from glance_fast.training.loop import Stage
from glance_fast.training.sampling import augment, crop, draw_holes, draw_indices, step_generator
from glance_fast.training.symmetry import Symmetry, vary

RATE, WEIGHT_DECAY = 1e-2, 1e-3
SHIFT, BRIGHTNESS = 16, 0.2


def global_start_stage(
    start: GlobalStart,
    cache: ImageCache,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    steps: int,
    symmetry: Symmetry,
    seed: int,
    bf16: bool,
) -> Stage:
    """The stage that trains ``start`` to give what the built-in Local-Nets give (Eq. 7), sizes in turn.

    Parameters
    ----------
    start : GlobalStart
        Trained in place.
    cache : ImageCache
        Photographs of anything.
    train, held_out : ndarray of int
        Indices into ``cache``: of the photographs to train on, and of those that the log's figures are of.
    steps : int
        Of the training, of both patch sizes together.
    symmetry : Symmetry
        Turns and mirroring of the photographs.
    seed : int
        Of every random number.
    bf16 : bool
        Whether the nets run in bfloat16.

    Returns
    -------
    Stage
        Of ``steps`` steps.
    """
    config = Config(net="pyramid")
    device = next(start.parameters()).device
    locals_ = {patch: builtin_local_net(patch).local.eval().to(device) for patch in config.patches}

    def pair(images: Tensor, scale: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z_l and z_g of random patches of one size in images [B, H, W, 3]."""
        patch, count = config.patches[scale], config.holes_of(scale)
        size = images.shape[1], images.shape[2]
        holes = draw_holes(len(images), count, patch, size, generator)
        x = to_input(images)
        patches = crop(x.permute(0, 2, 3, 1), holes).to(device)
        patches = patches.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                local = locals_[patch](patches)[:, :, 0, 0].float()
            return local.unflatten(0, (-1, count)), start(x.to(device), holes.to(device), patch)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, "global", number)
        indices = train[draw_indices(len(train), config.batch, generator)]
        images = vary(torch.from_numpy(cache.batch(indices)), symmetry, generator)
        images = augment(images, SHIFT, BRIGHTNESS, generator)
        local, global_ = pair(images, number % len(config.patches), generator)
        loss = inconsistency_loss(local, global_)
        return loss, {"inconsistency": float(loss.detach())}

    def validate() -> dict[str, float]:
        images = torch.from_numpy(cache.batch(held_out))
        generator = step_generator(seed, "global/held out", 0)
        errors, shares = [], []
        for scale in range(len(config.patches)):
            parts = [pair(part, scale, generator) for part in images.split(config.batch)]
            local, global_ = (torch.cat(features).flatten(0, 1) for features in zip(*parts, strict=True))
            errors.append(float(inconsistency_loss(local, global_)))
            explained = Explained()
            explained.add(local, global_)
            shares.append(explained.r2)
        return {"held_out_loss": float(np.mean(errors)), "r2": float(np.mean(shares))}

    groups = [{"params": list(start.parameters()), "lr": RATE, "weight_decay": WEIGHT_DECAY}]
    return Stage("global", steps, {"start": start}, groups, step, config.batch, validate)
