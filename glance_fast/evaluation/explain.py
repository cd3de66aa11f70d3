"""Why an image is anomalous: its worst places, which head spoke there, and what should be there.

What should be there is the normal patch nearest to z_g, which the surrounding predicts: of all patches of
photographs of good parts the one that would have the least s_IAD in that place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glance_fast.data.cache import ImageCache
from glance_fast.data.images import Pixels
from glance_fast.data.score_maps import resize_map
from glance_fast.evaluation.regions import Region, find_regions
from glance_fast.geometry import Hole, PatchGrid
from glance_fast.maps import blend_heads, combine
from glance_fast.model import Glance

MISPLACED, DAMAGED, BOTH = "misplaced or missing", "damaged", "damaged or misplaced"
MEANING = {
    MISPLACED: "looks whole, but does not belong here",
    DAMAGED: "looks damaged in itself",
    BOTH: "neither belongs here nor looks whole",
}
# The distortion head is silent where it says less than this share of what the inconsistency says.
SILENT = 0.5


@dataclass(frozen=True, eq=False)
class Place:
    """One of the worst places of an image.

    Attributes
    ----------
    region : Region
        In the image's own pixels.
    found : bool
        Whether its peak lies above the model's pixel threshold.
    scale, patch : int
        Which patch size sees it best, and which patch of its grid.
    box : Hole
        That patch, in pixels of the model's image size; beyond the border with a frame.
    inconsistency, distortion : float
        Maps of the two heads at the peak, in deviations of normal pixels.
    distance : float
        s_IAD of the patch.
    expected : Tensor
        What z_l should be there, [D]: z_g and the mean residual of the place.
    """

    region: Region
    found: bool
    scale: int
    patch: int
    box: Hole
    inconsistency: float
    distortion: float
    distance: float
    expected: Tensor

    @property
    def word(self) -> str:
        """By which head spoke.

        Inconsistency alone: the patch is one that normal images have, elsewhere. Distortion no less than
        inconsistency: no normal image has such a patch. Else both may be.
        """
        if self.distortion < SILENT * self.inconsistency:
            return MISPLACED
        return DAMAGED if self.distortion >= self.inconsistency else BOTH


class Explained(NamedTuple):
    """An image, explained.

    Attributes
    ----------
    score : float
        Of the image.
    map : ndarray
        Float32 [H, W], of the model's image size.
    places : list of Place
        The worst first; none where the map is flat.
    """

    score: float
    map: NDArray[np.float32]
    places: list[Place]


class Nearest(NamedTuple):
    """The normal patch nearest to what a place's surrounding predicts.

    Attributes
    ----------
    photograph : int
        Its place in the cache.
    box : Hole
        The patch, in pixels of the model's image size.
    distance : float
        s_IAD that it would have there.
    """

    photograph: int
    box: Hole
    distance: float


@torch.inference_mode()
def explain(
    model: Glance, image: Pixels, worst: int = 3, engine: str = "auto", precision: str = "auto"
) -> Explained:
    """Find the worst places of an image.

    They are the regions of its map above the pixel threshold or, where the map does not reach twice as high,
    above half of what it rises to: something is worst on every image.

    Parameters
    ----------
    model : Glance
        Trained.
    image : ndarray, uint8 or, for a model of such, uint16, shape [H, W, 3]
        Of any size, as stored.
    worst : int
        How many places at most.
    engine, precision : str
        As for ``Glance.score``.
    """
    batch = np.stack([model.prepare(image)])
    features = model.features(batch, engine, precision)
    statistics = model.calibration.scales
    triples = list(zip(model.scales, features, statistics, strict=True))
    scores = [scale.patch_scores(*pair, s) for scale, pair, s in triples]
    heads = model.head_maps(scores)
    maps, score = combine(heads, model.config, model.calibration)
    blends = [s.weight * s.map.standardise(blend_heads(m, s)) for m, s in zip(heads, statistics, strict=True)]
    map_ = maps[0].cpu().numpy()
    own = resize_map(map_, image.shape[:2])
    peak, threshold = float(own.max()), model.calibration.pixel_threshold
    places = []
    for region in find_regions(own, min(threshold, (peak + float(np.median(own))) / 2))[:worst]:
        y, x = _peak(own, region, model.config.image_size)
        index = int(np.argmax([float(blend[0, y, x]) for blend in blends]))
        scale, (_, global_), s = triples[index]
        patch = _patch_at(
            scores[index].blended[0].reshape(scale.grid.rows, scale.grid.cols), scale.grid, y, x
        )
        mean = 0 if scale.residual_mean is None else scale.residual_mean[patch]
        places.append(
            Place(
                region,
                region.peak > threshold,
                index,
                patch,
                Hole(*map(int, scale.grid.holes[patch])),
                float(s.inconsistency_map.standardise(heads[index].inconsistency[0, y, x])),
                float(s.distortion_map.standardise(heads[index].distortion[0, y, x])),
                float(scores[index].inconsistency[0, patch]),
                global_[0, patch] + mean,
            )
        )
    return Explained(float(score), map_, places)


def _peak(values: NDArray[np.float32], region: Region, size: tuple[int, int]) -> tuple[int, int]:
    """Where a region is highest, in pixels of a map of ``size``."""
    inside = values[region.top : region.bottom, region.left : region.right]
    # Others may reach into its box, and be higher.
    row, column = np.argwhere(inside == np.float32(region.peak))[0]
    height, width = values.shape
    return (
        int((region.top + row + 0.5) * size[0] / height),
        int((region.left + column + 0.5) * size[1] / width),
    )


def _patch_at(scores: Tensor, grid: PatchGrid, y: int, x: int) -> int:
    """The patch with the highest score among those about a pixel; scores [rows, cols]."""
    row = int(np.abs(grid.centers_y - y).argmin())
    column = int(np.abs(grid.centers_x - x).argmin())
    top, left = max(row - 1, 0), max(column - 1, 0)
    near = scores[top : row + 2, left : column + 2]
    i, j = divmod(int(near.argmax()), near.shape[1])
    return (top + i) * grid.cols + left + j


@torch.inference_mode()
def nearest_normal(
    model: Glance,
    places: Sequence[Place],
    cache: ImageCache,
    but: Sequence[frozenset[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Nearest | None]:
    """Of all patches of normal photographs, the one nearest to what is expected in each place.

    Parameters
    ----------
    model : Glance
        That found the places.
    places : sequence of Place
        Of any images.
    cache : ImageCache
        Photographs of good parts.
    but : sequence of set of int, optional
        For each place, photographs that are left out: the image itself may be among them.
    progress : callable, optional
        Called with (photographs done, photographs in all).

    Returns
    -------
    list of Nearest or None
        One a place; None where no photograph is left to look at.
    """
    best: list[Nearest | None] = [None] * len(places)
    together = model.memory_share("fp32").images
    for start in range(0, len(cache), together):
        chunk = range(start, min(start + together, len(cache)))
        images = torch.from_numpy(cache.batch(chunk)).to(model.device)
        for index, scale in enumerate(model.scales):
            asked = [number for number, place in enumerate(places) if place.scale == index]
            local = scale.local_features(images).float().flatten(1, 2) if asked else None
            for number in asked:
                assert local is not None
                place, left_out = places[number], but[number] if but else frozenset()
                apart = local - place.expected
                if scale.whitening is not None:
                    apart = apart @ scale.whitening[place.patch].float().T
                distance = apart.square().mean(2)
                distance[[i - start for i in chunk if i in left_out]] = torch.inf
                image, patch = divmod(int(distance.argmin()), len(scale.grid))
                least, so_far = float(distance[image, patch]), best[number]
                if least < (so_far.distance if so_far else torch.inf):
                    box = Hole(*map(int, scale.grid.holes[patch]))
                    best[number] = Nearest(start + image, box, least)
        if progress:
            progress(chunk.stop, len(cache))
    return best
