"""Global-Net: what the surrounding of a patch says the patch should be (Eq. 6).

Every convolution is a partial one under the patch's hole, so the net never sees the patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.kernels.partial_conv import inside_holes, partial_conv2d_inner

STEM_KERNEL, STEM_STRIDE, STEM_PADDING = 8, 4, 2
# Cell i of the map at stride s has its centre at pixel s * i + ORIGIN.
ORIGIN = (STEM_KERNEL - 1) / 2 - STEM_PADDING
RING = 3
FREQUENCIES = 4


class PartialConvNorm(nn.Module):
    """Partial convolution, BatchNorm and ReLU; places that see nothing stay exactly 0.

    BatchNorm is affine outside training and the mask's ratio multiplies the convolution alone, so it is
    folded into weight and bias there.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.norm = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor, holes: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ReLU of the normalised convolution and the residual, [N, O, H', W'], and its holes."""
        if self.training:
            y, holes, seen = partial_conv2d_inner(x, self.weight, None, holes, self.stride, self.padding)
            y = self.norm(y) * (seen > 0).to(y.dtype)
            return F.relu(y if residual is None else y + residual), holes
        weight, bias = self.folded()
        y, holes, _ = partial_conv2d_inner(
            x, weight, bias, holes, self.stride, self.padding, residual, relu=True
        )
        return y, holes

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with BatchNorm's running statistics folded in."""
        gain = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.weight * gain[:, None, None, None], self.norm.bias - self.norm.running_mean * gain


class PartialBlock(nn.Module):
    """Residual block of two partial 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PartialConvNorm(channels, channels, 3, 1, 1)
        self.conv2 = PartialConvNorm(channels, channels, 3, 1, 1)
        # Blocks start near the identity.
        nn.init.constant_(self.conv2.norm.weight, 0.3)

    def forward(self, x: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        y, inner = self.conv1(x, holes)
        return self.conv2(y, inner, residual=x)


class Stage(nn.Module):
    """A partial convolution that halves the map, then residual blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.down = PartialConvNorm(inputs, outputs, 3, 2, 1)
        self.blocks = nn.ModuleList(PartialBlock(outputs) for _ in range(blocks))

    def forward(self, x: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        x, holes = self.down(x, holes)
        for block in self.blocks:
            x, holes = block(x, holes)
        return x, holes


class GlobalNet(nn.Module):
    """Features of patches from their surrounding.

    Parameters
    ----------
    patch : int
        Side of a patch, pixels.
    widths : tuple of int
        Channels at strides 4, 8, 16, 32.
    blocks : tuple of int
        Residual blocks at strides 8, 16, 32.
    readout : {"hole", "pool"}
        What reaches the head. "hole": the pooled last map, the last map at the hole, a 3x3 ring of
        samples around the hole from the maps at strides 8 and 16, and the hole's position. "pool": the
        pooled last map alone.
    features : int
        D.
    """

    def __init__(
        self,
        patch: int,
        widths: tuple[int, int, int, int] = (64, 64, 64, 64),
        blocks: tuple[int, int, int] = (1, 2, 2),
        readout: str = "hole",
        features: int = 128,
    ) -> None:
        super().__init__()
        self.patch, self.readout, self.features = patch, readout, features
        self.stem = PartialConvNorm(3, widths[0], STEM_KERNEL, STEM_STRIDE, STEM_PADDING)
        self.stages = nn.ModuleList(Stage(widths[i], widths[i + 1], blocks[i]) for i in range(3))
        inputs = widths[3]
        if readout == "hole":
            inputs += widths[3] + RING * RING * (widths[1] + widths[2]) + 4 * FREQUENCIES
        self.head = nn.Sequential(
            nn.BatchNorm1d(inputs),
            nn.Linear(inputs, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, features),
        )

    def forward(self, x: Tensor, holes: Tensor) -> Tensor:
        """Global features z_g.

        Parameters
        ----------
        x : Tensor
            Normalised images [N, 3, H, W].
        holes : Tensor
            Int64 [N, K, 4], the patches, all K masked at once: within the image, disjoint, with at least one
            pixel between any two. Not checked here; ``PatchGrid`` and ``draw_holes`` give no others.

        Returns
        -------
        Tensor
            Float32 [N, K, D].
        """
        size, places = x.shape[-2:], holes
        y, holes = self.stem(x.masked_fill(inside_holes(holes, *size), 0), holes)
        maps = []
        for stage in self.stages:
            y, holes = stage(y, holes)
            maps.append(y)
        gathered = self.read(maps, holes, places, size)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(gathered.flatten(0, 1)).unflatten(0, places.shape[:2])

    def read(self, maps: list[Tensor], holes: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        """What the head sees of the maps at strides 8, 16, 32: float32 [N, K, inputs]."""
        last = maps[-1]
        valid = ~inside_holes(holes, *last.shape[-2:])
        # Invalid places are 0, so that the sum needs no mask.
        pooled = last.float().sum((2, 3)) / valid.sum((1, 2, 3))[:, None].clamp_min(1)
        pooled = pooled[:, None].expand(-1, places.shape[1], -1)
        if self.readout == "pool":
            return pooled
        places = places.float()
        center = torch.stack([places[..., 1] + places[..., 3], places[..., 0] + places[..., 2]], -1) / 2 - 0.5
        offsets = torch.arange(RING, device=center.device) - (RING - 1) / 2
        ring = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij")[::-1], -1).reshape(-1, 2)
        around = center[:, :, None]
        parts = [
            pooled,
            sample(last, around, 32),
            # The near ring lies just outside the hole, the far one a cell of its map further.
            sample(maps[0], around + ring * (self.patch / 2 + 8), 8),
            sample(maps[1], around + ring * max(16.0, self.patch / 2), 16),
            fourier(center / center.new_tensor([size[1], size[0]])),
        ]
        return torch.cat(parts, dim=-1)


def sample(features: Tensor, points: Tensor, stride: int) -> Tensor:
    """Bilinear reading of [N, C, h, w] at pixels ``points`` [N, K, R, 2] (x, y): [N, K, R * C]."""
    limits = points.new_tensor([features.shape[-1] - 1, features.shape[-2] - 1])
    cells = torch.minimum(((points - ORIGIN) / stride).clamp_min(0), limits)
    low = torch.minimum(cells.floor(), (limits - 1).clamp_min(0))
    share = (cells - low)[..., None]
    x0, y0 = low.long().unbind(-1)
    x1, y1 = torch.minimum(x0 + 1, limits[0].long()), torch.minimum(y0 + 1, limits[1].long())
    rows = features.permute(0, 2, 3, 1)
    image = torch.arange(len(features), device=features.device)[:, None, None]

    def at(y: Tensor, x: Tensor) -> Tensor:
        return rows[image, y, x].float()

    top = torch.lerp(at(y0, x0), at(y0, x1), share[..., 0, :])
    bottom = torch.lerp(at(y1, x0), at(y1, x1), share[..., 0, :])
    return torch.lerp(top, bottom, share[..., 1, :]).flatten(2)


def fourier(position: Tensor) -> Tensor:
    """Sines and cosines of a position in [0, 1]²: [..., 2] to [..., 4 * FREQUENCIES]."""
    angles = position[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=position.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
