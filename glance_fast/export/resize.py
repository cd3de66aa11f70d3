"""Pillow's Lanczos as products of matrices made from the image's size, in a graph: equal to the bit.

Pillow averages whole boxes of pixels first where an image is to be more than six times smaller, then filters
rows and then columns, and rounds after each of the three. Its weights are integers, and so are sums of pixels
weighed by them: float64 holds all of them exactly.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ``reducing_gap`` of ``glance_fast.data.images.resize``.
GAP = 3
# A weight of 1, in Pillow's integers.
ONE = 1 << 22
# Pillow divides by a number of pixels as by a share of this.
WHOLE = 1 << 24
# Of the filter, in pixels of the smaller image on each side.
SUPPORT = 3


class Resize(nn.Module):
    """What ``glance_fast.data.images.resize`` does, for images of any size.

    Parameters
    ----------
    height, width : int
        To resize to, pixels.
    """

    pi: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        # A number in the code would be in float32 in an ONNX file.
        self.register_buffer("pi", torch.tensor(math.pi, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to float32 [B, 3, height, width], whole numbers from 0 to 255."""
        down = Boxes(images.shape[1], self.height)
        across = Boxes(images.shape[2], self.width)
        x = averaged(images.permute(0, 3, 1, 2), down, across)
        x = rounded(x @ weights(across, self.width, self.pi).mT)
        return rounded(weights(down, self.height, self.pi) @ x).float()


class DeepResize(nn.Module):
    """What ``glance_fast.data.depth.fitted`` and ``levels`` do of uint16 images of any size.

    Pillow filters them in float32, with weights that are no integers, and rounds nothing but to float32.

    Parameters
    ----------
    height, width : int
        To resize to, pixels.
    white : int
        Stored value that becomes 255.
    """

    pi: Tensor
    white: Tensor
    gain: Tensor

    def __init__(self, height: int, width: int, white: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.register_buffer("pi", torch.tensor(math.pi, dtype=torch.float64))
        self.register_buffer("white", torch.tensor(float(white)))
        self.register_buffer("gain", torch.tensor(255 / white))

    def forward(self, images: Tensor) -> Tensor:
        """uint16 [B, H, W, 3] to float32 [B, 3, height, width], from 0 to 255."""
        down = Boxes(images.shape[1], self.height)
        across = Boxes(images.shape[2], self.width)
        x = images.float().minimum(self.white).permute(0, 3, 1, 2)
        x = (summed(x.double(), down, across) / (down.pixels[:, None] * across.pixels)).float()
        x = (x.double() @ shares(across, self.width, self.pi).mT).float()
        x = (shares(down, self.height, self.pi) @ x.double()).float()
        return x.round().clamp(min=0).minimum(self.white) * self.gain


class Boxes:
    """How an axis is cut into boxes of pixels, each to be averaged.

    Attributes
    ----------
    size : int
        Pixels.
    factor : Tensor
        Int64 []: pixels of a box; the last may hold fewer.
    side, count : int
        The factor, and how many boxes there are. They are read from tensors: torch.export then asks nothing
        of them, while it would find one case of many in what it computes from sizes.
    """

    def __init__(self, size: int, wanted: int) -> None:
        self.size = size
        self.factor = torch.scalar_tensor(size // (GAP * wanted), dtype=torch.int64).clamp(min=1)
        self.side = _at_least_one(self.factor)
        self.count = _at_least_one((size + self.factor - 1) // self.factor)
        torch._check(self.beyond >= 0)

    @property
    def beyond(self) -> int:
        """Pixels that the last box lacks."""
        return self.count * self.side - self.size

    @property
    def pixels(self) -> Tensor:
        """Int64 [count]: of each box."""
        return (self.size - torch.arange(self.count) * self.factor).clamp(max=self.factor)


def _at_least_one(number: Tensor) -> int:
    # Not int(), which would ask which number it is.
    value = cast(int, number.item())
    torch._check(value >= 1)
    return value


def averaged(x: Tensor, down: Boxes, across: Boxes) -> Tensor:
    """Means of boxes of uint8 [B, C, H, W], rounded; float64."""
    # Sums of up to 65,536 pixels are exact in float32.
    x = summed(x.float(), down, across)
    count = down.pixels[:, None] * across.pixels
    share = (WHOLE / count.float()).floor().double()
    return ((x.double() + count // 2) * share / WHOLE).floor()


def summed(x: Tensor, down: Boxes, across: Boxes) -> Tensor:
    """Sums of boxes of [B, C, H, W]."""
    x = F.pad(x, (0, across.beyond, 0, down.beyond))
    x = x.reshape(*x.shape[:2], down.count, down.side, across.count * across.side).sum(3)
    return x.reshape(*x.shape[:3], across.count, across.side).sum(4)


def weights(boxes: Boxes, wanted: int, pi: Tensor) -> Tensor:
    """Pillow's integer weights of the boxes along an axis, float64 [wanted, boxes]."""
    weight = shares(boxes, wanted, pi) * ONE
    return torch.where(weight < 0, (weight - 0.5).ceil(), (weight + 0.5).floor())


def shares(boxes: Boxes, wanted: int, pi: Tensor) -> Tensor:
    """What each box along an axis counts by, float64 [wanted, boxes]; of a pixel they add up to 1."""
    # Pillow hands the length over in float32.
    length = (torch.scalar_tensor(boxes.size, dtype=torch.float64) / boxes.factor).float().double()
    scale = length / wanted
    spread = scale.clamp_min(1)
    center = (torch.arange(wanted, dtype=torch.float64)[:, None] + 0.5) * scale
    place = torch.arange(boxes.count, dtype=torch.float64)
    first, last = ((center + side * SUPPORT * spread + 0.5).floor() for side in (-1, 1))
    x = (place + 0.5 - center) / spread
    inside = (place >= first) & (place < last) & (x >= -SUPPORT) & (x < SUPPORT)
    weight = torch.where(inside, _sinc(x * pi) * _sinc(x / SUPPORT * pi), 0.0)
    return weight / weight.sum(1, keepdim=True)


def _sinc(x: Tensor) -> Tensor:
    zero = x == 0
    return torch.where(zero, 1.0, x.sin() / torch.where(zero, 1.0, x))


def rounded(x: Tensor) -> Tensor:
    """Sums of weighed pixels as pixels: whole numbers from 0 to 255, float64."""
    return ((x + ONE // 2) / ONE).floor().clamp(0, 255)
