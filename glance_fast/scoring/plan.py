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


@dataclass(frozen=True)
class LayerPlan:
    """Windows of one layer's output, for all patches in raster order.

    Attributes
    ----------
    holes : Tensor
        Int64 [P, 4], the patch in the layer's input; zeros where it has vanished.
    origins : Tensor
        Int64 [P, 2], (top, left) of each window in the layer's output.
    size : (int, int)
        Height and width of the windows: of the largest, so that they form one batch. Smaller ones at the
        border are moved inwards and hold more than what changes.
    out : (int, int)
        Height and width of the layer's output.
    """

    holes: Tensor
    origins: Tensor
    size: tuple[int, int]
    out: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Windows of all layers.

    Attributes
    ----------
    layers : tuple of LayerPlan
        One for each of ``GlobalNet.layers()``.
    seen : Tensor
        Int64 [P], places of the last layer's output that are not in the hole.
    """

    layers: tuple[LayerPlan, ...]
    seen: Tensor

    def pixels(self) -> int:
        """The most pixels that a patch's windows hold at a time: a layer's input, output and residual."""
        areas = [0, 0, *(layer.size[0] * layer.size[1] for layer in self.layers)]
        return max(map(sum, zip(areas, areas[1:], areas[2:], strict=False)))


def plan(net: GlobalNet, grid: PatchGrid, device: torch.device) -> Plan:
    """The windows of every layer of a net.

    Parameters
    ----------
    net : GlobalNet
        Its kernels, strides and paddings count alone.
    grid : PatchGrid
        The image and its patches.
    device : torch.device
        Where the tensors are to lie.

    Returns
    -------
    Plan
        Computed once for each geometry and device; the last few are kept.
    """
    modules = [layer.module for layer in net.layers()]
    return _plan(tuple((m.weight.shape[-1], m.stride, m.padding) for m in modules), grid, device)


@lru_cache(maxsize=8)
def _plan(layers: tuple[tuple[int, int, int], ...], grid: PatchGrid, device: torch.device) -> Plan:
    size, holes = (grid.height, grid.width), grid.holes
    changed = [(holes[:, 0], holes[:, 2]), (holes[:, 1], holes[:, 3])]
    found = []
    for kernel, stride, padding in layers:
        changed = [reach(*c, s, kernel, stride, padding) for c, s in zip(changed, size, strict=True)]
        out = tuple(output_size(s, kernel, stride, padding) for s in size)
        lengths = tuple(int((stop - start).max()) for start, stop in changed)
        corners = [np.minimum(c[0], o - n) for c, o, n in zip(changed, out, lengths, strict=True)]
        tensors = (torch.from_numpy(t).to(device) for t in (holes, np.stack(corners, axis=1)))
        found.append(LayerPlan(*tensors, lengths, out))
        holes, size = after(holes, size, kernel, stride, padding), out
    hidden = (holes[:, 2] - holes[:, 0]) * (holes[:, 3] - holes[:, 1])
    return Plan(tuple(found), torch.from_numpy(size[0] * size[1] - hidden).to(device))


def after(holes: np.ndarray, size: tuple[int, int], kernel: int, stride: int, padding: int) -> np.ndarray:
    """Int64 [P, 4]: holes of a layer's output, zeros where one has vanished."""
    top, bottom = shrink(holes[:, 0], holes[:, 2], size[0], kernel, stride, padding)
    left, right = shrink(holes[:, 1], holes[:, 3], size[1], kernel, stride, padding)
    some = (holes[:, 2] > holes[:, 0]) & (bottom > top) & (right > left)
    return np.stack([top, left, bottom, right], axis=1) * some[:, None]
