"""Local-Net as a student: with the decoder D and the teacher's moments that Eq. 1 to 3 need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.data.files import read_tensors, write_tensors
from glance_fast.errors import UserError, quoted
from glance_fast.nets.local_net import LAYOUTS, LocalNet
from glance_fast.nets.modules import channels_last
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import TEACHER_FEATURES, Teacher

# Images at a time.
BATCH = 4
# Step between the patches compared with the teacher, pixels.
STRIDE = 8


class Student(nn.Module):
    """A Local-Net, its decoder D, and the teacher's moments that standardise the target.

    Parameters
    ----------
    patch : int
        Side of a patch, pixels.

    Attributes
    ----------
    local : LocalNet
    decoder : nn.Conv2d
        D of Eq. 1: [B, 128, ...] to [B, 384, ...].
    mean, std : Tensor
        [384], of the teacher's features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.local = LocalNet(patch)
        self.decoder = nn.Conv2d(self.local.features, TEACHER_FEATURES, 1)
        self.register_buffer("mean", torch.zeros(TEACHER_FEATURES))
        self.register_buffer("std", torch.ones(TEACHER_FEATURES))
        channels_last(self)

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write the student; ``notes`` are kept as the file's metadata."""
        write_tensors(path, self.state_dict(), {"patch": self.local.patch, **notes})

    @classmethod
    def load(cls, path: Path) -> Student:
        """Read what ``save`` wrote."""
        tensors, notes = read_tensors(path, "a Local-Net comes from glance-fast distill")
        foreign = f"{path}: not a Local-Net of glance-fast distill"
        if "patch" not in notes:
            raise UserError(f"{foreign} (for which patches is not said)")
        if not isinstance(notes["patch"], int) or notes["patch"] not in LAYOUTS:
            raise UserError(
                f"{path}: made for patches of {quoted(notes['patch'])} pixels, which this version has not"
            )
        student = cls(notes["patch"])
        try:
            student.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{foreign} ({str(error).splitlines()[0]})") from error
        return student

    @torch.no_grad()
    def measure_teacher(self, teacher: Teacher, images: Tensor) -> None:
        """Set ``mean`` and ``std`` from images [B, H, W, 3] of 0 to 255."""
        count, total, squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for part in images.split(BATCH):
            features = (
                teacher.at(to_input(part.to(self.mean.device)), *self._centers(part.shape[1:3]))
                .transpose(0, 1)
                .flatten(1)
            )
            count += features.shape[1]
            total += features.sum(1)
            squares += features.square().sum(1)
        self.mean.copy_(total / count)
        self.std.copy_((squares / count - self.mean.square()).clamp_min(1e-8).sqrt())

    @torch.no_grad()
    def target(self, teacher: Teacher, x: Tensor) -> Tensor:
        """What D(z_l) is to give on normalised images [B, 3, H, W]: the standardised teacher."""
        features = teacher.at(x, *self._centers(x.shape[2:]))
        return (features - self.mean[:, None, None]) / self.std[:, None, None]

    def losses(self, teacher: Teacher, images: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
        """l_k (Eq. 1) and l_c (Eq. 2) on images [B, H, W, 3] of 0 to 255.

        l_k is the mean, not the sum, of the squared differences from the standardised teacher.
        """
        x = to_input(images.to(self.mean.device))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            target = self.target(teacher, x)
            features = self.local(x, STRIDE)
            decoded = self.decoder(features)
        return F.mse_loss(decoded.float(), target), compactness(features.float())

    def _centers(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        patch = self.local.patch
        y, x = (torch.arange((s - patch) // STRIDE + 1) * STRIDE + (patch - 1) / 2 for s in size)
        return y, x

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Fold a ZCA whitening over uint8 images [B, H, W, 3] into Local-Net, its inverse into D."""
        parts = [self.local(to_input(part.to(self.mean.device)), STRIDE) for part in images.split(BATCH)]
        features = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
        mean = features.mean(1)
        zca = self.local.whiten(mean, torch.cov(features))
        weight = self.decoder.weight[:, :, 0, 0]
        assert self.decoder.bias is not None
        self.decoder.bias += weight @ mean
        self.decoder.weight.copy_(torch.linalg.solve(zca, weight, left=False)[:, :, None, None])


def compactness(features: Tensor) -> Tensor:
    """l_c, Eq. 2: mean over i ≠ j of the squared correlation of features i and j of [B, D, h, w]."""
    flat = features.transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(flat)
    count = len(correlation)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (count * (count - 1))
