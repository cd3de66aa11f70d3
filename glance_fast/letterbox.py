"""Letterboxing: a photograph of another shape keeps its aspect, and takes a part of the model's image.

What a letterbox would fill is neither filled nor computed. The nets see the photograph alone, and all that
holds at the border of an image holds at its border: it is mirrored by the frame, and Global-Net sees nothing
beyond. Where a patch lies, which counts for its position and for what is normal there, is told by the middle
of the model's image, of which the photograph takes a part as large as itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.maps import interpolate


class Box(NamedTuple):
    """A part of an image, pixels, half-open."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, eq=False)
class Window:
    """What a photograph takes of a model's image.

    Attributes
    ----------
    box : Box
        Its place; from a border as far as from the opposite one, to a step of the patches.
    grids : tuple of PatchGrid
        Its patches, one grid a scale. Each is one of the model's patches, moved by the box's corner.
    cells : tuple of (slice, slice)
        Rows and columns of them among the model's own.
    places : tuple of Tensor
        Int64: their raster indices among the model's own.
    """

    box: Box
    grids: tuple[PatchGrid, ...]
    cells: tuple[tuple[slice, slice], ...]
    places: tuple[Tensor, ...]

    def maps(self, values: Tensor, scale: int, config: Config) -> Tensor:
        """Scores [B, P'] of the photograph's patches to maps [B, H', W'] of its size."""
        return interpolate(values, self.grids[scale], config)


@lru_cache(maxsize=32)
def window_of(config: Config, size: tuple[int, int], device: torch.device) -> Window:
    """The part of a model's image that a photograph of a size (height, width) takes.

    The size is one that ``Config.size_for`` gives.
    """
    # All sizes that patches cover whole differ by whole steps.
    (top, bottom), (left, right) = (
        _middle(inner, outer, config.step) for inner, outer in zip(size, config.image_size, strict=True)
    )
    grids, cells, places = [], [], []
    for whole in config.grids:
        grid = PatchGrid(*size, whole.patch, whole.stride, whole.frame)
        row, col = top // whole.stride, left // whole.stride
        part = slice(row, row + grid.rows), slice(col, col + grid.cols)
        index = torch.arange(len(whole), device=device).view(whole.rows, whole.cols)
        grids.append(grid)
        cells.append(part)
        places.append(index[part].flatten())
    return Window(Box(top, left, bottom, right), tuple(grids), tuple(cells), tuple(places))


def _middle(inner: int, outer: int, step: int) -> tuple[int, int]:
    """Where a part of an axis begins and ends that lies in its middle, to a step."""
    start = (outer - inner) // 2 // step * step
    return start, start + inner
