"""Which part of every layer a patch can change: the windows that the dense engine computes.

Masking a patch changes the image inside it, and so, layer by layer, only what sees what was changed before.
These places form a box in every layer; outside it the activations are those of the unmasked image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations

import numpy as np
import torch
from torch import Tensor

from glance_fast.geometry import PatchGrid, output_size, reach, shrink
from glance_fast.nets.masked import MaskedNet

# Kernel, stride and padding of each layer, and multiply-adds an output pixel.
Geometry = tuple[tuple[int, int, int, int], ...]
# Multiply-adds in the time that a chunk takes beside them: 1 ms on two cores, .3 ms of launches on a GPU.
FIXED = {"cpu": 1.5e8, "cuda": 3e10}


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
    boxes : Tensor
        Int64 [n, 4], the part of each window that changes, in the layer's output.
    """

    holes: Tensor
    origins: Tensor
    size: tuple[int, int]
    boxes: Tensor


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
        One for each of ``MaskedNet.layers()``.
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


def geometry_of(net: MaskedNet) -> Geometry:
    """The layers of a net as the plan sees them."""
    modules = [layer.module for layer in net.layers()]
    return tuple((m.weight.shape[-1], m.stride, m.padding, m.weight.numel()) for m in modules)


@lru_cache(maxsize=8)
def changes(layers: Geometry, grid: PatchGrid) -> tuple[Change, ...]:
    """What every patch changes in every layer; one more, of the last layer's holes, ends the list."""
    size, holes = (grid.height, grid.width), grid.holes
    start, stop = holes[:, :2], holes[:, 2:]
    found = []
    for kernel, stride, padding, _ in layers:
        axes = [reach(start[:, i], stop[:, i], size[i], kernel, stride, padding) for i in (0, 1)]
        start, stop = (np.stack(ends, axis=1) for ends in zip(*axes, strict=True))
        out = output_size(size[0], kernel, stride, padding), output_size(size[1], kernel, stride, padding)
        found.append(Change(holes, start, stop, out))
        holes, size = holes_after_layer(holes, size, kernel, stride, padding), out
    return (*found, Change(holes, start, stop, size))


@lru_cache(maxsize=8)
def holes_of(grid: PatchGrid, device: torch.device) -> Tensor:
    """The patches of a grid on a device, int64 [P, 4]."""
    return torch.from_numpy(grid.holes).to(device)


@lru_cache(maxsize=16)
def plan(
    layers: Geometry,
    grid: PatchGrid,
    device: torch.device,
    step: int,
    images: int,
    chosen: tuple[int, ...] | None = None,
) -> tuple[Chunk, ...]:
    """The patches in chunks, and the windows of every layer for each.

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
    images : int
        Whose windows are computed together.
    chosen : tuple of int, optional
        Raster indices of the patches to plan for, at least one; all if not given.

    Returns
    -------
    tuple of Chunk
        Kept for the next image of the kind. Patches whose windows are of about one size go together: cut
        alike by the border, and lying alike on the places of strided layers.
    """
    *through, last = changes(layers, grid)
    chunks = []
    groups = group_by_window_size(layers, grid, FIXED.get(device.type, 0.0) / images)
    if chosen is not None:
        groups = [some for group in groups if len(some := group[np.isin(group, chosen)])]
    for patches in chain.from_iterable(np.array_split(g, -(-len(g) // step)) for g in groups):
        planned = []
        for change in through:
            start, stop = change.start[patches], change.stop[patches]
            size = (stop - start).max(0)
            origins = np.minimum(start, np.array(change.out) - size)
            arrays = change.holes[patches], origins, np.concatenate([start, stop], axis=1)
            holes, first, boxes = (torch.from_numpy(a).to(device) for a in arrays)
            planned.append(LayerPlan(holes, first, (int(size[0]), int(size[1])), boxes))
        top, left, bottom, right = last.holes[patches].T
        hidden = (bottom - top) * (right - left)
        arrays = patches, grid.holes[patches], last.out[0] * last.out[1] - hidden
        index, places, seen = (torch.from_numpy(a).to(device) for a in arrays)
        chunks.append(Chunk(index, places, tuple(planned), seen))
    return tuple(chunks)


def group_by_window_size(layers: Geometry, grid: PatchGrid, fixed: float) -> list[np.ndarray]:
    """Raster indices of patches whose windows are of about one size in every layer.

    Parameters
    ----------
    layers, grid
        As for ``plan``.
    fixed : float
        Multiply-adds, of one image, that one group less is worth.

    Returns
    -------
    list of ndarray
        Int64 each. Windows of a group are as large as its largest: groups are joined as long as that adds
        less work than a group costs.
    """
    *through, _ = changes(layers, grid)
    work = np.array([layer[3] for layer in layers], np.float64)
    lengths = np.stack([c.stop - c.start for c in through], axis=1)
    lengths = lengths.reshape(grid.rows, grid.cols, len(layers), 2)
    axes = [Classes(lengths[:, 0, :, 0]), Classes(lengths[0, :, :, 1])]
    while True:
        # A class less on one axis is a group less for each class of the other.
        found = [axis.cheapest(work * other.total_length()) for axis, other in (axes, axes[::-1])]
        costs = [cost / len(other.members) for (cost, _), other in zip(found, axes[::-1], strict=True)]
        axis = int(np.argmin(costs))
        if costs[axis] > fixed:
            break
        axes[axis].join(*found[axis][1])
    index = np.arange(len(grid)).reshape(grid.rows, grid.cols)
    return [index[np.ix_(some, others)].ravel() for some in axes[0].members for others in axes[1].members]


class Classes:
    """Positions along an axis, in classes; all windows of a class are as long as its longest, layer by layer.

    Parameters
    ----------
    lengths : ndarray
        Int64 [n, layers], of the windows of each position.

    Attributes
    ----------
    members : list of ndarray
        Int64, the positions of each class; at first those whose lengths are the same.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        _, which = np.unique(lengths, axis=0, return_inverse=True)
        self.members = [np.flatnonzero(which.ravel() == number) for number in range(which.max() + 1)]

    def total_length(self) -> np.ndarray:
        """Int64 [layers]: lengths of all windows together."""
        return sum(len(members) * self.lengths[members].max(0) for members in self.members)

    def cheapest(self, work: np.ndarray) -> tuple[float, tuple[int, int]]:
        """The two classes whose union adds least, and what it adds; ``work`` [layers] is that of a place."""
        most = [self.lengths[members].max(0) for members in self.members]
        counts = [len(members) for members in self.members]
        best = (np.inf, (0, 0))
        for a, b in combinations(range(len(counts)), 2):
            both = np.maximum(most[a], most[b])
            added = counts[a] * (both - most[a]) + counts[b] * (both - most[b])
            best = min(best, (float(added @ work), (a, b)))
        return best

    def join(self, a: int, b: int) -> None:
        """Make one class of two."""
        both = np.sort(np.concatenate([self.members[a], self.members[b]]))
        self.members = [m for i, m in enumerate(self.members) if i not in (a, b)] + [both]


def holes_after_layer(
    holes: np.ndarray, size: tuple[int, int], kernel: int, stride: int, padding: int
) -> np.ndarray:
    """Int64 [P, 4]: holes of a layer's output, zeros where one has vanished."""
    top, bottom = shrink(holes[:, 0], holes[:, 2], size[0], kernel, stride, padding)
    left, right = shrink(holes[:, 1], holes[:, 3], size[1], kernel, stride, padding)
    some = (holes[:, 2] > holes[:, 0]) & (bottom > top) & (right > left)
    return np.stack([top, left, bottom, right], axis=1) * some[:, None]
