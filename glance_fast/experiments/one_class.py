"""One class of images against all others (section 4.3): a patch is a whole image.

Every image is taken twice: I_L, of the patch's size, goes through Local-Net, and I_G, larger, through
Global-Net, which masks nothing. Global-Net has seen images of the class alone, and says of others what
Local-Net does not. The distortion head learns to tell z_l of the image from that of another one.

Local-Net is fine-tuned by what the teacher says of I_G, the mean over its maps. Half of what it sees is
strange: turned, recoloured, mixed images, so that it goes on saying of other things what the teacher says.
Global-Net starts from random weights: one that has seen photographs of anything predicts other classes, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glance_fast.calibration import Moments
from glance_fast.data.stains import stain
from glance_fast.nets.builtin import builtin_local_net
from glance_fast.nets.heads import DistortionHead, distortion_loss, inconsistency_loss
from glance_fast.nets.masked import MaskedNet
from glance_fast.nets.modules import channels_last
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.training.finetune import Targets, finetune_stage
from glance_fast.training.loop import Stage, optimizer_of, take_step
from glance_fast.training.sampling import augment, draw_indices, step_generator
from glance_fast.training.symmetry import Symmetry, vary

PATCH = 32
MIRRORS = Symmetry(turns=False, mirrors=True)
WEIGHT_DECAY = 1e-2
# Images over which moments of features are taken, and images at a time where nothing is learned.
MEASURED, AT_ONCE = 4000, 64


@dataclass(frozen=True)
class Recipe:
    """What a training of one class can be told.

    Attributes
    ----------
    image_size : int
        Side of I_G, pixels.
    held_out : float
        Share of the images that no net is trained on; scores are standardised by them.
    copies : int
        Of each image, that Local-Net is fine-tuned on; as many strange ones.
    finetune_steps, finetune_batch : int
        Of Local-Net.
    pairs : int
        Copies of each image that Global-Net is trained on.
    steps, batch, learning_rate
        Of Global-Net.
    shift, brightness
        Of copies: largest translation, pixels of I_L, and largest change of brightness, a share.
    lambda_t : float
        Weight of the distortion loss (Eq. 10).
    lambda_s : float
        Share of the inconsistency score in the calibrated blend.
    shrinkage : float
        Of the residual's covariance, towards one without directions.
    """

    image_size: int = 64
    held_out: float = 0.1
    copies: int = 6
    finetune_steps: int = 400
    finetune_batch: int = 128
    pairs: int = 8
    steps: int = 800
    batch: int = 64
    learning_rate: float = 3e-3
    shift: int = 3
    brightness: float = 0.1
    lambda_t: float = 0.3
    lambda_s: float = 0.5
    shrinkage: float = 0.05


class Scores(NamedTuple):
    """Of N images, float32 [N]; higher is more anomalous.

    Attributes
    ----------
    calibrated : ndarray
        The blend of the next two, each standardised on held-out images of the class.
    inconsistency : ndarray
        Length of the whitened residual.
    distortion : ndarray
        Log odds of s_DAD.
    paper : ndarray
        Eq. 13 as it stands, of Eq. 11 and 12 with λ_s = 0.8.
    """

    calibrated: NDArray[np.float32]
    inconsistency: NDArray[np.float32]
    distortion: NDArray[np.float32]
    paper: NDArray[np.float32]


class OneClass(nn.Module):
    """The nets and heads of one class.

    Parameters
    ----------
    recipe : Recipe
    seed : int
        Of the initial weights.
    """

    residual_mean: Tensor
    whitening: Tensor

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.local = builtin_local_net(PATCH).local
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.global_net = MaskedNet(recipe.image_size // 2, features=self.local.features)
            self.distortion = DistortionHead(self.local.features)
        self.register_buffer("residual_mean", torch.zeros(self.local.features))
        self.register_buffer("whitening", torch.eye(self.local.features))
        self.moments = Moments(), Moments()
        channels_last(self)
        self.eval()

    def local_features(self, images: Tensor) -> Tensor:
        """z_l of images, uint8 [B, H, W, 3]: [B, D]."""
        return self.local(resized(images, PATCH))[:, :, 0, 0]

    def global_features(self, images: Tensor) -> Tensor:
        """z_g of images, uint8 [B, H, W, 3]: float32 [B, D]."""
        size = self.recipe.image_size
        nothing = torch.zeros(len(images), 1, 4, dtype=torch.int64, device=images.device)
        edge = size // 4
        middle = torch.tensor([edge, edge, size - edge, size - edge], device=images.device)
        return self.global_net(resized(images, size), nothing, middle.expand_as(nothing))[:, 0]

    @torch.inference_mode()
    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Score images, uint8 [N, H, W, 3], in float32."""
        parts = [self._raw(part.to(self.residual_mean.device)) for part in of(images).split(AT_ONCE)]
        inconsistency, distortion, paper = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        share = self.recipe.lambda_s
        calibrated = share * self.moments[0].standardise(inconsistency) + (1 - share) * self.moments[
            1
        ].standardise(distortion)
        return Scores(*(s.numpy() for s in (calibrated, inconsistency, distortion, paper)))

    def _raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distances, odds, blends = [], [], []
        # An image and its mirror image; the paper's blend is of the first alone.
        for view in (images, images.flip(2)):
            local, other = self.local_features(view), self.global_features(view)
            logits = self.distortion(local, other)
            distances.append(((local - other - self.residual_mean) @ self.whitening.T).square().mean(1))
            odds.append(-logits)
            blends.append(0.8 * (local - other).square().mean(1) + 0.2 * torch.sigmoid(-logits))
        return torch.stack(distances).mean(0).sqrt(), torch.stack(odds).mean(0), blends[0]


