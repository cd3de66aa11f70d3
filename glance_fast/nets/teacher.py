"""The teacher: ResNet-18 through layer3, the source of what Local-Net imitates (Eq. 1)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from glance_fast.data.files import write_tensors
from glance_fast.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# layer2 and layer3, side by side.
TEACHER_FEATURES = 128 + 256
# Channels inside the blocks of the assistant's layer3.
ASSISTANT_INNER = 128


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to normalised float32 [B, 3, H, W], channels-last in memory."""
    middle, gain = _moments(images.device)
    return torch.sub(images, middle).mul_(gain).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(False)
def _moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """What to subtract and what to multiply by, of pixels from 0 to 255.

    Kept, because a copy to a GPU waits for all that was asked of it before.
    """
    mean, std = (torch.tensor(m, dtype=torch.float64) for m in (IMAGENET_MEAN, IMAGENET_STD))
    return tuple(t.to(device, torch.float32) for t in (255 * mean, 1 / (255 * std)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; BatchNorm is folded into weights and biases."""

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or outputs
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if stride > 1 else None

    @torch.no_grad()
    def start_from(self, block: BasicBlock) -> None:
        """Take the weights of a block that is as wide or wider inside: of the inner channels the heaviest."""
        weight = block.conv1.weight.flatten(1).norm(dim=1) * block.conv2.weight.transpose(0, 1).flatten(
            1
        ).norm(dim=1)
        kept = weight.topk(self.conv1.out_channels).indices.sort().values
        self.conv1.weight.copy_(block.conv1.weight[kept])
        self.conv1.bias.copy_(block.conv1.bias[kept])
        self.conv2.weight.copy_(block.conv2.weight[:, kept])
        self.conv2.bias.copy_(block.conv2.bias)
        if self.downsample is not None:
            self.downsample.load_state_dict(block.downsample.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class Teacher(nn.Module):
    """ResNet-18 through layer3 as a map of features over whole images.

    Names of parameters are torchvision's, so that its state dictionary fits once BatchNorm is folded.

    Parameters
    ----------
    inner : int, optional
        Channels inside the blocks of layer3. Fewer than 256 make the assistant: a teacher small enough to
        travel with the package, distilled from the whole one.
    """

    def __init__(self, inner: int = 256) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2, inner), BasicBlock(256, 256, 1, inner))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] to layer2 [B, 128, H/8, W/8] (3x3 means) and layer3 at stride 16."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)
        second = self.layer2(self.layer1(x))
        return F.avg_pool2d(second, 3, 1, 1, count_include_pad=False), self.layer3(second)

    def at(self, x: Tensor, centers_y: Tensor, centers_x: Tensor) -> Tensor:
        """Features around given centres, read bilinearly.

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
        return torch.cat(
            [
                sample_grid(features, centers_y / stride, centers_x / stride)
                for features, stride in zip(self(x), (8, 16), strict=True)
            ],
            dim=1,
        )

    def start_from(self, teacher: Teacher) -> None:
        """Take another teacher's weights, of the inner channels the heaviest."""
        self.conv1.load_state_dict(teacher.conv1.state_dict())
        for mine, theirs in zip(
            (*self.layer1, *self.layer2, *self.layer3),
            (*teacher.layer1, *teacher.layer2, *teacher.layer3),
            strict=True,
        ):
            mine.start_from(theirs)


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
    if not path.is_file():
        raise UserError(f"{path}: no such file; --teacher-weights names a ResNet-18 as .safetensors")
    try:
        state = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable .safetensors file ({error}); a state dictionary saved by PyTorch "
            "is converted once with safetensors.torch.save_file"
        ) from error
    if "bn1.weight" in state:
        try:
            state = fold_batch_norm(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return _filled(Teacher(), state, path)


def load_assistant(path: str | Path) -> Teacher:
    """Read what ``save_assistant`` wrote."""
    path = Path(path)
    try:
        return _filled(Teacher(ASSISTANT_INNER), load_file(path), path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable assistant ({error})") from error


def save_assistant(assistant: Teacher, path: Path, notes: dict[str, Any]) -> None:
    """Write an assistant in half precision; ``notes`` are kept as the file's metadata."""
    write_tensors(path, {name: value.half() for name, value in assistant.state_dict().items()}, notes)


def _filled(teacher: Teacher, state: dict[str, Tensor], path: Path) -> Teacher:
    wanted = teacher.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{path}: not a ResNet-18: {name} is missing or has another shape")
        if not torch.isfinite(state[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    teacher.load_state_dict({name: state[name].float() for name in wanted})
    return teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def fold_batch_norm(state: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Fold every BatchNorm of a torchvision ResNet state dictionary into the convolution before it."""
    folded: dict[str, Tensor] = {}
    for name, weight in state.items():
        if not name.endswith(".weight") or weight.dim() != 4:
            continue
        conv = name.removesuffix(".weight")
        norm = conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
        try:
            gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + eps)
            folded[name] = weight * gain[:, None, None, None]
            folded[f"{conv}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        except KeyError as error:
            raise UserError(f"not a torchvision ResNet-18: {error.args[0]} is missing") from error
        except (RuntimeError, IndexError) as error:
            raise UserError(f"not a torchvision ResNet-18: {norm} does not fit {conv}") from error
    return folded
