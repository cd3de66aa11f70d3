"""What an inverse-distance-weighted map means, in float64 over whole tables of distances.

With centres c and scores s_c, at a pixel a distance d_c from them::

    map = sum_c w_c s_c / sum_c w_c,    w_c = (d_min / d_c)**power

The distance d_min to the nearest centre cancels; it keeps every weight within [0, 1]. At a centre
itself the map is that centre's score. With k neighbours the sums run over the k nearest centres, of
equally near ones those of lower raster index.
"""

from __future__ import annotations

import numpy as np
import torch

# Pixels a step of the torch version; 841 centres in float64 are 27 MB then.
PIXELS_A_STEP = 4096


def weights(
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int | None,
) -> np.ndarray:
    """Normalised weight of every centre at every pixel: float64 [height * width, gh * gw]."""
    dy2 = (np.arange(height)[:, None] - centers_y) ** 2  # [H, gh]
    dx2 = (np.arange(width)[:, None] - centers_x) ** 2  # [W, gw]
    squared = (dy2[:, None, :, None] + dx2[None, :, None, :]).reshape(height * width, -1)  # [H * W, P]
    nearest = squared.min(axis=1, keepdims=True)
    inside = squared > 0
    weight = np.divide(nearest, squared, out=np.ones_like(squared), where=inside) ** (power / 2)
    weight[(nearest == 0)[:, 0]] = squared[(nearest == 0)[:, 0]] == 0
    if neighbours is not None:
        order = np.argsort(squared, axis=1, kind="stable")
        np.put_along_axis(weight, order[:, neighbours:], 0.0, axis=1)
    return weight / weight.sum(axis=1, keepdims=True)


def idw_map(
    scores: np.ndarray,
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int | None,
) -> np.ndarray:
    """scores [B, gh, gw] -> [B, height, width], in the dtype of the scores."""
    batch = scores.shape[0]
    flat = scores.reshape(batch, len(centers_y) * len(centers_x)).astype(np.float64)
    maps = flat @ weights(centers_y, centers_x, height, width, power, neighbours).T
    return maps.reshape(batch, height, width).astype(scores.dtype)


def idw_map_torch(
    scores: torch.Tensor,
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float,
    neighbours: int | None,
) -> torch.Tensor:
    """The same on the device of the scores, a bounded number of pixels at a time."""
    batch = scores.shape[0]
    flat = scores.flatten(1).double()
    cy = torch.from_numpy(centers_y).to(scores.device)
    cx = torch.from_numpy(centers_x).to(scores.device)
    maps = torch.empty(batch, height * width, dtype=scores.dtype, device=scores.device)
    for start in range(0, height * width, PIXELS_A_STEP):
        pixel = torch.arange(start, min(start + PIXELS_A_STEP, height * width), device=scores.device)
        dy2 = ((pixel // width)[:, None] - cy).square()
        dx2 = ((pixel % width)[:, None] - cx).square()
        squared = (dy2[:, :, None] + dx2[:, None, :]).flatten(1)  # [pixels, P]
        nearest = squared.amin(dim=1, keepdim=True)
        weight = torch.where(squared > 0, nearest / squared, 1.0) ** (power / 2)
        weight = torch.where(nearest == 0, (squared == 0).double(), weight)
        if neighbours is not None:
            order = torch.argsort(squared, dim=1, stable=True)
            weight.scatter_(1, order[:, neighbours:], 0.0)
        maps[:, start : start + len(pixel)] = (flat @ weight.T / weight.sum(dim=1)).to(scores.dtype)
    return maps.reshape(batch, height, width)
