"""The region of interest: which pixels of a photograph count, and which patches.

A patch belongs to the region if it is the nearest one, by its centre, to a pixel of it. Its score stands at
its centre in the map, so that these are the patches that the map inside is made of; each pixel inside has its
own nearest patch among them, also where the region is narrower than a patch. A patch that has a mere corner
inside tells of what lies outside, and does not belong.

What is expected of a patch is still told from all of its surrounding, outside the region as well: the scores
of patches inside are the same with the region and without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glance_fast.config import Config
from glance_fast.maps import interpolate


@dataclass(frozen=True, eq=False)
class Roi:
    """A region of interest at a model's image size.

    Attributes
    ----------
    pixels : Tensor
        Bool [H, W], on the model's device.
    patches : tuple of tuple of int
        Raster indices of the patches that belong to it, ascending, one tuple a scale.
    places : tuple of Tensor
        The same as int64 tensors on the model's device.
    shares : tuple of Tensor
        Float32 [H, W], one a scale: how much of a pixel's map comes from these patches; 1 outside the region.
    """

    pixels: Tensor
    patches: tuple[tuple[int, ...], ...]
    places: tuple[Tensor, ...]
    shares: tuple[Tensor, ...]

    @classmethod
    def of(cls, pixels: NDArray[np.bool_], config: Config, device: torch.device) -> Roi:
        """The region that bool [H, W] of the model's image size shows, with one pixel at least."""
        found = [grid.patches_of(pixels) for grid in config.grids]
        inside = torch.from_numpy(pixels).to(device)
        places = [torch.from_numpy(patches).to(device) for patches in found]
        shares = []
        for grid, place in zip(config.grids, places, strict=True):
            belongs = torch.zeros(1, len(grid), device=device)
            belongs[:, place] = 1
            shares.append(interpolate(belongs, grid, config)[0].masked_fill(~inside, 1))
        return cls(inside, tuple(tuple(p.tolist()) for p in found), tuple(places), tuple(shares))

    def maps(self, values: Tensor, scale: int, config: Config) -> Tensor:
        """Scores [B, P'] of the patches that belong to it, to maps [B, H, W].

        As ``interpolate``, where weights of patches that do not belong go to those that do.
        """
        grid = config.grids[scale]
        whole = values.new_zeros(len(values), len(grid))
        whole[:, self.places[scale]] = values
        return interpolate(whole, grid, config) / self.shares[scale]
