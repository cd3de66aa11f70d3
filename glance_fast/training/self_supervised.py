"""Local-Net's training without a teacher: two views of a patch agree (section 5 of the paper).

    l = λ_i l_i + λ_v l_v + λ_c l_c

l_i is the mean squared difference between the features of two views of one patch. l_v is the mean over
features of max(0, 1 - their standard deviation over patches), so that they do not shrink to a constant. l_c
is compactness, Eq. 2, so that they do not all say the same. That is VICReg (Bardes et al., ICLR 2022) without
its expander, on correlations in place of covariances, with that paper's weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16, pick_device
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import Student, compactness
from glance_fast.progress import Reporter
from glance_fast.training.distill import SAMPLE, SIZE, Photographs, open_photographs, train_alone
from glance_fast.training.loop import COLUMNS, Stage
from glance_fast.training.sampling import draw_indices, step_generator

# Images a step, and patches of each.
IMAGES, PATCHES = 16, 16
# 1e-3 left a larger held-out loss on photographs.
RATE, WEIGHT_DECAY = 3e-3, 1e-4
# VICReg's 25 : 25 : 1, where its last term sums 127 correlations a feature and Eq. 2 is their mean.
LAMBDA_I, LAMBDA_V, LAMBDA_C = 1.0, 1.0, 127 / 25
# What a view changes at most: its place, as a share of the patch, and its side, as a factor; then its light.
SHIFT, SCALE = 1 / 8, 1.25
BRIGHTNESS, CONTRAST, COLOUR = 0.2, 0.2, 0.1
# Under the root of a standard deviation.
EPS = 1e-4
PARTS = ("agreement", "variance")


def draw_views(images: Tensor, patch: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two views each of random patches.

    A view is shifted, scaled, mirrored, lighter or darker, of more or less contrast, tinted and blurred, each
    by chance. Half of all views keep their scale and lie on whole pixels, as patches do that are scored.

    Parameters
    ----------
    images : Tensor
        uint8 [B, H, W, 3].
    patch : int
        Side of a view, pixels.
    count : int
        Patches of each image.
    generator : torch.Generator
        Source of every random number.

    Returns
    -------
    tuple of Tensor
        Two of float32 [B * count, patch, patch, 3], 0 to 255; patches of an image follow each other.
    """
    height, width = images.shape[1:3]
    pixels = images.permute(0, 3, 1, 2).float()
    room = torch.tensor([height - patch + 1, width - patch + 1])
    corners = (torch.rand(len(images), count, 2, generator=generator) * room).floor()
    return _view(pixels, corners, patch, generator), _view(pixels, corners, patch, generator)


def _view(pixels: Tensor, corners: Tensor, patch: int, generator: torch.Generator) -> Tensor:
    """A view of the patches with these top left corners [B, K, 2]."""

    def spread(*shape: int) -> Tensor:
        return 2 * torch.rand(*corners.shape[:2], *shape, generator=generator) - 1

    def chance() -> Tensor:
        return torch.rand(corners.shape[:2], generator=generator) < 0.5

    shift = patch * SHIFT * spread(2)
    scale = SCALE ** spread()
    sharp = chance()
    shift = torch.where(sharp[..., None], shift.round(), shift)
    scale = torch.where(sharp, 1.0, scale)
    mirror = torch.where(chance(), -1.0, 1.0)
    side = torch.arange(patch) - (patch - 1) / 2
    middle = corners + shift + (patch - 1) / 2
    y = middle[..., :1] + scale[..., None] * side
    x = middle[..., 1:] + (scale * mirror)[..., None] * side
    views = _sampled(pixels, y, x)
    gain, contrast = (1 + a * spread().flatten() for a in (BRIGHTNESS, CONTRAST))
    tint = 1 + COLOUR * spread(3).flatten(0, 1)
    blur = spread().clamp_min(0).flatten()
    gain, contrast, tint, blur = (
        a.to(pixels.device).reshape(len(views), -1, 1, 1) for a in (gain, contrast, tint, blur)
    )
    views = torch.lerp(views, _blurred(views), blur)
    mean = views.mean((1, 2, 3), keepdim=True)
    light = gain * tint
    return views.mul_(contrast * light).add_(mean * (1 - contrast) * light).clamp_(0, 255).permute(0, 2, 3, 1)


