"""The teacher: ResNet-18 through layer3, the source of what Local-Net imitates (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.data.files import check_finite, read_tensors, write_tensors
from glance_fast.errors import UserError
from glance_fast.nets.batch_norm import as_affine
from glance_fast.nets.modules import channels_last

HINT = (
    "needed is a ResNet-18 as .safetensors; a state dictionary saved by PyTorch is converted once with "
    "safetensors.torch.save_file"
)
# layer2 and layer3, side by side: what Local-Net is distilled from. Fine-tuning takes layer1 in too.
TEACHER_FEATURES = 128 + 256
ALL_FEATURES = 64 + TEACHER_FEATURES
# Of the maps of layers 1 to 3 that ``Teacher`` gives: step between cells and centre of the first, pixels.
STEPS = ((8, 2.0), (8, 0.0), (16, 0.0))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; BatchNorm is folded into weights and biases."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class Teacher(nn.Module):
    """ResNet-18 through layer3 as a map of features over whole images.

    Names of parameters are torchvision's, so that its state dictionary fits once BatchNorm is folded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of layers 1 to 3 of normalised images [B, 3, H, W].

        layer1 as 2x2 means [B, 64, H/8, W/8], layer2 as 3x3 means [B, 128, H/8, W/8], and layer3
        [B, 256, H/16, W/16].
        """
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)
        first = self.layer1(x)
        second = self.layer2(first)
        around = F.avg_pool2d(second, 3, 1, 1, count_include_pad=False)
        return F.avg_pool2d(first, 2, ceil_mode=True), around, self.layer3(second)

    def at(self, x: Tensor, centers_y: Tensor, centers_x: Tensor) -> Tensor:
        """Features of layers 2 and 3 around given centres, read bilinearly.

        Parameters
        ----------
        x : Tensor
            Normalised images [B, 3, H, W].
        centers_y, centers_x : Tensor
            Pixel coordinates, [rows] and [cols].

        Returns
        -------
        Tensor
            [B, 384, rows, cols].
        """
        return read_maps(self(x)[1:], centers_y, centers_x)


def read_maps(maps: Sequence[Tensor], centers_y: Tensor, centers_x: Tensor) -> Tensor:
    """The last layers' maps that ``Teacher`` gave, read bilinearly at centres: [B, C, rows, cols]."""
    steps = STEPS[len(STEPS) - len(maps) :]
    return torch.cat(
        [
            sample_grid(features, (centers_y - first) / step, (centers_x - first) / step)
            for features, (step, first) in zip(maps, steps, strict=True)
        ],
        dim=1,
    )


def sample_grid(features: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Bilinear reading of [B, C, h, w] at fractional cells rows x cols: [B, C, len(rows), len(cols)]."""
    size_y, size_x = features.shape[-2:]
    y = rows.to(features.device, torch.float32) * (2 / max(size_y - 1, 1)) - 1
    x = cols.to(features.device, torch.float32) * (2 / max(size_x - 1, 1)) - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    grid = grid.expand(len(features), -1, -1, -1)
    return F.grid_sample(features.float(), grid, padding_mode="border", align_corners=True)


def load_teacher(path: str | Path) -> Teacher:
    """Read a teacher's weights.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file: torchvision's whole ResNet-18 state dictionary, or one with BatchNorm
        already folded into ``weight`` and ``bias``. More than is needed (fc, layer4) is passed over.

    Raises
    ------
    UserError
        The file is missing, no safetensors file, or not such a net.
    """
    path = Path(path)
    state, _ = read_tensors(path, HINT)
    if "bn1.weight" in state:
        try:
            state = fold_batch_norm(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return _filled(Teacher(), state, path)


def save_teacher(teacher: Teacher, path: Path, notes: dict[str, Any]) -> None:
    """Write a teacher in half precision; ``notes`` are kept as the file's metadata."""
    write_tensors(path, {name: value.half() for name, value in teacher.state_dict().items()}, notes)


def _filled(teacher: Teacher, state: dict[str, Tensor], path: Path) -> Teacher:
    wanted = teacher.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{path}: not a ResNet-18: {name} is missing or has another shape")
    # Folding may have divided by nothing.
    check_finite(path, {name: state[name] for name in wanted}, HINT)
    teacher.load_state_dict({name: state[name].float() for name in wanted})
    return channels_last(teacher.eval().requires_grad_(False))


def fold_batch_norm(state: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Fold every BatchNorm of a torchvision ResNet state dictionary into the convolution before it."""
    folded: dict[str, Tensor] = {}
    for name, weight in state.items():
        if not name.endswith(".weight") or weight.dim() != 4:
            continue
        conv = name.removesuffix(".weight")
        norm = conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
        try:
            scale, bias = state[f"{norm}.weight"], state[f"{norm}.bias"]
            mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            gain, folded[f"{conv}.bias"] = as_affine(scale, bias, mean, variance, eps)
            folded[name] = weight * gain[:, None, None, None]
        except KeyError as error:
            raise UserError(f"not a torchvision ResNet-18: {error.args[0]} is missing") from error
        except (RuntimeError, IndexError) as error:
            raise UserError(f"not a torchvision ResNet-18: {norm} does not fit {conv}") from error
    return folded
