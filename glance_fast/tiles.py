"""Photographs larger than what a model sees: scored by overlapping tiles, whose maps are blended into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.config import Config
from glance_fast.data.depth import check_depth, fitted
from glance_fast.data.images import Pixels
from glance_fast.data.score_maps import resize_map
from glance_fast.data.strips import Held, Strips, open_strips
from glance_fast.errors import UserError
from glance_fast.geometry import TileGrid
from glance_fast.model import NO_REGION, Glance

Tile = tuple[int, int]


def tile_of(model: Glance, wanted: int | str | None = None) -> Tile | None:
    """Height and width of the tiles by which a model scores photographs, in their pixels.

    Parameters
    ----------
    model : Glance
    wanted : int, "auto" or None
        A side; or "auto" for the scale that the model was trained at: its own ``tile``, or photographs of the
        size that those in training had. None: its own ``tile``, or whole photographs.

    Returns
    -------
    (int, int) or None
        None for whole photographs.

    Raises
    ------
    UserError
        A side is less than 1, or is another than the model's own ``tile``; or the run folder is of an earlier
        version, which did not keep how large photographs were.
    """
    own = model.config.tile
    if wanted is not None and model.config.aspect == "letterbox":
        raise UserError(
            f"`tile={wanted}`: the model keeps the aspect of whole photographs (`aspect`); leave it away"
        )
    if own is not None:
        if wanted not in (None, "auto", own):
            raise UserError(f"`tile={wanted}`: the model was trained on tiles of {own} pixels; leave it away")
        return own, own
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted != "auto":
            raise UserError(f"`tile={wanted}`: expected auto or a number of pixels")
        if model.calibration.shape is None:
            raise UserError(
                "`tile=auto`: the model is of an earlier version, which did not keep how large photographs "
                "were; give the side of one in pixels"
            )
        return model.calibration.shape
    if wanted < 1:
        raise UserError(f"`tile={wanted}`: expected auto or a number of pixels")
    return wanted, wanted


def score_tiles(
    model: Glance,
    strips: Strips,
    tile: Tile,
    write: Callable[[NDArray[np.float32]], None],
    engine: str = "auto",
    precision: str = "auto",
) -> float:
    """Score a photograph by tiles, from top to bottom.

    Each tile is fitted to the model's image size and depth, and scored as an image. Where tiles overlap,
    their maps are blended by weights that fall towards a tile's border and sum to 1.

    Parameters
    ----------
    model : Glance
    strips : Strips
        The photograph.
    tile : (int, int)
        Height and width of a tile, pixels; a side longer than the photograph's is cut to it.
    write : callable
        Called with rows of the map, float32 [n, W], one below the other. They are only valid meanwhile.
    engine, precision : str
        As for ``Glance.score``.

    Returns
    -------
    float
        The highest score of a tile.

    Raises
    ------
    ImageError
        The photograph is damaged, or is deeper than those in training.
    UserError
        As for ``Glance.score``.
    """
    grid = TileGrid(*strips.shape, tile)
    height, width = grid.sides
    together = model.at_once(precision)
    # Rows of the map that tiles still to come add to, and those of this row of tiles.
    blended = np.zeros((height, grid.width), np.float32)
    highest = np.float32(-np.inf)
    for index, top in enumerate(grid.tops):
        rows = strips.rows(top, top + height)
        for first in range(0, len(grid.lefts), together):
            lefts = grid.lefts[first : first + together]
            images = [
                fitted(rows[:, left : left + width], model.config.image_size, model.calibration.white)
                for left in lefts
            ]
            found = model.score(images, engine, precision)
            highest = np.maximum(highest, found.scores.max())  # NaN stays
            for left, score_map, weights in zip(lefts, found.maps, grid.weights_x[first:], strict=False):
                values = score_map
                if values.shape != grid.sides:
                    values = resize_map(score_map, grid.sides)
                blended[:, left : left + width] += grid.weights_y[index][:, None] * (values * weights)
        done = (grid.tops[index + 1] if index + 1 < len(grid.tops) else grid.height) - top
        write(blended[:done])
        blended[: height - done] = blended[done:].copy()
        blended[height - done :] = 0
    return float(highest)


def prepared(model: Glance, image: Pixels, path: str | Path = "image") -> Pixels:
    """An image [H, W, 3] as ``score_images`` takes it: of the model's size, unless it sees tiles.

    Raises
    ------
    ImageError
        It is deeper than those in training; the error names ``path``.
    """
    if model.config.tile is None:
        return model.prepare(image, path)
    check_depth(image, model.calibration.white, path)
    return image


class Seen(NamedTuple):
    """What a model says of an image.

    Attributes
    ----------
    map : ndarray, float32 [H, W]
        Of the model's size, or the part of it that the image takes; by tiles, of the image's own.
    score : float
    inside : ndarray or None
        The region of interest, bool of the map's shape; None where there is none.
    """

    map: NDArray[np.float32]
    score: float
    inside: NDArray[np.bool_] | None = None


def score_images(
    model: Glance,
    images: Sequence[Pixels],
    engine: str = "auto",
    precision: str = "auto",
    roi: Sequence[NDArray[np.bool_]] | None = None,
) -> list[Seen]:
    """Map and score of each of some images as the model sees them: whole, or by tiles.

    Parameters
    ----------
    model : Glance
    images : sequence of ndarray
        [H, W, 3]; those that ``prepared`` gives save time where they are scored whole.
    engine, precision, roi
        As for ``Glance.score``; a model of tiles has no region of interest.

    Returns
    -------
    list of Seen
    """
    if model.config.tile is not None:
        return [Seen(*score_photograph(model, image, None, engine, precision)) for image in images]
    regions = {} if roi is None else {"roi": roi}
    result = model.score(images, engine, precision, **regions)
    seen = map(result.seen, range(len(images)))
    return [Seen(m, float(s), i) for s, (m, i) in zip(result.scores, seen, strict=True)]


def no_region(config: Config, tile: Tile | int | None, roi: object) -> None:
    """Refuse a region of interest beside tiles, or where photographs keep their aspect.

    Raises
    ------
    UserError
        Both are given.
    """
    if roi is not None and config.aspect == "letterbox":
        raise UserError(NO_REGION)
    if tile is not None and roi is not None:
        raise UserError("`roi`: a region of interest is for whole photographs, and these are seen by tiles")


def whole_only(config: Config, what: str) -> None:
    """Refuse a model of tiles, or one that keeps photographs' aspect, where neither is provided for.

    Raises
    ------
    UserError
        It is one.
    """
    if config.tile is not None:
        raise UserError(
            f"{what}: sees whole photographs, and this model tiles of {config.tile} pixels (`tile`); "
            "score-dir, evaluate, watch and serve see them, too"
        )
    if config.aspect == "letterbox":
        raise UserError(
            f"{what}: sees photographs of the model's shape alone, and this model keeps the aspect of others "
            "(`aspect`); score-dir, evaluate, watch, serve and calibrate are for it"
        )


def score_photograph(
    model: Glance,
    image: str | Path | Pixels,
    tile: int | str | None = "auto",
    engine: str = "auto",
    precision: str = "auto",
) -> tuple[NDArray[np.float32], float]:
    """The map and the score of one photograph of any size, by tiles.

    Parameters
    ----------
    model : Glance
    image : path, or ndarray [H, W, 3]
    tile : int or "auto"
        As for ``tile_of``.
    engine, precision : str
        As for ``Glance.score``.

    Returns
    -------
    map : ndarray, float32 [H, W]
        Of the photograph's own size.
    score : float
        The highest score of a tile.

    Raises
    ------
    ImageError
        The photograph cannot be read, or is deeper than those in training.
    UserError
        As for ``tile_of`` and ``Glance.score``.
    """
    strips = Held(image) if isinstance(image, np.ndarray) else open_strips(image)
    name = "image" if isinstance(image, np.ndarray) else image
    check_depth(strips.rows(0, 1), model.calibration.white, name)
    parts: list[NDArray[np.float32]] = []
    chosen = tile_of(model, tile) or strips.shape
    score = score_tiles(model, strips, chosen, lambda rows: parts.append(rows.copy()), engine, precision)
    return np.concatenate(parts), score
