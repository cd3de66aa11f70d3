"""Global-Net: what the surrounding of a patch says the patch should be (Eq. 6).

Every convolution is a partial one under the patch's hole, so the net never sees the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.kernels.partial_conv import inside_holes, partial_conv2d_inner
from glance_fast.kernels.window_conv import WindowedMap
from glance_fast.kernels.window_sample import window_sample_inner, window_sample_reference
from glance_fast.nets.batch_norm import affine_of
from glance_fast.nets.modules import module_list

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
        gain, shift = affine_of(self.norm)
        return self.weight * gain[:, None, None, None], shift


class Layer(NamedTuple):
    """A convolution in its place in a net."""

    module: PartialConvNorm
    residual: bool = False  # the input of the layer before is added
    read: bool = False  # the head reads the output


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


class Level(nn.Module):
    """A partial convolution that halves the map, then residual blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.down = PartialConvNorm(inputs, outputs, 3, 2, 1)
        self.blocks = module_list(PartialBlock(outputs) for _ in range(blocks))

    def forward(self, x: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        x, holes = self.down(x, holes)
        for block in self.blocks:
            x, holes = block(x, holes)
        return x, holes


class ReadPlaces(NamedTuple):
    """Where the head reads the maps for K patches of N images, and what tells it the patches' position."""

    hole: Tensor  # [N, K, 1, 2], (x, y) in places of the map at stride 32
    near: Tensor  # [N, K, 9, 2], of the map at stride 8
    far: Tensor  # [N, K, 9, 2], of the map at stride 16
    position: Tensor  # [N, K, 4 * FREQUENCIES]


class MaskedNet(nn.Module):
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
        widths: Sequence[int] = (64, 64, 64, 64),
        blocks: tuple[int, int, int] = (1, 1, 1),
        readout: str = "hole",
        features: int = 128,
    ) -> None:
        super().__init__()
        self.patch, self.readout, self.features = patch, readout, features
        self.stem = PartialConvNorm(3, widths[0], STEM_KERNEL, STEM_STRIDE, STEM_PADDING)
        self.stages = module_list(Level(widths[i], widths[i + 1], blocks[i]) for i in range(3))
        inputs = widths[3]
        if readout == "hole":
            inputs += widths[3] + RING * RING * (widths[1] + widths[2]) + 4 * FREQUENCIES
        self.inputs = inputs
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

    def layers(self) -> list[Layer]:
        """All convolutions in order, each an input of the next."""
        layers = [Layer(self.stem)]
        for stage in self.stages:
            layers.append(Layer(stage.down))
            for block in stage.blocks:
                layers += [Layer(block.conv1), Layer(block.conv2, residual=True)]
            layers[-1] = layers[-1]._replace(read=True)
        return layers

    def forward(self, x: Tensor, holes: Tensor, places: Tensor | None = None) -> Tensor:
        """Global features z_g.

        Parameters
        ----------
        x : Tensor
            Normalised images [N, 3, H, W].
        holes : Tensor
            Int64 [N, K, 4], the patches, all K masked at once: within the image, disjoint, with at least one
            pixel between any two. Not checked here; ``PatchGrid`` and ``draw_holes`` give no others.
        places : Tensor, optional
            Int64 [N, K', 4], what is read in place of the holes; for nets that mask nothing.

        Returns
        -------
        Tensor
            Float32 [N, K, D].
        """
        size, places = (x.shape[-2], x.shape[-1]), holes if places is None else places
        y, holes = self.stem(x.masked_fill(inside_holes(holes, *size), 0), holes)
        maps = []
        for stage in self.stages:
            y, holes = stage(y, holes)
            maps.append(y)
        pooled = mean_seen(y, holes)[:, None]
        return self.predict(
            self.read([Reading(m) for m in maps], pooled, read_places(self.patch, places, size))
        )

    def read(self, maps: Sequence[Reading], pooled: Tensor, places: ReadPlaces) -> Tensor:
        """What the head is given.

        Parameters
        ----------
        maps : sequence of Reading
            At strides 8, 16, 32, of N images each.
        pooled : Tensor
            Float32 [N, 1, C], the last map's mean over what is seen.
        places : ReadPlaces
            Where the K patches of each image are read; or of n, if those of n maps are those of the next n.

        Returns
        -------
        Tensor
            Float32 [N, K, inputs].
        """
        pooled = pooled.expand(-1, places.position.shape[1], -1)
        if self.readout == "pool":
            return pooled
        position = places.position.repeat(len(pooled) // len(places.position), 1, 1)
        cells = zip((maps[2], maps[0], maps[1]), places[:3], strict=True)
        return torch.cat([pooled, *(m.sample(c).flatten(2) for m, c in cells), position], dim=-1)

    def predict(self, read: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """z_g, float32 [N, K, D], of what was read; its products in ``dtype``."""
        half = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(read.device.type, dtype if half else None, enabled=half):
            return self.head(read.flatten(0, 1)).float().unflatten(0, read.shape[:2])


def masked_net(config: Config, patch: int, features: int = 128) -> MaskedNet:
    """The net that the settings of a masked model describe, for one patch size."""
    assert config.blocks is not None and config.readout is not None
    return MaskedNet(patch, config.widths, config.blocks, config.readout, features)


def mean_seen(maps: Tensor, holes: Tensor) -> Tensor:
    """Mean of maps [N, C, h, w] over what lies in no hole [N, K, 4]: float32 [N, C]."""
    valid = ~inside_holes(holes, *maps.shape[-2:])
    # Invalid places are 0, so that the sum needs no mask.
    return maps.float().sum((2, 3)) / valid.sum((1, 2, 3))[:, None].clamp_min(1)


class Reading:
    """Maps whose values can be looked up.

    Parameters
    ----------
    maps : Tensor
        [N, C, h, w].
    """

    def __init__(self, maps: Tensor) -> None:
        self.source = WindowedMap(maps)
        self.images = torch.arange(len(maps), device=maps.device)

    def sample(self, cells: Tensor) -> Tensor:
        """Bilinear reading at ``cells`` [N, K, R, 2] (x, y), in places of the maps: float32 [N, K, R, C]."""
        found = window_sample_reference(self.source, self.images, cells.flatten(1, 2))
        return found.unflatten(1, cells.shape[1:3])


class WindowedReading(Reading):
    """Maps that are windows over a shared base, one patch each.

    Parameters
    ----------
    source : WindowedMap
        With windows, channels-last.
    images : Tensor
        Int64 [N], the base of each.
    """

    def __init__(self, source: WindowedMap, images: Tensor) -> None:
        self.source, self.images = source, images

    def sample(self, cells: Tensor) -> Tensor:
        """As above, of one patch each: [N, 1, R, C]; ``cells`` may be of as few as the origins are of."""
        return window_sample_inner(self.source, self.images, cells[:, 0])[:, None]


def read_places(patch: int, places: Tensor, size: tuple[int, int]) -> ReadPlaces:
    """Where patches int64 [N, K, 4] of images of a size are read."""
    sides = places.float()
    center = torch.stack([sides[..., 1] + sides[..., 3], sides[..., 0] + sides[..., 2]], -1) / 2 - 0.5
    offsets = torch.arange(RING, device=center.device) - (RING - 1) / 2
    ring = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij")[::-1], -1).reshape(-1, 2)
    at = center[:, :, None]
    return ReadPlaces(
        cells_of(at, 32),
        # Stride 8: 8 pixels outside the hole. Stride 16: on its edge, at least 16 pixels from its middle.
        cells_of(at + ring * (patch / 2 + 8), 8),
        cells_of(at + ring * max(16.0, patch / 2), 16),
        fourier(torch.stack([center[..., 0] / size[1], center[..., 1] / size[0]], -1)),
    )


def cells_of(points: Tensor, stride: int) -> Tensor:
    """Pixels of the image [..., 2] (x, y) as places of a map at a stride."""
    return (points - ORIGIN) / stride


def fourier(position: Tensor) -> Tensor:
    """Sines and cosines of a position in [0, 1]²: [..., 2] to [..., 4 * FREQUENCIES]."""
    angles = position[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=position.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
