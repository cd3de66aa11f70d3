"""Which part of every layer a patch can change: the windows that the dense engine computes.

Masking a patch changes the image inside it, and so, layer by layer, only what sees what was changed before.
These places form a box in every layer; outside it the activations are those of the unmasked image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from glance_fast.geometry import PatchGrid, output_size, reach, shrink
from glance_fast.nets.global_net import GlobalNet

# Kernel, stride and padding of each layer.
Geometry = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class LayerPlan:
    """Windows of one layer's output, for the patches of a chunk.

    Attributes
    ----------
    holes : Tensor
        Int64 [n, 4], the patch in the layer's input; zeros where it has vanished.
    origins : Tensor
        Int64 [n, 2], (top, left) of each window in the layer's output.
    size : (int, int)
        Height and width of the windows: of the chunk's largest, so that they form one batch. Smaller ones
        at the border are moved inwards and hold more than what changes.
    """

    holes: Tensor
    origins: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Chunk:
    """Patches whose windows are computed together.

    Attributes
    ----------
    patches : Tensor
        Int64 [n], raster indices.
    places : Tensor
        Int64 [n, 4], the patches in the image.
    layers : tuple of LayerPlan
        One for each of ``GlobalNet.layers()``.
    seen : Tensor
        Int64 [n], places of the last layer's output that are not in the hole.
    """

    patches: Tensor
    places: Tensor
    layers: tuple[LayerPlan, ...]
    seen: Tensor


@dataclass(frozen=True)
class Change:
    """What patches change in one layer, as arrays for all patches in raster order.

    Attributes
    ----------
    holes : ndarray
        Int64 [P, 4], in the layer's input.
    start, stop : ndarray
        Int64 [P, 2], the box (top, left) to (bottom, right) of the layer's output that may change.
    out : (int, int)
        Height and width of the layer's output.
    """

    holes: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    out: tuple[int, int]


def geometry_of(net: GlobalNet) -> Geometry:
    """Kernel, stride and padding of each layer of a net."""
    modules = [layer.module for layer in net.layers()]
    return tuple((m.weight.shape[-1], m.stride, m.padding) for m in modules)


@lru_cache(maxsize=8)
def changes(layers: Geometry, grid: PatchGrid) -> tuple[Change, ...]:
    """What every patch changes in every layer; one more, of the last layer's holes, ends the list."""
    size, holes = (grid.height, grid.width), grid.holes
    start, stop = holes[:, :2], holes[:, 2:]
    found = []
    for kernel, stride, padding in layers:
        axes = [reach(start[:, i], stop[:, i], size[i], kernel, stride, padding) for i in (0, 1)]
        start, stop = (np.stack(ends, axis=1) for ends in zip(*axes, strict=True))
        out = tuple(output_size(s, kernel, stride, padding) for s in size)
        found.append(Change(holes, start, stop, out))
        holes, size = after(holes, size, kernel, stride, padding), out
    return (*found, Change(holes, start, stop, size))


def most_pixels(layers: Geometry, grid: PatchGrid) -> int:
    """The most pixels that a patch's windows hold at a time: a layer's input, output and residual."""
    areas = [0, 0, *((c.stop - c.start).max(0).prod() for c in changes(layers, grid)[:-1])]
    return int(max(map(sum, zip(areas, areas[1:], areas[2:], strict=False))))


@lru_cache(maxsize=16)
def plan(layers: Geometry, grid: PatchGrid, device: torch.device, step: int) -> tuple[Chunk, ...]:
    """All patches in chunks, and the windows of every layer for each.

    Parameters
    ----------
    layers : Geometry
        Of the net.
    grid : PatchGrid
        The image and its patches.
    device : torch.device
        Where the tensors are to lie.
    step : int
        Patches of a chunk, at most.

    Returns
    -------
    tuple of Chunk
        Kept for the next image of the kind. Rows of patches as far from the border above as from that
        below go together: their windows are cut alike, and fewer pixels fill smaller windows up.
    """
    *through, last = changes(layers, grid)
    row = np.arange(len(grid)) // grid.cols
    order = np.argsort(np.minimum(row, grid.rows - 1 - row), kind="stable")
    chunks = []
    for patches in np.split(order, range(step, len(order), step)):
        planned = []
        for change in through:
            start, stop = change.start[patches], change.stop[patches]
            size = (stop - start).max(0)
            origins = np.minimum(start, np.array(change.out) - size)
            tensors = (torch.from_numpy(t).to(device) for t in (change.holes[patches], origins))
            planned.append(LayerPlan(*tensors, tuple(size.tolist())))
        holes = last.holes[patches]
        hidden = (holes[:, 2] - holes[:, 0]) * (holes[:, 3] - holes[:, 1])
        arrays = patches, grid.holes[patches], last.out[0] * last.out[1] - hidden
        index, places, seen = (torch.from_numpy(a).to(device) for a in arrays)
        chunks.append(Chunk(index, places, tuple(planned), seen))
    return tuple(chunks)


def after(holes: np.ndarray, size: tuple[int, int], kernel: int, stride: int, padding: int) -> np.ndarray:
    """Int64 [P, 4]: holes of a layer's output, zeros where one has vanished."""
    top, bottom = shrink(holes[:, 0], holes[:, 2], size[0], kernel, stride, padding)
    left, right = shrink(holes[:, 1], holes[:, 3], size[1], kernel, stride, padding)
    some = (holes[:, 2] > holes[:, 0]) & (bottom > top) & (right > left)
    return np.stack([top, left, bottom, right], axis=1) * some[:, None]
