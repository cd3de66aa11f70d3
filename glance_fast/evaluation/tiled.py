"""One photograph of any size scored by tiles, and its files: memory holds a row of tiles, and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.depth import Unlike, check_depth, shown_as, unlike
from glance_fast.data.images import Pixels, write_png
from glance_fast.data.resolution import resolution_of
from glance_fast.data.score_maps import tiff_rows
from glance_fast.data.strips import Strips, open_strips
from glance_fast.errors import ImageError
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.tiles import Tile, score_tiles

MOST_SHOWN = 1 << 24
"""Pixels of an overlay; those of larger photographs are smaller than they."""


class ByTiles(NamedTuple):
    """What is found of a photograph.

    Attributes
    ----------
    score : float
        The highest of a tile.
    shape : (int, int)
        Height and width of the photograph.
    unlike : Unlike
        Whether its depth is not that of the photographs in training.
    """

    score: float
    shape: tuple[int, int]
    unlike: Unlike


def score_by_tiles(
    model: Glance,
    path: Path,
    tile: Tile,
    map_path: Path,
    overlay_path: Path | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
) -> ByTiles:
    """Score a photograph by tiles, and write its map as it comes.

    Parameters
    ----------
    model : Glance
        Trained.
    path : Path
        The photograph.
    tile : (int, int)
        Height and width of a tile, pixels.
    map_path : Path
        Gets the map: TIFF, float32, of the photograph's own size and resolution.
    overlay_path : Path, optional
        Gets a picture of the map over the photograph: PNG, of at most ``MOST_SHOWN`` pixels.
    engine, precision : str
        As for ``Glance.score``.

    Returns
    -------
    ByTiles

    Raises
    ------
    ImageError
        The photograph cannot be read, is deeper than those in training, or its scores are not finite; nothing
        is written.
    UserError
        A file cannot be written.
    """
    white = model.calibration.white
    strips = _Noted(open_strips(path), white)
    check_depth(strips.rows(0, 1), white, path)
    picture = Picture(strips.shape, MOST_SHOWN) if overlay_path else None
    top = 0
    with tiff_rows(map_path, strips.shape, resolution_of(path)) as write:

        def take(rows: NDArray[np.float32]) -> None:
            nonlocal top
            if not np.isfinite(rows).all():
                raise ImageError(path, NOT_FINITE)
            write(rows)
            if picture:
                shown = shown_as(strips.rows(top, top + len(rows)), white)
                picture.add(top, shown, rows)
            top += len(rows)

        score = score_tiles(model, strips, tile, take, engine, precision)
        if not math.isfinite(score):
            raise ImageError(path, NOT_FINITE)
    if picture and overlay_path:
        image, score_map = picture.reduced()
        write_png(overlay_path, overlay(image, score_map, *display_range(model.calibration)))
    return ByTiles(score, strips.shape, strips.unlike)


class _Noted:
    """Rows of an image, and whether any are unlike those in training."""

    def __init__(self, strips: Strips, white: int | None) -> None:
        self._strips, self._white, self.unlike = strips, white, Unlike()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self._strips.shape

    def rows(self, top: int, bottom: int) -> Pixels:
        """As of the image."""
        rows = self._strips.rows(top, bottom)
        if rows.size:
            found = unlike(rows, self._white)
            self.unlike = Unlike(found.shallow, max(found.above, self.unlike.above))
        return rows


class Picture:
    """A photograph and its map, reduced by a whole number as their rows come.

    Parameters
    ----------
    shape : (height, width)
        Of both, pixels.
    most : int
        Pixels that are left, at most.
    """

    def __init__(self, shape: tuple[int, int], most: int) -> None:
        self._step = max(1, math.ceil(math.sqrt(shape[0] * shape[1] / most)))
        self._shape = shape
        height, width = (-(-side // self._step) for side in shape)
        self._image = np.zeros((height, width, 3), np.float32 if self._step > 1 else np.uint8)
        self._map = np.full((height, width), -np.inf, np.float32)

    def add(self, top: int, image: NDArray[np.uint8], score_map: NDArray[np.float32]) -> None:
        """Take rows from ``top`` on: uint8 [n, W, 3], and float32 [n, W]."""
        step = self._step
        if step == 1:
            self._image[top : top + len(image)], self._map[top : top + len(image)] = image, score_map
            return
        to, firsts = np.arange(top, top + len(image)) // step, np.arange(0, self._shape[1], step)
        np.add.at(self._image, to, np.add.reduceat(image, firsts, axis=1, dtype=np.float32))
        # Of what is found, nothing is to be lost.
        np.maximum.at(self._map, to, np.maximum.reduceat(score_map, firsts, axis=1))

    def reduced(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The mean colours, uint8 [h, w, 3], and the highest scores, float32 [h, w]."""
        if self._step == 1:
            return self._image, self._map
        rows, columns = (np.diff([*range(0, side, self._step), side]) for side in self._shape)
        mean = self._image / np.outer(rows, columns)[..., None]
        return np.rint(mean).astype(np.uint8), self._map
