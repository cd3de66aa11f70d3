"""A model as one plain graph: from pixels to the map, the score and the verdict, of torch's own operators.

What the package's operators do with kernels of their own is written here as convolutions and products with
constant matrices, which every runtime has. All else is the model's own code.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.errors import UserError
from glance_fast.export.resize import DeepResize, Resize
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.idw import cpu, reference
from glance_fast.kernels.patch_score.reference import DistortionWeights, score_patches_reference
from glance_fast.kernels.surround_conv.reference import count_seen
from glance_fast.maps import HeadMaps, combine, distances, gaussian
from glance_fast.model import Glance, Scale
from glance_fast.nets.modules import module_list
from glance_fast.nets.preprocess import IMAGENET_MEAN, IMAGENET_STD, mirrored
from glance_fast.nets.surround import SurroundNet, mean_seen
from glance_fast.roi import Roi

# Weights of neighbours that a map may take, 4 bytes each.
MOST_WEIGHTS = 1 << 26


class PlainSurround(nn.Module):
    """``SurroundNet`` without ``surround_conv2d``: the ring as strips, the far places as dilated kernels.

    Parameters
    ----------
    net : SurroundNet
        Its weights are shared where their form stays.
    """

    ratio: Tensor
    bias: Tensor
    far: Tensor

    def __init__(self, net: SurroundNet) -> None:
        super().__init__()
        self.net, kernel, hole = net, net.kernel, net.hole
        outputs, width, places = net.ring.shape
        self.pad, side = kernel // 2, (kernel - hole) // 2
        above, beside, below = net.ring.detach().split(
            [side * kernel, places - 2 * side * kernel, side * kernel], dim=2
        )
        beside = beside.unflatten(2, (hole, 2 * side))
        # Rows and columns of v, continued by zeros, that a strip begins after.
        self.corners = ((0, 0), (side, 0), (side, kernel - side), (side + hole, 0))
        self.ends = ((side + hole, 0), (side, kernel - side), (side, 0), (0, 0))
        for i, strip in enumerate(
            (
                above.unflatten(2, (side, kernel)),
                beside[..., :side],
                beside[..., side:],
                below.unflatten(2, (side, kernel)),
            )
        ):
            self.register_buffer(f"strip{i}", strip.clone())
        # The hole's middle is none of the far places.
        beyond = net.beyond.detach().unflatten(2, (len(net.far), 8)).movedim(2, 0)
        middle = beyond.new_zeros(len(net.far), outputs, width, 1)
        far = torch.cat([beyond[..., :4], middle, beyond[..., 4:]], dim=3).unflatten(3, (3, 3))
        self.register_buffer("far", far.clone())
        grid = net.grid.rows, net.grid.cols
        seen = count_seen(grid, (kernel,) * 2, (hole,) * 2, 1, (self.pad,) * 2, net.far, torch.device("cpu"))
        self.register_buffer("ratio", ((places + 8 * len(net.far)) / seen).masked_fill(seen == 0, 0))
        self.register_buffer("bias", net.bias.detach()[:, None, None] * (seen > 0))

    def forward(self, local: Tensor) -> Tensor:
        """z_g of the grid, [B, rows, cols, D], of z_l alike."""
        net = self.net
        value = F.relu(net.value(local))
        around = F.relu(self.near(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + self.mean(value))
        position = net.position.expand(around.shape[0], -1, -1, -1)
        x = torch.cat([around, position], dim=-1)
        return net.head(x.flatten(0, 2)).unflatten(0, (-1, *x.shape[1:3]))

    def mean(self, value: Tensor) -> Tensor:
        """W_m times the mean of v over the cells that p does not touch."""
        return self.net.mean(mean_seen(value, self.net.rows_seen, self.net.cols_seen))

    def near(self, value: Tensor) -> Tensor:
        """Eq. 5 on v [B, C, rows, cols]."""
        framed = F.pad(value, (self.pad,) * 4)
        height, width = framed.shape[2:]
        y = sum(
            F.conv2d(framed[:, :, top : height - bottom, left : width - right], self.get_buffer(f"strip{i}"))
            for i, ((top, left), (bottom, right)) in enumerate(zip(self.corners, self.ends, strict=True))
        )
        for distance, weight in zip(self.net.far, self.far, strict=True):
            y = y + F.conv2d(value, weight, padding=distance, dilation=distance)
        return y * self.ratio + self.bias


class Interpolation(nn.Module):
    """``maps.interpolate`` with constant matrices.

    The image is cut into blocks of a stride, whose pixels have few neighbours together: of each block one
    small matrix from these to its pixels. A matrix from all patches to all pixels is a hundred times larger.
    """

    place: Tensor
    matrix: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, grid: PatchGrid, config: Config) -> None:
        super().__init__()
        self.size, self.side = (grid.height, grid.width), grid.stride
        place, matrix = by_block(*neighbours(grid, config), self.size, self.side)
        self.register_buffer("place", torch.from_numpy(place))
        self.register_buffer("matrix", torch.from_numpy(matrix))
        self.smooth = config.smoothing > 0
        if self.smooth:
            for name, length in (("rows", grid.height), ("columns", grid.width)):
                # A copy: what is kept may come from scoring, whose tensors torch.export refuses.
                kept = gaussian(length, config.smoothing, torch.device("cpu"))
                self.register_buffer(name, kept.clone())

    def forward(self, scores: Tensor) -> Tensor:
        """Patch scores [N, P] to maps [N, H, W]."""
        height, width = self.size
        blocks = self.matrix @ scores.T[self.place]
        rows, cols = -(-height // self.side), -(-width // self.side)
        maps = blocks.reshape(rows, cols, self.side, self.side, -1).permute(4, 0, 2, 1, 3)
        maps = maps.reshape(-1, rows * self.side, cols * self.side)[:, :height, :width]
        return self.rows @ maps @ self.columns.T if self.smooth else maps


def neighbours(grid: PatchGrid, config: Config) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Of every pixel, the patches that count, and by how much: both [H * W, k].

    Raises
    ------
    UserError
        There are too many for a file.
    """
    count = min(config.idw_neighbours, len(grid)) or len(grid)
    pixels = grid.height * grid.width
    if pixels * count > MOST_WEIGHTS:
        raise UserError(
            f"idw_neighbours: {count} for each of {pixels} pixels would make a file of "
            f"{pixels * count * 4 >> 20} MiB; train with fewer, such as 16"
        )
    axes = grid.centers_y, grid.centers_x, grid.height, grid.width, config.idw_power
    if count < len(grid):
        found = cpu.table(*axes, count, np.dtype(np.float32))
        return found.indices.numpy(), found.weights.numpy()
    weights = reference.weights(*axes, None).astype(np.float32)
    return np.broadcast_to(np.arange(count), weights.shape), weights


