"""From patch scores to the map of an image and to its one score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.idw import idw_map
from glance_fast.scoring.statistics import Calibration, ScaleStatistics


class HeadMaps(NamedTuple):
    """Maps of the two scores of one scale, each float32 [B, H, W]."""

    inconsistency: np.ndarray
    distortion: np.ndarray


def interpolate(patch_scores: np.ndarray, grid: PatchGrid, config: Config) -> np.ndarray:
    """Patch scores [B, P] to a map [B, H, W] by inverse-distance weighting, then a Gaussian.

    Both steps are linear, so maps of the two scores can be blended after them.
    """
    scores = np.ascontiguousarray(patch_scores, dtype=np.float32).reshape(-1, grid.rows, grid.cols)
    neighbours = min(config.idw_neighbours, len(grid)) or None
    maps = idw_map(
        scores,
        grid.centers_y,
        grid.centers_x,
        grid.height,
        grid.width,
        power=config.idw_power,
        neighbours=neighbours,
    )
    if config.smoothing:
        maps = gaussian_filter(maps, (0, config.smoothing, config.smoothing), mode="nearest", truncate=3.0)
    return maps


def blend_heads(maps: HeadMaps, statistics: ScaleStatistics) -> np.ndarray:
    """Eq. 13 on maps, each standardised by its moments (which are 0 and 1 for the paper's blend)."""
    share = np.float32(statistics.lambda_s)
    inconsistency = statistics.inconsistency_map.standardise(maps.inconsistency)
    return share * inconsistency + (1 - share) * statistics.distortion_map.standardise(maps.distortion)


def combine(maps: list[HeadMaps], config: Config, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """All scales together.

    Parameters
    ----------
    maps : list of HeadMaps
        One a scale.

    Returns
    -------
    maps : ndarray, float32 [B, H, W]
        Calibrated: the largest over the scales of the standardised blends. Paper: their mean.
    scores : ndarray, float32 [B]
        Calibrated: the sum over scales and heads of each map's standardised maximum. Paper: the map's
        maximum.
    """
    blends = [blend_heads(m, s) for m, s in zip(maps, calibration.scales, strict=True)]
    if config.blend == "paper":
        total = np.mean(blends, axis=0, dtype=np.float32)
        return total, total.max((1, 2))
    standardised = [s.map.standardise(b) for b, s in zip(blends, calibration.scales, strict=True)]
    image = np.zeros(len(blends[0]), np.float32)
    for m, s in zip(maps, calibration.scales, strict=True):
        # Peaks are summed evenly: any head alone may be the one that sees the defect.
        if s.lambda_s > 0:
            image += s.inconsistency_peak.standardise(m.inconsistency.max((1, 2)))
        if s.lambda_s < 1:
            image += s.distortion_peak.standardise(m.distortion.max((1, 2)))
    return np.max(standardised, axis=0).astype(np.float32), image
