"""Partial convolution of windows over a shared base, as it is defined: whole maps, one a window.

    X_p = base[images[p]], with window[p] added to it; without windows, 0 in the hole
    y_p = act(W * X_p · k_h k_w / seen + b + R_p), cut out at origins[p]        (Eq. 5)
    δ_p = y_p - base_out[images[p]]

R_p is put together from its own base and windows as X_p is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class WindowedMap(NamedTuple):
    """Maps of masked images: those of the unmasked images, and for each hole a window of the difference."""

    base: Tensor  # [N, C, H, W]
    window: Tensor | None = None  # [P, C, i_h, i_w]
    origins: Tensor | None = None  # integer [P, 2], (top, left) of each window
    boxes: Tensor | None = None  # integer [P, 4], the part of each window outside which it is 0


class Unmasked(NamedTuple):
    """What a layer makes of the unmasked images."""

    raw: Tensor  # float32 [N, O, H', W'], W * base
    out: Tensor  # [N, O, H', W'], the layer's output


def whole_maps(source: WindowedMap, images: Tensor) -> Tensor:
    """[P, C, H, W]: the base of each window's image with the window added to it."""
    maps = source.base[images.long()]
    if source.window is not None and source.origins is not None:
        height, width = source.window.shape[2:]
        for p, (top, left) in enumerate(source.origins.tolist()):
            maps[p, :, top : top + height, left : left + width] += source.window[p]
    return maps


def for_each_window(
    count: int, holes: Tensor, origins: Tensor, source: WindowedMap, residual: WindowedMap | None
) -> tuple[Tensor, Tensor, WindowedMap, WindowedMap | None]:
    """Places that ``count`` windows share, the same again for those of every image, written out for each."""

    def all_of(places: Tensor) -> Tensor:
        return places if len(places) == count else places.repeat(count // len(places), 1)

    def all_in(m: WindowedMap) -> WindowedMap:
        return m._replace(
            origins=None if m.origins is None else all_of(m.origins),
            boxes=None if m.boxes is None else all_of(m.boxes),
        )

    return all_of(holes), all_of(origins), all_in(source), residual and all_in(residual)


def window_conv2d_reference(
    source: WindowedMap,
    unmasked: Unmasked,
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
    """Windows [P, O, h, w] of the difference of the layer's output; see ``window_conv2d``."""
    holes, origins, source, residual = for_each_window(len(images), holes, origins, source, residual)
    maps = whole_maps(source, images)
    mask = maps.new_ones(len(maps), 1, *maps.shape[2:])
    for p, (top, left, bottom, right) in enumerate(holes.clamp_min(0).tolist()):
        mask[p, :, top:bottom, left:right] = 0
    if source.window is None:
        maps = maps.masked_fill(mask == 0, 0)
    taps = torch.ones_like(weight[:1, :1])
    seen = F.conv2d(mask, taps, None, stride, padding)
    y = F.conv2d(maps, weight, None, stride, padding) * (taps.numel() / seen)
    if bias is not None:
        y = y + bias[:, None, None]
    y = torch.where(seen > 0, y, 0)
    if residual is not None:
        y = y + whole_maps(residual, images)
    if relu:
        y = y.relu()
    y = y - unmasked.out[images.long()]
    out = torch.empty_like(y[:, :, : size[0], : size[1]], memory_format=torch.channels_last)
    for p, (top, left) in enumerate(origins.tolist()):
        out[p] = y[p, :, top : top + size[0], left : left + size[1]]
    return out
