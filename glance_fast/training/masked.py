"""Global-Net over the image, one hole a patch, and the distortion head, trained on crops (Eq. 10)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.stains import stain
from glance_fast.model import Scale
from glance_fast.nets.heads import distortion_loss, inconsistency_loss
from glance_fast.nets.preprocess import to_input
from glance_fast.training.explained import Explained
from glance_fast.training.loop import Stage
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.sampling import augment, crop, draw_holes, draw_indices, step_generator
from glance_fast.training.symmetry import Symmetry, vary

WEIGHT_DECAY = 1e-3
# Draws of holes for each held-out image.
VALIDATION_DRAWS = 4


def global_stage(
    scale: Scale,
    index: int,
    config: Config,
    cache: ImageCache,
    train: np.ndarray,
    held_out: np.ndarray,
    symmetry: Symmetry,
    bf16: bool,
    workers: Workers = ALONE,
) -> Stage:
    """The stage that trains Global-Net and the distortion head of one scale, Eq. 10.

    Patches are stained after they are cut out: Global-Net sees no stain.

    Parameters
    ----------
    scale : Scale
        Of a masked net; its ``global_net`` and ``distortion`` are trained, its ``local`` is not.
    index : int
        Which of the settings' patch sizes it has.
    config : Config
        Settings.
    cache : ImageCache
        Normal images.
    train, held_out : ndarray of int
        Indices into ``cache``: of the images to train on, and of those that the log's figures are of.
    symmetry : Symmetry
        Turns and mirroring that the category allows.
    bf16 : bool
        Whether both nets run in bfloat16.
    workers : Workers
        Who shares the work.

    Returns
    -------
    Stage
        Of ``config.steps`` steps.
    """
    patch, name = config.patches[index], f"global-{config.patches[index]}"
    holes_each = config.holes_of(index)
    device = next(scale.parameters()).device

    def local_features(patches: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            (features,) = workers.divided(lambda share: (scale.local(share)[:, :, 0, 0],), patches)
        return features.float().unflatten(0, (-1, holes_each))

    def chosen(number: int) -> tuple[np.ndarray, torch.Generator]:
        generator = step_generator(config.seed, name, number)
        return train[draw_indices(len(train), config.batch, generator)], generator

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        indices, generator = chosen(number)
        batch = torch.from_numpy(cache.batch(indices))
        # Images that memory does not hold are decoded while this step computes.
        cache.prefetch(chosen(number + 1)[0])
        batch = vary(batch, symmetry, generator)
        images = augment(batch, config.shift, config.brightness, generator)
        holes = draw_holes(config.batch, holes_each, patch, config.image_size, generator)
        x = to_input(images)
        clean = crop(x.permute(0, 2, 3, 1), holes)
        stained = stain(clean, generator)
        both = torch.cat([clean, stained]).to(device).contiguous(memory_format=torch.channels_last)
        local, distorted = local_features(both).chunk(2)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            (global_,) = workers.divided(
                lambda *share: (scale.global_net(*share),), x.to(device), holes.to(device)
            )
        inconsistency = inconsistency_loss(local, global_)
        # One batch for both kinds: BatchNorm must not tell them apart by whose batch it is.
        logits = scale.distortion(torch.cat([local, distorted]), torch.cat([global_, global_]))
        distortion = distortion_loss(*logits.chunk(2))
        loss = inconsistency + config.lambda_t * distortion
        return loss, {
            "inconsistency": float(inconsistency.detach()),
            "distortion": float(distortion.detach()),
        }

    generator = step_generator(config.seed, f"{name}/held out", 0)
    draws = [
        draw_holes(len(held_out), holes_each, patch, config.image_size, generator)
        for _ in range(VALIDATION_DRAWS)
    ]

    def validate() -> dict[str, float]:
        local, distorted, global_ = [], [], []
        generator = step_generator(config.seed, f"{name}/held out", 1)
        for start in range(0, len(held_out), config.batch):
            part = slice(start, start + config.batch)
            x = to_input(torch.from_numpy(cache.batch(held_out[part])))
            clean = torch.cat([crop(x.permute(0, 2, 3, 1), holes[part]) for holes in draws])
            local.append(local_features(clean.to(device)))
            distorted.append(local_features(stain(clean, generator).to(device)))
            for holes in draws:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    global_.append(scale.global_net(x.to(device), holes[part].to(device)))
        z, z_stained, z_g = (torch.cat(parts).flatten(0, 1) for parts in (local, distorted, global_))
        explained = Explained()
        explained.add(z, z_g)
        return {
            "held_out_loss": float(inconsistency_loss(z, z_g)),
            "held_out_distortion": float(
                distortion_loss(scale.distortion(z, z_g), scale.distortion(z_stained, z_g))
            ),
            "r2": explained.r2,
        }

    modules: dict[str, nn.Module] = {"global": scale.global_net, "distortion": scale.distortion}
    parameters = [p for module in modules.values() for p in module.parameters()]
    groups = [{"params": parameters, "lr": config.learning_rate, "weight_decay": WEIGHT_DECAY}]
    return Stage(
        name, config.steps, modules, groups, step, config.batch, validate, divided=(scale.global_net,)
    )
