"""Local-Net's fine-tuning on the category: Eq. 3 with what the teacher says of its images, computed once.

Half of what it sees is stained, so that it learns what the teacher makes of things that the category does not
show: on clean images alone it unlearns to see them. The teacher's first layer is among what it imitates, for
the fine structure of textures is lost in the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.data.depth import Levels
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import STRIDE, compactness
from glance_fast.nets.teacher import ALL_FEATURES, Teacher, read_maps
from glance_fast.training.loop import Stage
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.sampling import step_generator
from glance_fast.training.variants import Variants

BATCH = 4
RATE, WEIGHT_DECAY = 1e-3, 1e-4
# λ_k and λ_c of Eq. 3.
LAMBDA_K, LAMBDA_C = 1.0, 1.0
# Variants that are trained on, and those over which targets are standardised and Local-Net is whitened: of
# images of 256x256 pixels so many, of larger ones as many as have about the same number of patches.
MOST, MEASURED, LEAST_MEASURED = 160, 40, 8
# Images at a time where nothing is learned.
AT_ONCE = 8
# Added to the first decoder's normal equations, as a share of the number of patches.
RIDGE = 1e-4


def measured(pictures: Levels) -> int:
    """Of how many pictures of this size something is measured at once.

    Parameters
    ----------
    pictures : ndarray, ``Levels`` [N, H, W, 3]
        Only their height and width count.

    Returns
    -------
    int
        May be more than N.
    """
    height, width = pictures.shape[1:3]
    return min(max(MEASURED * 256**2 // (height * width), LEAST_MEASURED), MEASURED)


class Targets:
    """What the teacher says of clean and of stained variants, standardised.

    Parameters
    ----------
    teacher : Teacher
        ResNet-18 through layer 3; it also says on which device is computed.
    clean, stained : ndarray, ``Levels`` [N, H, W, 3]
        Need not be the same variants.
    limit : int
        Bytes that its maps may take; fewer variants are used where they are larger.
    bf16 : bool
        Whether the teacher runs in bfloat16.
    progress : callable, optional
        Called with (images done, images in all).
    workers : Workers
        Who shares the work.
    """

    def __init__(
        self,
        teacher: Teacher,
        clean: Levels,
        stained: Levels,
        limit: int,
        bf16: bool,
        progress: Callable[[int, int], None] | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.device = next(teacher.parameters()).device
        # Numbers a cell of stride 8, in half precision, clean and stained.
        a_variant = 4 * (64 + 128 + 256 // 4) * (clean[0, ..., 0].size // 64)
        self.count = max(min(len(clean), len(stained), MOST, limit // max(a_variant, 1)), 2)
        self.pictures = clean[: self.count], stained[: self.count]
        parts: list[tuple[Tensor, ...]] = []
        for kind, pictures in enumerate(self.pictures):
            for start in range(0, self.count, AT_ONCE):
                x = to_input(torch.from_numpy(pictures[start : start + AT_ONCE]).to(self.device))
                with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                    maps = workers.divided(lambda share: tuple(m.half() for m in teacher(share)), x)
                parts.append(tuple(m.cpu() for m in maps))
                if progress:
                    progress(kind * self.count + min(start + AT_ONCE, self.count), 2 * self.count)
        # [2 * count, ...]: first the clean ones.
        self.maps = [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def images(self, places: Tensor) -> Tensor:
        """``Levels`` [B, H, W, 3] of places in [0, 2 * count)."""
        chosen = [self.pictures[int(i) // self.count][int(i) % self.count] for i in places]
        return torch.from_numpy(np.stack(chosen)).to(self.device)

    def read(self, places: Tensor, patch: int) -> Tensor:
        """The teacher's features at all patches of a size, not standardised, [B, 448, rows, cols]."""
        y, x = (
            torch.arange((side - patch) // STRIDE + 1) * STRIDE + (patch - 1) / 2
            for side in self.pictures[0].shape[1:3]
        )
        return read_maps([m[places].to(self.device).float() for m in self.maps], y, x)

    def measured(self) -> Tensor:
        """Places of some variants, as many clean as stained."""
        few = min(measured(self.pictures[0]), self.count)
        some = torch.linspace(0, self.count - 1, few).long()
        return torch.cat([some, some + self.count])


class Imitation(nn.Module):
    """D of Eq. 1, and the moments that standardise the teacher.

    Parameters
    ----------
    local : LocalNet
        What it reads.
    targets : Targets
        It starts as their best linear reading of ``local``'s features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, local: LocalNet, targets: Targets) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(local.features, ALL_FEATURES, 1)
        places = targets.measured()
        wanted = targets.read(places, local.patch)
        self.register_buffer("mean", wanted.mean((0, 2, 3)))
        self.register_buffer("std", wanted.std((0, 2, 3)).clamp_min(1e-4))
        with torch.no_grad():
            parts = [local(to_input(targets.images(part)), STRIDE) for part in places.split(AT_ONCE)]
            z, t = (m.transpose(0, 1).flatten(1).double() for m in (torch.cat(parts), self.scaled(wanted)))
            z = torch.cat([z, torch.ones_like(z[:1])])
            square = z @ z.T + RIDGE * z.shape[1] * torch.eye(len(z), dtype=z.dtype, device=z.device)
            solved = torch.linalg.solve(square, z @ t.T).T
            self.decoder.weight.copy_(solved[:, :-1, None, None])
            assert self.decoder.bias is not None
            self.decoder.bias.copy_(solved[:, -1])

    def scaled(self, wanted: Tensor) -> Tensor:
        """The teacher's features [B, 448, ...], standardised."""
        return (wanted - self.mean[:, None, None]) / self.std[:, None, None]


def finetune_stage(
    name: str,
    local: LocalNet,
    targets: Targets,
    steps: int,
    seed: int,
    bf16: bool,
    batch: int = BATCH,
    workers: Workers = ALONE,
) -> Stage:
    """The stage that trains ``local`` to say of the category's patches what the teacher says (Eq. 3).

    Half of each batch is clean, half stained.

    Parameters
    ----------
    name : str
        The stage's, in the log and for checkpoints.
    local : LocalNet
        Trained in place.
    targets : Targets
        What the teacher says.
    steps : int
        Of the training.
    seed : int
        Of every random number.
    bf16 : bool
        Whether ``local`` runs in bfloat16.
    batch : int
        Images a step.
    workers : Workers
        Who shares the work.

    Returns
    -------
    Stage
        Of ``steps`` steps.
    """
    imitation = Imitation(local, targets).to(targets.device)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, name, number)
        places = torch.randint(0, targets.count, (batch,), generator=generator)
        places[batch // 2 :] += targets.count
        wanted = imitation.scaled(targets.read(places, local.patch))
        x = to_input(targets.images(places))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            (features,) = workers.divided(lambda share: (local(share, STRIDE),), x)
            decoded = imitation.decoder(features)
        fit, compact = F.mse_loss(decoded.float(), wanted), compactness(features.float())
        parts = {"imitation": float(fit.detach()), "compactness": float(compact.detach())}
        return LAMBDA_K * fit + LAMBDA_C * compact, parts

    parameters = [*local.parameters(), *imitation.decoder.parameters()]
    groups = [{"params": parameters, "lr": RATE, "weight_decay": WEIGHT_DECAY}]
    return Stage(name, steps, {"local": local, "decoder": imitation}, groups, step, batch)


@torch.no_grad()
def whiten(local: LocalNet, variants: Variants) -> None:
    """Fold a whitening over clean variants into Local-Net.

    Parameters
    ----------
    local : LocalNet
        Changed in place.
    variants : Variants
        Its first clean ones are measured.
    """
    device = next(local.parameters()).device
    images = torch.from_numpy(variants.clean[: 3 * measured(variants.clean)])
    parts = [local(to_input(part.to(device)), STRIDE) for part in images.split(AT_ONCE)]
    features = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
    local.whiten(features.mean(1), torch.cov(features))
