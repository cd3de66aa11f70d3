"""What whole photographs score that are seen by tiles: the threshold is one for photographs.

Statistics of patches are those of ``glance_fast.training.whitening``, of every position in a tile its own:
where a patch lies in a tile says nothing of the part, but how much of its surrounding the model sees. One
covariance for all positions found less of defects planted on tiles held out (fabric: PRO .63 and not .65).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glance_fast.calibration import Calibration, Moments, with_thresholds
from glance_fast.data.strips import open_strips
from glance_fast.data.tile_cache import TileCache
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.tiles import score_tiles, tile_of
from glance_fast.training.calibrate import features_of, room
from glance_fast.training.whitening import FOLDS, whitenings

# Tiles that are scored to set the threshold, and to have enough photographs at all.
ENOUGH, MOST = 2000, 20_000
# Of fewer, single tiles say what is normal.
LEAST_PHOTOGRAPHS = 8


class Peak:
    """The highest pixel of a map that comes in rows."""

    value = -math.inf

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take rows of the map."""
        self.value = max(self.value, float(rows.max()))


def calibrate_photographs(
    model: Glance,
    cache: TileCache,
    reporter: Reporter,
    among: Sequence[int] | None = None,
    seen: bool = True,
) -> None:
    """Set the threshold of a model that sees tiles by what whole photographs of good parts score.

    A photograph scores as the worst of its tiles does, which is more the more tiles it has. So statistics of
    tiles, which ``calibrate`` measured, would call too many photographs anomalous.

    Parameters
    ----------
    model : Glance
        Calibrated on tiles; its ``calibration`` is changed in place, unless there are too few photographs.
    cache : TileCache
        Photographs of good parts. They are taken in an order drawn by the seed until there are enough tiles.
    reporter : Reporter
        Shows progress, and says where there are too few.
    among : sequence of int, optional
        Which of the photographs to use (``TileCache.groups``); all if not given.
    seen : bool
        Whether the whitening was fitted to these photographs: each is then scored by one that was fitted to
        others.
    """
    known = np.arange(len(cache.counts)) if among is None else np.array(among)
    chosen = known[_choose(np.array(cache.counts)[known], model.config.seed)]
    if len(chosen) < LEAST_PHOTOGRAPHS:
        reporter.say(
            f"{len(known)} photographs are too few to say what whole ones score. The threshold is one "
            "for single tiles: expect more false alarms, the more tiles a photograph has"
        )
        return
    tile = tile_of(model)
    assert tile is not None
    scores: list[float] = []
    peaks: list[float] = []
    paths = [cache.paths[i] for i in np.unique(cache.groups, return_index=True)[1]]
    with reporter.task("scoring photographs", len(chosen)) as advance:
        for part in _unseen(model, cache, chosen) if seen else [chosen]:
            for place in part:
                peak = Peak()
                scores.append(score_tiles(model, open_strips(paths[place]), tile, peak.add))
                peaks.append(peak.value)
                advance(len(scores))
    model.calibration = _of_photographs(model, np.array(scores), np.array(peaks))


def _choose(counts: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Which photographs to score, by the number of their tiles."""
    order = np.random.default_rng(seed).permutation(len(counts))
    tiles = np.cumsum(counts[order])
    enough = max(int(np.searchsorted(tiles, ENOUGH)) + 1, LEAST_PHOTOGRAPHS)
    return order[: min(enough, int(np.searchsorted(tiles, MOST, side="right")))]


@torch.inference_mode()
def _unseen(model: Glance, cache: TileCache, chosen: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Parts of the photographs, while the model has a whitening that has not seen the part; then its own."""
    if model.config.blend == "paper":
        yield chosen
        return
    before = {name: value.clone() for name, value in _statistics(model).items()}
    sample = np.random.default_rng(model.config.seed).permutation(len(cache))[: room(model, len(cache))]
    residuals: list[list[Tensor]] = [[] for _ in model.scales]
    for chunk in features_of(model, cache, sample):
        for parts, (local, global_) in zip(residuals, chunk, strict=True):
            parts.append((local - global_).half().cpu())
    whole = [torch.cat(parts) for parts in residuals]
    try:
        for fold in range(FOLDS):
            part = chosen[fold::FOLDS]
            others = torch.from_numpy(~np.isin(cache.groups[sample], part))
            for scale, residual in zip(model.scales, whole, strict=True):
                assert scale.residual_mean is not None and scale.whitening is not None
                for rows, mean, whitening in whitenings(residual, scale.grid, model.config.shrinkage, others):
                    scale.residual_mean[rows] = mean.to(model.device)
                    scale.whitening[rows] = whitening.half().to(model.device)
            yield part
    finally:
        for name, value in _statistics(model).items():
            value.copy_(before[name])


def _statistics(model: Glance) -> dict[str, Tensor]:
    """The buffers that whiten."""
    named = dict(model.named_buffers())
    return {n: v for n, v in named.items() if n.endswith(("residual_mean", "whitening"))}


def _of_photographs(model: Glance, scores: NDArray[np.float64], peaks: NDArray[np.float64]) -> Calibration:
    """A calibration whose scores are those of photographs, in deviations from their mean."""
    calibration = model.calibration
    if model.config.blend == "calibrated":
        found, tiles = Moments.of(scores), calibration.image
        calibration = dataclasses.replace(
            calibration, image=Moments(tiles.mean + found.mean * tiles.std, found.std * tiles.std)
        )
        scores = (scores - found.mean) / found.std
    return with_thresholds(
        dataclasses.replace(calibration, scores=tuple(map(float, scores)), peaks=tuple(map(float, peaks))),
        calibration.false_alarms,
    )
