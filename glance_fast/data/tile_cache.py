"""Tiles of photographs, cut once and held in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Unlike
from glance_fast.data.images import resize
from glance_fast.data.strips import open_strips
from glance_fast.errors import ImageError, UserError
from glance_fast.geometry import TileGrid

MOST_TILES = 800
"""That are trained on: twice what calibration takes."""
log = logging.getLogger(__name__)


class TileCache(ImageCache):
    """Tiles of photographs, by index: about as many of each, drawn by the seed from those it is scored by.

    Parameters
    ----------
    paths : iterable of path
        The photographs.
    size : (height, width)
        Tiles are resized to it, in pixels.
    tile : int
        Side of a tile, pixels of the photograph.
    most : int
        Tiles to hold.
    seed : int
        Of the draw. Of a photograph of the same size, the same tiles come first.
    progress : callable, optional
        Called with the number of photographs read so far.

    Attributes
    ----------
    paths, shapes, groups, errors, held
        As of ``ImageCache``: of each tile its photograph, its own height and width, and which of the
        photographs that can be read it is of.
    counts : list of int
        Of each photograph that can be read, all its tiles.

    Raises
    ------
    UserError
        None of the files can be read.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        size: tuple[int, int],
        tile: int,
        most: int = MOST_TILES,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        files = [Path(path) for path in paths]
        self.size, self.held = size, True
        self._pool = self._files = None
        self.paths, self.shapes, self.errors = [], [], []
        self.counts: list[int] = []
        self.white, self.unlike = None, Unlike()
        groups: list[int] = []
        tiles: list[NDArray[np.uint8]] = []
        each = max(1, most // max(1, len(files)))
        for done, path in enumerate(files, start=1):
            try:
                cut, grid = _cut(path, size, tile, each, seed)
            except ImageError as error:
                self.errors.append(error)
            else:
                tiles += cut
                groups += [len(self.counts)] * len(cut)
                self.paths += [path] * len(cut)
                self.shapes += [grid.sides] * len(cut)
                self.counts.append(len(grid))
            if progress is not None:
                progress(done)
        if not tiles:
            first = f"; the first: {self.errors[0]}" if self.errors else ""
            raise UserError(f"none of {len(files)} images can be read{first}")
        for left_out in self.errors:
            log.warning("left out: %s", left_out)
        self.groups = np.array(groups)
        self._images = np.stack(tiles)


def _cut(
    path: Path, size: tuple[int, int], tile: int, most: int, seed: int
) -> tuple[list[NDArray[np.uint8]], TileGrid]:
    """Tiles of a photograph, resized, and all that there are."""
    strips = open_strips(path)
    if strips.rows(0, 1).dtype != np.uint8:
        raise ImageError(path, "has more than 8 bits, and tiles are seen in 8; save it so")
    grid = TileGrid(*strips.shape, (tile, tile))
    height, width = grid.sides
    drawn = np.random.default_rng(seed).permutation(len(grid))[:most]
    # The first of them is the first for any number: it tells the photograph again.
    tiles: dict[int, NDArray[np.uint8]] = {}
    for place in np.sort(drawn):
        top, left = grid.tops[place // len(grid.lefts)], grid.lefts[place % len(grid.lefts)]
        cut = strips.rows(top, top + height)[:, left : left + width]
        tiles[place] = resize(cut, size).astype(np.uint8, copy=False)
    return [tiles[place] for place in drawn], grid


def images_for(
    paths: Iterable[str | Path],
    config: Config,
    progress: Callable[[int], None] | None = None,
    white: int | Literal["found"] | None = "found",
) -> ImageCache:
    """What a model is trained on: whole photographs, or tiles of them, as ``config`` has it.

    ``white`` is as for ``ImageCache``.
    """
    limit = config.cache_mib << 20
    if config.tile is None:
        return ImageCache(paths, config.image_size, limit, progress=progress, white=white)
    most = min(MOST_TILES, limit // (3 * config.image_size[0] * config.image_size[1]))
    return TileCache(paths, config.image_size, config.tile, most, config.seed, progress)