def by_block(
    indices: NDArray[np.integer], weights: NDArray[np.float32], size: tuple[int, int], side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A table of neighbours, block by block.

    Parameters
    ----------
    indices, weights : ndarray, [H * W, k]
        Of every pixel.
    size : (int, int)
        H and W.
    side : int
        Of a block, pixels. What the last ones have beyond the image is as its border.

    Returns
    -------
    place : ndarray, int64 [blocks, n]
        The neighbours of a block's pixels.
    matrix : ndarray, float32 [blocks, side * side, n]
        What each counts by; 0 where the block has fewer than n.
    """
    blocks = [-(-length // side) for length in size]
    pixel = np.arange(size[0] * size[1]).reshape(size)
    for axis, (length, count) in enumerate(zip(size, blocks, strict=True)):
        pixel = pixel.take(np.minimum(np.arange(count * side), length - 1), axis)
    rows, cols = blocks
    pixel = pixel.reshape(rows, side, cols, side).swapaxes(1, 2).reshape(rows * cols, side * side)
    found = [np.unique(indices[block], return_inverse=True) for block in pixel]
    most = max(len(places) for places, _ in found)
    place = np.zeros((len(pixel), most), np.int64)
    matrix = np.zeros((*pixel.shape, most), np.float32)
    for i, (places, where) in enumerate(found):
        place[i, : len(places)] = places
        np.put_along_axis(matrix[i], where.reshape(side * side, -1), weights[pixel[i]], axis=1)
    return place, matrix


class PlainScale(nn.Module):
    """One patch size: from pixels of the model's size to the maps of both heads.

    With a region of interest, its patches alone make the maps.
    """

    residual_mean: Tensor | None
    whitening: Tensor | None
    belongs: Tensor | None
    share: Tensor | None
    middle: Tensor
    gain: Tensor

    def __init__(
        self, scale: Scale, config: Config, distances: bool, roi: Roi | None = None, index: int = 0
    ) -> None:
        super().__init__()
        assert isinstance(scale.global_net, SurroundNet)
        self.grid, self.distances = scale.grid, distances
        self.local, self.around = scale.local, PlainSurround(scale.global_net)
        self.interpolation = Interpolation(scale.grid, config)
        self.register_buffer("residual_mean", scale.residual_mean)
        self.register_buffer("whitening", scale.whitening)
        for name, weight in scale.distortion.folded()._asdict().items():
            self.register_buffer(f"distortion_{name}", weight.detach().clone())
        belongs = None
        if roi is not None:
            belongs = torch.zeros(len(scale.grid), dtype=torch.bool)
            belongs[roi.places[index]] = True
        self.register_buffer("belongs", belongs)
        self.register_buffer("share", None if roi is None else roi.shares[index].clone())
        mean, std = (torch.tensor(m, dtype=torch.float64) for m in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("middle", (255 * mean).float())
        self.register_buffer("gain", (1 / (255 * std)).float())

    def forward(self, images: Tensor) -> HeadMaps:
        """Maps [B, H, W] of float32 [B, 3, H, W], values from 0 to 255."""
        x = (mirrored(images.permute(0, 2, 3, 1), self.grid.frame) - self.middle) * self.gain
        local = self.local(x.permute(0, 3, 1, 2), self.grid.stride).permute(0, 2, 3, 1)
        found = score_patches_reference(
            local.flatten(1, 2),
            self.around(local).flatten(1, 2),
            self.residual_mean,
            self.whitening,
            DistortionWeights(*(self.get_buffer(f"distortion_{n}") for n in DistortionWeights._fields)),
            (0.0, 1.0),
            (0.0, 1.0),
            1.0,
        )
        heads = found.inconsistency, found.distortion
        if self.distances:
            heads = distances(*heads)
        scores = torch.cat(heads)
        if self.belongs is None:
            maps = self.interpolation(scores)
        else:
            maps = self.interpolation(scores.masked_fill(~self.belongs, 0)) / self.share
        return HeadMaps(*maps.unflatten(0, (2, -1)))


class ScoringGraph(nn.Module):
    """A model from pixels to verdict, which torch can export.

    Parameters
    ----------
    model : Glance
        Trained, with net "surround", on the CPU; it shares its weights.

    Raises
    ------
    UserError
        Its net is a masked one, or its maps take too many neighbours.
    """

    threshold: Tensor
    inside: Tensor | None

    def __init__(self, model: Glance) -> None:
        super().__init__()
        if model.config.masked:
            raise UserError(
                f"net {model.config.net!r} cannot be exported: it masks every patch in a pass of its own; "
                "train with `net=surround`"
            )
        model.check("auto", "fp32")
        self.config, self.calibration = model.config, model.calibration
        white = model.calibration.white
        self.resize: nn.Module = Resize(*model.config.image_size)
        if white is not None:
            self.resize = DeepResize(*model.config.image_size, white)
        self.dtype = torch.uint8 if white is None else torch.uint16
        # Float64, as ``is_anomalous`` has it; a number in the code would be in float32 in an ONNX file.
        threshold = torch.tensor(model.calibration.threshold, dtype=torch.float64)
        self.register_buffer("threshold", threshold)
        roi = model.roi
        self.scales = module_list(
            PlainScale(scale, model.config, model.calibration.distances, roi, index)
            for index, scale in enumerate(model.scales)
        )
        # A copy: what scoring has kept may be a tensor that torch.export refuses.
        self.register_buffer("inside", None if model.inside is None else model.inside.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``Glance.score`` gives, and the verdict.

        Parameters
        ----------
        images : Tensor
            uint8 [B, H, W, 3], RGB, of any size; uint16, as stored, where the model was trained on images of
            more than 8 bits.

        Returns
        -------
        maps : Tensor
            Float32 [B, h, w], at the model's image size.
        scores : Tensor
            Float32 [B].
        anomalous : Tensor
            Bool [B]: whether the score lies above the threshold.
        """
        pixels = self.resize(images)
        heads = [scale(pixels) for scale in self.scales]
        maps, scores = combine(heads, self.config, self.calibration, self.inside)
        return maps, scores, scores.double() > self.threshold
