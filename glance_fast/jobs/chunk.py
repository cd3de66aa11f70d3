"""Some photographs scored together: a row and a map of each, wherever they come from and go to."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from glance_fast.calibration import score_row
from glance_fast.data.depth import Unlike, shown_as, unlike
from glance_fast.data.images import Pixels
from glance_fast.data.resolution import Resolution
from glance_fast.data.table import ScoreRow
from glance_fast.errors import ImageError, UserError
from glance_fast.jobs.table import Odd
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.tiles import Tile

# Whole photographs in memory at a time, for overlays: they are larger than what is made of them.
MOST_ORIGINALS = 8
# Photographs of another shape than in training are stretched; beyond this share it is said.
ASPECT_TOLERANCE = 0.05


class Photo(NamedTuple):
    """A photograph that was read."""

    shape: tuple[int, int]
    resized: np.ndarray
    original: np.ndarray | None  # for an overlay, uint8
    unlike: Unlike
    resolution: Resolution | None
    inside: np.ndarray | None = None  # its region of interest, where it is not the model's own


# Writes the files of an image: its number, itself, its map and its region of interest, both at the model's
# size. Gives what is wrong with its name, if something is.
Write = Callable[[int, Photo, np.ndarray, np.ndarray | None], str]


def prepared(
    model: Glance,
    image: Pixels,
    original: bool,
    inside: np.ndarray | None,
    resolution: Resolution | None,
) -> Photo:
    """What scoring needs of a photograph, and the whole of it if an overlay is to be made.

    Raises
    ------
    ImageError
        The model cannot be asked about it.
    """
    resized, white = model.prepare(image), model.calibration.white
    shown = shown_as(image, white) if original else None
    return Photo(image.shape[:2], resized, shown, unlike(image, white), resolution, inside)


def together(at_once: int, overlays: bool) -> int:
    """How many photographs a chunk holds, of those that a model takes at once."""
    return min(at_once, MOST_ORIGINALS) if overlays else at_once


def score_chunk(
    model: Glance,
    names: Sequence[str],
    read: Sequence[Photo | ImageError],
    write: Write,
    engine: str,
    precision: str,
    pool: ThreadPoolExecutor,
) -> list[ScoreRow]:
    """Score the photographs that could be read and write their files; a row for every one, in order.

    Parameters
    ----------
    model : Glance
        Trained.
    names : sequence of str
        As the table is to have them.
    read : sequence of Photo or ImageError
        As many; why there is none.
    write : callable
        Called in threads of ``pool``.
    engine, precision : str
        As for ``Glance.score``.
    pool : ThreadPoolExecutor
    """
    good = {i: photo for i, photo in enumerate(read) if isinstance(photo, Photo)}
    errors = {i: photo.reason for i, photo in enumerate(read) if isinstance(photo, ImageError)}
    scores: dict[int, float] = {}
    if good:
        regions = [photo.inside for photo in good.values() if photo.inside is not None]
        resized = [photo.resized for photo in good.values()]
        result = model.score(resized, engine, precision, roi=regions or None)
        writes = {}
        seen = map(result.seen, range(len(good)))
        for (i, photo), score, (score_map, inside) in zip(good.items(), result.scores, seen, strict=True):
            if not (math.isfinite(score) and np.isfinite(score_map).all()):
                errors[i] = NOT_FINITE
                continue
            scores[i] = float(score)
            writes[i] = pool.submit(write, i, photo, score_map, inside)
        for i, written in writes.items():
            reason = written.result()
            if reason:
                errors[i] = reason
    rows = []
    for i, name in enumerate(names):
        if i in errors:
            rows.append(ScoreRow(name, "", "", "", errors[i]))
        else:
            rows.append(score_row(model.calibration, name, scores[i]))
    return rows


def map_name(name: str) -> str:
    """The map of a photograph, below the output folder."""
    return f"maps/{name}.tiff"


def overlay_name(name: str) -> str:
    """Its overlay."""
    return f"overlays/{name}.png"


def fault_of(error: UserError, maps: bool) -> str:
    """What is wrong with an image's name, where that is why its files cannot be written; raised if not.

    Parameters
    ----------
    error : UserError
        From writing them.
    maps : bool
        Whether the folder of maps is there.
    """
    # This is one image's fault; a full disk, say, concerns them all.
    code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
    if code == errno.ENAMETOOLONG:
        return "its name is too long for that of a map; rename it"
    # A folder of photographs may be named as the map of one.
    if code in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR) and maps:
        return "its map and another's folder have one name; rename it"
    raise error


def odd_photo(model: Glance, photo: Photo) -> Odd:
    """What is odd about a photograph that was read."""
    return odd_shape(model, photo.shape, None, photo.unlike)


def odd_shape(model: Glance, shape: tuple[int, int], tile: Tile | None, depth: Unlike | None = None) -> Odd:
    """What is odd about a photograph of that height and width, and depth where that is known."""
    height, width = shape
    odd = Odd(shallow=depth.shallow, above=depth.above) if depth else Odd()
    if tile is not None:
        return odd + Odd(cut=int(height < tile[0] or width < tile[1]))
    stretched = model.config.aspect == "stretch" and (
        abs(width / height / model.calibration.aspect - 1) > ASPECT_TOLERANCE
    )
    return odd + Odd(int(stretched), int(min(shape) < min(model.config.patches)))
