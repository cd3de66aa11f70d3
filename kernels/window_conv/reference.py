"""Partial convolution of windows over a shared base, as it is defined: whole maps, one a window.

    X_p = base[images[p]], with window[p] laid over it
    y_p = act(partial_conv(X_p, holes[p]) + R_p), cut out at origins[p]         (Eq. 5)

R_p is put together from its own base and windows as X_p is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glance_fast.kernels.partial_conv.reference import partial_conv2d_reference


class WindowedMap(NamedTuple):
    """Maps of masked images: a window for each hole, over the maps of the unmasked images."""

    base: Tensor  # [N, C, H, W]
    window: Tensor | None = None  # [P, C, i_h, i_w]
    origins: Tensor | None = None  # integer [P, 2], (top, left) of each window


def whole_maps(source: WindowedMap, images: Tensor) -> Tensor:
    """[P, C, H, W]: the base of each window's image with the window laid over it."""
    maps = source.base[images.long()]
    if source.window is not None and source.origins is not None:
        height, width = source.window.shape[2:]
        for p, (top, left) in enumerate(source.origins.tolist()):
            maps[p, :, top : top + height, left : left + width] = source.window[p]
    return maps


def window_conv2d_reference(
    source: WindowedMap,
    weight: Tensor,
    bias: Tensor | None,
    holes: Tensor,
    images: Tensor,
    origins: Tensor,
    size: tuple[int, int],
    stride: int,
    padding: int,
    residual: WindowedMap | None,
    relu: bool,
) -> Tensor:
    """Windows [P, O, h, w] of the layer's output; see ``window_conv2d``."""
    maps = whole_maps(source, images)
    seen = maps.new_ones(len(maps), 1, *maps.shape[2:])
    for p, (top, left, bottom, right) in enumerate(holes.clamp_min(0).tolist()):
        seen[p, :, top:bottom, left:right] = 0
    y, _ = partial_conv2d_reference(maps, weight, bias, seen, stride, padding)
    if residual is not None:
        y = y + whole_maps(residual, images)
    if relu:
        y = y.relu()
    out = torch.empty_like(y[:, :, : size[0], : size[1]], memory_format=torch.channels_last)
    for p, (top, left) in enumerate(origins.tolist()):
        out[p] = y[p, :, top : top + size[0], left : left + size[1]]
    return out
