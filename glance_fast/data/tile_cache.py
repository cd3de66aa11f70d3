"""Tiles of photographs, cut once and held in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Unlike, check_depth, fitted, white_of
from glance_fast.data.images import Pixels, resize
from glance_fast.data.strips import Strips, open_strips
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
        Tiles to hold, at most.
    limit : int
        Bytes that they may take; fewer are held where they take more.
    seed : int
        Of the draw. Of a photograph of the same size, the same tiles come first.
    progress : callable, optional
        Called with the number of photographs read so far.
    white : int or None, optional
        As for ``ImageCache``.

    Attributes
    ----------
    paths, shapes, groups, errors, held, white, unlike
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
        limit: int = 2 << 30,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
        white: int | Literal["found"] | None = "found",
    ) -> None:
        files = [Path(path) for path in paths]
        self.size, self.held = size, True
        self._pool = self._files = None
        self.paths, self.shapes, self.errors = [], [], []
        self.counts: list[int] = []
        self.unlike = Unlike()
        groups: list[int] = []
        tiles: list[Pixels] = []
        # The largest stored value of each photograph of more than 8 bits.
        largest: list[int | None] = []
        a_value = size[0] * size[1] * 3 * max(1, len(files))

        def number(bytes_a_value: int) -> int:
            return max(1, min(most // max(1, len(files)), limit // (a_value * bytes_a_value)))

        for done, path in enumerate(files, start=1):
            try:
                strips = open_strips(path)
                depth = strips.rows(0, 1)
                if white != "found":
                    check_depth(depth, white, path)
                grid = TileGrid(*strips.shape, (tile, tile))
                cut, highest = _cut(strips, grid, size, number(depth.itemsize), seed, white)
            except ImageError as error:
                self.errors.append(error)
            else:
                tiles += cut
                groups += [len(self.counts)] * len(cut)
                self.paths += [path] * len(cut)
                self.shapes += [grid.sides] * len(cut)
                self.counts.append(len(grid))
                largest.append(highest if depth.dtype != np.uint8 else None)
            if progress is not None:
                progress(done)
        if not tiles:
            first = f"; the first: {self.errors[0]}" if self.errors else ""
            raise UserError(f"none of {len(files)} images can be read{first}")
        for left_out in self.errors:
            log.warning("left out: %s", left_out)
        self.groups = np.array(groups)
        self._images = np.stack(tiles)  # type: ignore[assignment]  # of uint8 and uint16: uint16
        deep = [value for value in largest if value is not None]
        if white != "found":
            self.white = white
            if white is not None:
                above = sum(value > white for value in deep)
                self.unlike = Unlike(shallow=len(largest) - len(deep), above=above)
        else:
            self.white = white_of(max(deep)) if deep else None
            self.unlike = Unlike(shallow=len(largest) - len(deep)) if deep else Unlike()
            self._settle([largest[group] is None for group in groups])


def _cut(
    strips: Strips,
    grid: TileGrid,
    size: tuple[int, int],
    most: int,
    seed: int,
    white: int | Literal["found"] | None,
) -> tuple[list[Pixels], int]:
    """Tiles of a photograph, fitted or, before its white is known, resized; and its largest value."""
    height, width = grid.sides
    drawn = np.random.default_rng(seed).permutation(len(grid))[:most]
    # The first of them is the first for any number: it tells the photograph again.
    tiles: dict[int, Pixels] = {}
    largest = 0
    for place in np.sort(drawn):
        top, left = grid.tops[place // len(grid.lefts)], grid.lefts[place % len(grid.lefts)]
        rows = strips.rows(top, top + height)
        largest = max(largest, int(rows.max()))
        cut = rows[:, left : left + width]
        tiles[place] = resize(cut, size) if white == "found" else fitted(cut, size, white)
    return [tiles[place] for place in drawn], largest


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
    return TileCache(paths, config.image_size, config.tile, MOST_TILES, limit, config.seed, progress, white)