def of(images: NDArray[np.uint8]) -> Tensor:
    """The same as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(images))


def resized(images: Tensor, size: int) -> Tensor:
    """Normalised images [B, 3, size, size] of uint8 [B, H, W, 3]."""
    x = to_input(images)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


class WholeTargets(Targets):
    """What the teacher says of whole images: the mean over its maps, of clean and of strange ones.

    Parameters
    ----------
    teacher : Teacher
    clean, strange : ndarray, uint8 [N, H, W, 3]
    size : int
        Side to which the teacher is given them.
    bf16 : bool
        Whether the teacher runs in bfloat16.
    """

    def __init__(
        self,
        teacher: Teacher,
        clean: NDArray[np.uint8],
        strange: NDArray[np.uint8],
        size: int,
        bf16: bool,
    ) -> None:
        self.device = next(teacher.parameters()).device
        self.count = len(clean)
        self.pictures = clean, strange
        said = []
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for pictures in self.pictures:
                for part in of(pictures).split(AT_ONCE):
                    maps = teacher(resized(part.to(self.device), size))
                    said.append(torch.cat([m.float().mean((2, 3)) for m in maps], 1))
        self.said = torch.cat(said)

    def read(self, places: Tensor, patch: int) -> Tensor:
        """The teacher's features, not standardised, [B, 448, 1, 1]."""
        return self.said[places.to(self.device)][:, :, None, None]

    def measured(self) -> Tensor:
        """Places of some images, as many clean as strange."""
        some = torch.linspace(0, self.count - 1, min(MEASURED // 2, self.count)).long()
        return torch.cat([some, some + self.count])


def fit_one_class(
    images: NDArray[np.uint8],
    teacher: Teacher,
    recipe: Recipe,
    *,
    name: str,
    seed: int,
    device: torch.device,
    bf16: bool,
    reporter: Reporter,
) -> OneClass:
    """Train on images of one class.

    Parameters
    ----------
    images : ndarray, uint8 [N, H, W, 3]
        Of the class.
    teacher : Teacher
        On ``device``.
    recipe : Recipe
    name : str
        The class's; another name draws other numbers.
    seed : int
        Of everything random.
    device : torch.device
    bf16 : bool
        Whether the nets are trained in bfloat16.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    OneClass
        Calibrated, in evaluation mode.
    """
    order = torch.randperm(len(images), generator=step_generator(seed, f"{name}/split", 0)).numpy()
    count = max(round(recipe.held_out * len(images)), 2)
    held_out, train = images[order[:count]], images[order[count:]]
    model = OneClass(recipe, seed).to(device)

    def copies(kind: str, number: int, how: Callable[[Tensor, Recipe, torch.Generator], Tensor]) -> NDArray:
        """Copies [number * N, H, W, 3] of the images to train on."""
        rounds = (step_generator(seed, f"{name}/{kind}", k) for k in range(number))
        return np.concatenate([how(of(train), recipe, generator).numpy() for generator in rounds])

    targets = WholeTargets(
        teacher,
        copies("clean", recipe.copies, usual),
        copies("strange", recipe.copies, strange),
        recipe.image_size,
        bf16,
    )
    stage = finetune_stage(
        f"{name}, Local-Net",
        model.local,
        targets,
        recipe.finetune_steps,
        seed,
        bf16,
        recipe.finetune_batch,
    )
    train_stage(stage, reporter)
    pairs = copies("pairs", recipe.pairs, usual)
    features = _local_of(model, pairs[:MEASURED])
    model.local.whiten(features.mean(0), torch.cov(features.T))
    model.local.requires_grad_(False)
    train_stage(global_stage(f"{name}, Global-Net", model, pairs, seed, bf16), reporter)
    calibrate(model, train, held_out)
    return model


def usual(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images uint8 [B, H, W, 3] as the class may show them: mirrored, shifted, brightened a little."""
    varied = augment(vary(images, MIRRORS, generator), recipe.shift, recipe.brightness, generator)
    return varied.round_().byte()


def strange(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images uint8 [B, H, W, 3] as the class does not show them: turned, recoloured, mixed, stained."""
    x = usual(images, recipe, generator).permute(0, 3, 1, 2).float()

    def number(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator)

    def some(share: float, changed: Tensor) -> Tensor:
        return torch.where(number(0, 1) < share, changed, x)

    x = some(0.6, _turned(x, number))
    mixing = torch.eye(3) + 0.4 * torch.randn(len(x), 3, 3, generator=generator)
    middle = x.mean((2, 3), keepdim=True)
    tint = 30 * torch.randn(len(x), 3, 1, 1, generator=generator)
    x = some(0.5, torch.einsum("bij,bjhw->bihw", mixing, x - middle) + middle + tint)
    other = x[torch.randperm(len(x), generator=generator)]
    kind = torch.randint(0, 6, (len(x), 1, 1, 1), generator=generator)
    y, across = (torch.linspace(-1, 1, side) for side in x.shape[2:])
    angle = number(0, 2 * math.pi)
    beyond = y[:, None] * angle.sin() + across * angle.cos() > number(-0.5, 0.5)
    x = torch.where(
        kind == 0,
        torch.lerp(x, other, number(0, 0.5)),
        torch.where(kind == 1, torch.where(beyond, other, x), torch.where(kind == 2, stain(x, generator), x)),
    )
    return x.clamp_(0, 255).round_().byte().permute(0, 2, 3, 1).contiguous()


def _turned(x: Tensor, number: Callable[[float, float], Tensor]) -> Tensor:
    """Images [B, 3, H, W] turned by any angle, moved, and made larger or smaller."""
    angle, zoom = number(-math.pi, math.pi), number(-0.7, 0.3).exp()
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = (cos, -sin, number(-0.3, 0.3)), (sin, cos, number(-0.3, 0.3))
    matrix = torch.stack([torch.cat(row, 3)[:, 0, 0] for row in rows], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def global_stage(name: str, model: OneClass, pairs: NDArray[np.uint8], seed: int, bf16: bool) -> Stage:
    """The stage that trains Global-Net and the distortion head, Eq. 10.

    The negative of Eq. 8 is z_l of another image of the class beside z_g of this one.
    """
    recipe, device = model.recipe, model.residual_mean.device
    local = _local_of(model, pairs)
    variance = float(local.var(0).mean())

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, name, number)
        indices = torch.from_numpy(draw_indices(len(pairs), recipe.batch, generator))
        z_l = local[indices.to(device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z_g = model.global_features(of(pairs[indices.numpy()]).to(device)).float()
        inconsistency = inconsistency_loss(z_l, z_g)
        # One batch for both kinds: BatchNorm must not tell them apart by whose batch it is.
        logits = model.distortion(torch.cat([z_l, z_l.roll(1, 0)]), torch.cat([z_g, z_g]))
        distortion = distortion_loss(*logits.chunk(2))
        parts = {
            "inconsistency": float(inconsistency.detach()),
            "distortion": float(distortion.detach()),
        }
        return inconsistency / variance + recipe.lambda_t * distortion, parts

    modules: dict[str, nn.Module] = {"global": model.global_net, "distortion": model.distortion}
    parameters = [p for module in modules.values() for p in module.parameters()]
    groups = [{"params": parameters, "lr": recipe.learning_rate, "weight_decay": WEIGHT_DECAY}]
    return Stage(name, recipe.steps, modules, groups, step, recipe.batch)


@torch.no_grad()
def _local_of(model: OneClass, images: NDArray[np.uint8]) -> Tensor:
    """z_l of images, float32 [N, D], on the model's device."""
    device = model.residual_mean.device
    return torch.cat([model.local_features(part.to(device)) for part in of(images).split(AT_ONCE)])


def train_stage(stage: Stage, reporter: Reporter) -> None:
    """Train a stage to its end; its modules are left in evaluation mode."""
    optimizer = optimizer_of(stage)
    for module in stage.modules.values():
        module.train()
    with reporter.task(stage.name, stage.steps) as advance:
        for number in range(stage.steps):
            take_step(stage, optimizer, number)
            advance(number + 1)
    for module in stage.modules.values():
        module.eval()


@torch.inference_mode()
def calibrate(model: OneClass, train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> None:
    """Whiten the residual by images trained on, and standardise both scores by images held out."""
    device = model.residual_mean.device
    both = of(np.concatenate([train, train[:, :, ::-1]]))
    residuals = torch.cat(
        [model.local_features(part) - model.global_features(part) for part in both.to(device).split(AT_ONCE)]
    )
    model.residual_mean.copy_(residuals.mean(0))
    model.whitening.copy_(whitening_of(residuals, model.recipe.shrinkage))
    scores = model.score(held_out)
    model.moments = Moments.of(scores.inconsistency), Moments.of(scores.distortion)


def whitening_of(residuals: Tensor, shrinkage: float) -> Tensor:
    """Inverse of the lower Cholesky factor of the covariance [D, D] of residuals [N, D], shrunk."""
    covariance = torch.cov(residuals.double().T)
    identity = torch.eye(len(covariance), dtype=torch.float64, device=residuals.device)
    level = covariance.diagonal().mean().clamp_min(1e-12)
    factor = torch.linalg.cholesky(torch.lerp(covariance, level * identity, shrinkage))
    return torch.linalg.solve_triangular(factor, identity, upper=False).float()