def _sampled(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] at rows y and columns x [B, K, S]: [B * K, 3, S, S]; mirrored at the border."""
    (images, count, side), (height, width) = y.shape, pixels.shape[2:]
    y, x = 2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1
    places = torch.stack(
        [x[:, :, None].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], dim=-1
    )
    found = F.grid_sample(
        pixels, places.flatten(1, 2).to(pixels.device), padding_mode="reflection", align_corners=True
    )
    return found.reshape(images, 3, count, side, side).transpose(1, 2).flatten(0, 1)


def _blurred(views: Tensor) -> Tensor:
    """Views [N, 3, S, S] under the binomial filter 1, 2, 1."""
    padded = F.pad(views, (1, 1, 1, 1), mode="reflect")
    # Sums, for oneDNN is slow at a channel alone.
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def losses(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """l_i, l_v and l_c (Eq. 2) of the features [N, D, 1, 1] of two views of N patches."""
    both = first, second
    spread = [1 - (z.flatten(1).var(0) + EPS).sqrt() for z in both]
    variance = torch.stack([s.clamp_min(0).mean() for s in spread]).mean()
    compact = torch.stack([compactness(z) for z in both]).mean()
    return F.mse_loss(first, second), variance, compact


def random_student(patch: int, seed: int) -> Student:
    """A Local-Net of random weights, and a decoder that says nothing: there is no teacher to speak for."""
    torch.manual_seed(seed)
    student = Student(patch)
    for module in student.local.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for parameter in student.decoder.parameters():
        nn.init.zeros_(parameter)
    return student


def self_supervised_stage(
    name: str, student: Student, photographs: Photographs, *, steps: int, seed: int, bf16: bool
) -> Stage:
    """The stage that trains the Local-Net of ``student`` by views of patches."""
    cache, train, held_out = photographs
    local, device = student.local, student.mean.device

    def features(indices: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(cache.batch(indices)).to(device)
        views = torch.cat(draw_views(images, local.patch, PATCHES, generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            first, second = local(to_input(views)).chunk(2)
        return first.float(), second.float()

    def weighted(agreement: Tensor, variance: Tensor, compact: Tensor) -> Tensor:
        return LAMBDA_I * agreement + LAMBDA_V * variance + LAMBDA_C * compact

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, name, number)
        parts = losses(*features(train[draw_indices(len(train), IMAGES, generator)], generator))
        named = dict(zip((*PARTS, "compactness"), (float(p.detach()) for p in parts), strict=True))
        return weighted(*parts), named

    def validate() -> dict[str, float]:
        # The same views every time.
        generator = step_generator(seed, f"{name} held out", 0)
        parts = np.array_split(held_out, -(-len(held_out) // IMAGES))
        first, second = (torch.cat(z) for z in zip(*(features(p, generator) for p in parts), strict=True))
        agreement, variance, compact = losses(first, second)
        # Of what the features vary by, the share that one view tells of the other.
        spread = torch.cat([first, second]).var(0).mean()
        return {
            "held_out_loss": float(weighted(agreement, variance, compact)),
            "r2": 1 - float(agreement / spread),
        }

    groups = [{"params": list(local.parameters()), "lr": RATE, "weight_decay": WEIGHT_DECAY}]
    return Stage(name, steps, {"local": local}, groups, step, IMAGES, validate)


def distill_self_supervised(
    paths: Sequence[Path],
    out: Path,
    work: Path,
    patch: int,
    *,
    steps: int,
    seed: int,
    reporter: Reporter,
    device: str | torch.device = "auto",
    size: tuple[int, int] = (SIZE, SIZE),
) -> str:
    """Make a Local-Net from photographs alone: ``glance-fast distill --self-supervised``.

    Parameters
    ----------
    paths : sequence of Path
        Photographs of anything, or the normal images of a category; those that cannot be read are reported
        and left out.
    size : (int, int)
        Height and width that they are resized to, pixels.
    out, work, patch, steps, seed, reporter, device
        As for ``distill_local``.

    Returns
    -------
    str
        Figures of the result in one line.

    Raises
    ------
    UserError
        As for ``distill_local``.
    """
    device = pick_device(device)
    name = f"local-{patch}"
    given = {"student": name, "teacher": None, "steps": steps, "seed": seed}
    with open_photographs(paths, work, given, reporter, size) as photographs:
        student = random_student(patch, seed).to(device)
        # What varies by 1 and is not correlated need not learn that first.
        whiten(student, photographs.cache, photographs.train)
        bf16 = has_bf16(device)
        stage = self_supervised_stage(name, student, photographs, steps=steps, seed=seed, bf16=bf16)
        loss = train_alone(stage, work, reporter, (*COLUMNS, *PARTS))
        whiten(student, photographs.cache, photographs.train)
        notes = {"teacher": None, "photographs": len(photographs.cache)}
        student.save(out, notes | {"steps": steps, "seed": seed, "held_out_loss": loss})
    shutil.rmtree(work)
    return f"{steps} steps, held-out loss {loss:.3f}"


def whiten(student: Student, cache: ImageCache, indices: np.ndarray) -> None:
    """Whiten a student over some of these images, as a distilled one is."""
    student.whiten(torch.from_numpy(cache.batch(indices[:SAMPLE])))
