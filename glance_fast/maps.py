"""From patch scores to the map of an image and to its one score, on the device where the scores are."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glance_fast.calibration import Calibration, ScaleStatistics
from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.idw import idw_map

# Standard deviations after which the Gaussian is cut off.
TRUNCATE = 3.0
# Least probability that is told from 0 or 1, about float32's step below 1.
LEAST = 1e-7


class HeadMaps(NamedTuple):
    """Maps of the two scores of one scale, each float32 [B, H, W]."""

    inconsistency: Tensor
    distortion: Tensor


def distances(inconsistency: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    """What maps show of s_IAD and s_DAD: the root, a Mahalanobis distance, and the log odds.

    On normal images they are spread about evenly, where the scores themselves have a long tail or end at 1. A
    patch that shows little of a defect lights up less beside one that shows all of it.
    """
    return inconsistency.sqrt(), torch.logit(distortion, eps=LEAST)


def interpolate(patch_scores: Tensor, grid: PatchGrid, config: Config) -> Tensor:
    """Patch scores [B, P] to a map [B, H, W] by inverse-distance weighting, then a Gaussian.

    Both steps are linear, so maps of the two scores can be blended after them.
    """
    maps = idw_map(
        patch_scores.float().reshape(-1, grid.rows, grid.cols),
        grid.centers_y,
        grid.centers_x,
        grid.height,
        grid.width,
        power=config.idw_power,
        neighbours=min(config.idw_neighbours, len(grid)) or None,
    )
    if config.smoothing:
        rows = gaussian(grid.height, config.smoothing, maps.device)
        columns = gaussian(grid.width, config.smoothing, maps.device)
        maps = rows @ maps @ columns.T
    return maps


@lru_cache(maxsize=8)
def gaussian(size: int, deviation: float, device: torch.device) -> Tensor:
    """Float32 [size, size]: what smooths an axis, which beyond its ends goes on as it ends.

    As a matrix: two products a map take less time than a filter for images of 256 pixels, and twice as long
    for 1,024, where both are little beside the rest. A GPU needs no filter of its own for it.
    """
    radius = int(TRUNCATE * deviation + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    pixel = np.arange(size)
    for offset, weight in zip(offsets, weights, strict=True):
        np.add.at(matrix, (pixel, np.clip(pixel + offset, 0, size - 1)), weight)
    return torch.from_numpy(matrix).float().to(device)


def blend_heads(maps: HeadMaps, statistics: ScaleStatistics) -> Tensor:
    """Eq. 13 on maps, each standardised by its moments (which are 0 and 1 for the paper's blend)."""
    share = statistics.lambda_s
    inconsistency = statistics.inconsistency_map.standardise(maps.inconsistency)
    return share * inconsistency + (1 - share) * statistics.distortion_map.standardise(maps.distortion)


def confined(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps [B, H, W] with their least value inside a region, bool [H, W], everywhere outside it."""
    least = maps.masked_fill(~inside, torch.inf).amin((1, 2), keepdim=True)
    return torch.where(inside, maps, least)


def combine(
    maps: list[HeadMaps], config: Config, calibration: Calibration, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All scales together.

    Parameters
    ----------
    maps : list of HeadMaps
        One a scale.
    config : Config
        Its ``blend`` decides.
    calibration : Calibration
        Statistics of the scales, and of an image's score.
    inside : Tensor, optional
        Bool [H, W], the region of interest; all counts if not given.

    Returns
    -------
    maps : Tensor
        Float32 [B, H, W]. Calibrated: the largest over the scales of the standardised and weighted blends.
        Paper: their mean. Outside the region one value: no higher than any inside, than 0 (the mean of normal
        pixels; the least score of the paper's blend) or than the pixel threshold.
    scores : Tensor
        Float32 [B]. Calibrated: the standardised maximum of each head's map, the larger of the scales, summed
        over the heads, in deviations from that sum on normal images. Paper: the map's maximum.
    """
    if inside is not None:
        maps = [HeadMaps(*(confined(head, inside) for head in m)) for m in maps]
        total, scores = combine(maps, config, calibration)
        lowest = min(0.0, calibration.pixel_threshold)
        return torch.where(inside, total, confined(total, inside).clamp(max=lowest)), scores
    blends = [blend_heads(m, s) for m, s in zip(maps, calibration.scales, strict=True)]
    if config.blend == "paper":
        total = torch.stack(blends).mean(0)
        return total, total.amax((1, 2))
    weighted = [s.weight * s.map.standardise(b) for b, s in zip(blends, calibration.scales, strict=True)]
    heads: tuple[list[Tensor], list[Tensor]] = [], []
    for m, s in zip(maps, calibration.scales, strict=True):
        if s.lambda_s > 0:
            heads[0].append(s.inconsistency_peak.standardise(m.inconsistency.amax((1, 2))))
        if s.lambda_s < 1:
            heads[1].append(s.distortion_peak.standardise(m.distortion.amax((1, 2))))
    # A defect has one size, and either head alone may be the one that sees it: heads count evenly.
    peaks = [torch.stack(head) for head in heads if head]
    first, *others = (p.amax(0) if calibration.largest_peaks else p.sum(0) for p in peaks)
    image = sum(others, start=first)
    return torch.stack(weighted).amax(0), calibration.image.standardise(image)
