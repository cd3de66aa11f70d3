"""Every image below a folder to a map and a line of ``scores.csv``: ``glance-fast score-dir``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glance_fast.calibration import score_row
from glance_fast.data.files import check_inside
from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image, write_png
from glance_fast.data.prefetch import Prefetcher
from glance_fast.data.resolution import resolution_of
from glance_fast.data.roi import Masks, resize_scores
from glance_fast.data.score_maps import size_of_map, write_tiff
from glance_fast.data.store import Folder
from glance_fast.data.table import ScoreRow, printable
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.evaluation.tiled import score_by_tiles
from glance_fast.jobs.chunk import (
    Photo,
    fault_of,
    map_name,
    odd_photo,
    odd_shape,
    overlay_name,
    prepared,
    score_chunk,
    together,
)
from glance_fast.jobs.parts import fold_parts
from glance_fast.jobs.record import check_provenance, provenance_of, write_run
from glance_fast.jobs.shards import WHOLE, Shard, check_others, deal, fold
from glance_fast.jobs.table import (
    Odd,
    Summary,
    append_rows,
    drift_remarks,
    read_rows,
    sort_rows,
    write_rows,
)
from glance_fast.model import Glance
from glance_fast.scorers import scorers, side_by_side
from glance_fast.tiles import Tile, no_region, tile_of


class _Plan(NamedTuple):
    kept: list[ScoreRow]
    odd: Odd  # of the images of ``paths`` whose rows are kept
    todo: list[Path]


def find_images(images: Path, out: Path) -> list[Path]:
    """The images to score, in the order of ``scores.csv``.

    Raises
    ------
    UserError
        There are none, or ``out`` lies among them.
    """
    if out.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"{out}: lies in {images}, where overlays and maps would be taken for photographs; "
            "choose another folder for them"
        )
    return list_images(images)


def score_directory(
    model: Glance,
    images: Path,
    out: Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    tile: int | str | None = None,
    overlays: bool = False,
    resume: bool = False,
    shard: Shard = WHOLE,
    roi: Masks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Score every image below a folder.

    Writes ``out/maps/<relative path>.tiff`` (float32, the image's own size and resolution),
    ``out/scores.csv`` (path, score, above, anomalous, error), ``out/run.json`` and, if asked,
    ``out/overlays/<relative path>.png``.
    The suffix of the image stays part of the name, so that ``a.png`` and ``a.jpg`` do not meet. Rows are
    appended as they come, and memory does not grow with the number of images but for their names.

    ``score`` is in standard deviations from the mean of normal photographs' scores (for the paper's blend,
    the largest value of the map). ``above`` is the share of normal photographs that score as high or higher,
    as ``Calibration.share_above`` has it: 0.01 is one in a hundred. ``anomalous`` is 1 where the score lies
    above the threshold.

    Parameters
    ----------
    model : Glance
        Trained.
    images, out : Path
        Folders. What an earlier call wrote to ``out`` is replaced, unless ``resume``.
    engine, precision : str
        As for ``Glance.score``.
    tile : int, "auto" or None
        By which tiles photographs are scored, as for ``glance_fast.tiles.tile_of``. ``score`` is then that of
        the worst tile.
    overlays : bool
        Whether to write pictures of the maps over the images; of large ones, scored by tiles, smaller ones.
    resume : bool
        Keep what an earlier call with the same arguments wrote; score only images without a row, without
        their files, or with an error. Rows of images that are gone are kept. What shards left is gone on
        with, too.
    shard : Shard
        Score only these images, with a table and a ``run.json`` of their own beside those of the other
        shards; ``glance_fast.jobs.shards.join`` makes one of all.
    roi : Masks, optional
        Regions of interest, given at the model's image size, in place of the model's own. A photograph whose
        mask is missing or wrong has a row with the error.
    progress : callable, optional
        Called with (images done, images in all).

    Returns
    -------
    Summary

    Raises
    ------
    UserError
        The model has no such engine, no image is found, ``out`` lies among the images or was begun with
        other arguments, or something cannot be written. What was written stays.
    """
    images, out = Path(images), Path(out)
    model.check(engine, precision)
    listing = find_images(images, out)
    paths, table, run = shard.of(listing), shard.table(out), shard.run(out)
    sides = tile_of(model, tile)
    no_region(model.config, sides, roi if roi is not None else model.inside)
    provenance = provenance_of(model, images, engine, precision, roi, sides)
    if shard != WHOLE:
        provenance |= shard.record([printable(path.relative_to(images)) for path in listing])
        check_others(out, shard, provenance)
    elif resume:
        fold(out, provenance)
        fold_parts(Folder(out), provenance)
    del listing
    rows: dict[str, ScoreRow] = {}
    if resume:
        check_provenance(run, provenance)
        rows = read_rows(table)
    write_run(run, provenance)
    kept, odd, todo = _plan(model, images, out, paths, rows, overlays, sides)
    write_rows(table, kept)
    scored, anomalous, errors = len(kept), sum(row.anomalous == "1" for row in kept), 0
    del rows, kept

    done = len(paths) - len(todo)
    started = time.monotonic()
    if progress:
        progress(done, len(paths))
    pool = ThreadPoolExecutor(2, thread_name_prefix="glance-files")
    try:
        if sides is None:
            chunks = _score_whole(pool, model, images, out, todo, engine, precision, overlays, roi)
        else:
            chunks = _score_tiled(model, images, out, todo, sides, engine, precision, overlays)
        with contextlib.closing(chunks):
            for chunk, oddities in chunks:
                # After the maps: a row without an error tells that they are there.
                append_rows(table, chunk)
                scored += sum(not row.error for row in chunk)
                anomalous += sum(row.anomalous == "1" for row in chunk)
                errors += sum(bool(row.error) for row in chunk)
                odd = sum(oddities, odd)
                done += len(chunk)
                if progress:
                    progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    if resume:
        sort_rows(table, [printable(path.relative_to(images)) for path in paths])
    seconds = time.monotonic() - started
    found = {
        "scored": scored,
        "anomalous": anomalous,
        "errors": errors,
        "seconds": round(seconds, 3),
        "seconds_per_image": round(seconds / len(todo), 4) if todo else None,
    }
    if shard != WHOLE:
        found |= asdict(odd) | {"overlays": overlays}
    write_run(run, provenance | found)
    drift = drift_remarks(read_rows(table).values()) if shard == WHOLE else ()
    return Summary(scored, anomalous, errors, (*odd.remarks(), *drift))


def _plan(
    model: Glance,
    images: Path,
    out: Path,
    paths: Sequence[Path],
    rows: dict[str, ScoreRow],
    overlays: bool,
    tile: Tile | None,
) -> _Plan:
    """What is left to do of ``paths``, and what stays of the rows of an earlier call."""
    rows, todo, odd = dict(rows), [], Odd()
    for path in paths:
        name = path.relative_to(images)
        row = rows.get(printable(name))
        score_map, *others = _files(out, name, overlays)
        # A map has the size of its image. None is looked for where there is no score.
        size = size_of_map(score_map) if row is not None and not row.error else None
        if size is None or not all(file.is_file() for file in others):
            rows.pop(printable(name), None)
            todo.append(path)
        else:
            odd += odd_shape(model, size, tile)
    # Errors of images that are gone are of no use to anyone.
    return _Plan([row for row in rows.values() if not row.error], odd, todo)


def deal_directory(
    model: Glance,
    images: Path,
    out: Path,
    count: int,
    *,
    engine: str = "auto",
    precision: str = "auto",
    tile: int | str | None = None,
    roi: Masks | None = None,
) -> None:
    """Make all that was scored the work of so many shards, whatever it was before: each is to be resumed.

    Parameters
    ----------
    model : Glance
        Trained.
    images, out : Path
        Folders, as for ``score_directory``.
    count : int
        Of shards to be.
    engine, precision : str
        As for ``Glance.score``.
    tile : int, "auto" or None
        As for ``score_directory``.
    roi : Masks, optional
        As for ``score_directory``.

    Raises
    ------
    UserError
        ``out`` was begun with other arguments, or something cannot be written. What was written stays.
    """
    names = [printable(path.relative_to(images)) for path in find_images(images, out)]
    deal(out, count, names, provenance_of(model, images, engine, precision, roi, tile_of(model, tile)))


def _score_whole(
    pool: ThreadPoolExecutor,
    model: Glance,
    images: Path,
    out: Path,
    paths: list[Path],
    engine: str,
    precision: str,
    overlays: bool,
    roi: Masks | None,
) -> Generator[tuple[list[ScoreRow], list[Odd]], None, None]:
    """Rows of photographs that the model sees whole, and what is odd about those that could be read."""
    count = scorers(model, precision)
    step = -(-together(model.at_once(precision), overlays) // count)
    if len(paths) <= step:
        count = 1

    def score(chunk: tuple[list[Path], list[Photo | ImageError]]) -> tuple[list[ScoreRow], list[Odd]]:
        rows = _score_chunk(model, images, out, *chunk, engine, precision, pool)
        return rows, [odd_photo(model, photo) for photo in chunk[1] if isinstance(photo, Photo)]

    return side_by_side(score, _read_ahead(pool, images, paths, model, step, overlays, roi), count)


def _score_tiled(
    model: Glance,
    images: Path,
    out: Path,
    paths: list[Path],
    tile: Tile,
    engine: str,
    precision: str,
    overlays: bool,
) -> Generator[tuple[list[ScoreRow], list[Odd]], None, None]:
    """As ``_score_whole``, of photographs that the model sees by tiles."""
    for path in paths:
        name = path.relative_to(images)
        files = _files(out, name, overlays)
        shown = printable(name)
        try:
            for file in files:
                check_inside(file, out)
            found = score_by_tiles(model, path, tile, *files, engine=engine, precision=precision)
        except ImageError as error:
            yield [ScoreRow(shown, "", "", "", error.reason)], []
        except UserError as error:
            yield [ScoreRow(shown, "", "", "", fault_of(error, (out / "maps").is_dir()))], []
        else:
            row = score_row(model.calibration, shown, found.score)
            yield [row], [odd_shape(model, found.shape, tile, found.unlike)]


def _read_ahead(
    pool: ThreadPoolExecutor,
    images: Path,
    paths: list[Path],
    model: Glance,
    step: int,
    originals: bool,
    roi: Masks | None,
) -> Iterator[tuple[list[Path], list[Photo | ImageError]]]:
    """Chunks of so many paths with their images; the next chunk is decoded while this one is scored."""

    def read(path: Path) -> Photo | ImageError:
        try:
            image = read_image(path)
            inside = roi.of(path, path.relative_to(images), image.shape[:2]) if roi else None
            return prepared(model, image, originals, inside, resolution_of(path))
        except ImageError as error:
            return error

    files = Prefetcher(pool, read)
    for start in range(0, len(paths), step):
        chunk = paths[start : start + step]
        photos = files.batch(chunk)
        files.prefetch(paths[start + step : start + 2 * step])
        yield chunk, photos


def _score_chunk(
    model: Glance,
    images: Path,
    out: Path,
    paths: list[Path],
    read: list[Photo | ImageError],
    engine: str,
    precision: str,
    pool: ThreadPoolExecutor,
) -> list[ScoreRow]:
    """Score images that could be read, write their files; a row for every one, in order."""
    names = [path.relative_to(images) for path in paths]
    display = display_range(model.calibration)

    def write(i: int, photo: Photo, score_map: np.ndarray, inside: np.ndarray | None) -> str:
        return _write(out, names[i], photo, score_map, display, inside)

    return score_chunk(model, [printable(name) for name in names], read, write, engine, precision, pool)


def _write(
    out: Path,
    name: Path,
    photo: Photo,
    score_map: np.ndarray,
    display: tuple[float, float, float | None],
    inside: np.ndarray | None,
) -> str:
    """Write the files of one image; gives what is wrong with its name, if something is."""
    full = resize_scores(score_map, photo.shape, inside)
    files = _files(out, name, photo.original is not None)
    try:
        for file in files:
            check_inside(file, out)
        write_tiff(files[0], full, photo.resolution)
        if photo.original is not None:
            write_png(files[1], overlay(photo.original, full, *display))
    except UserError as error:
        return fault_of(error, (out / "maps").is_dir())
    return ""


def _files(out: Path, name: Path, overlays: bool) -> list[Path]:
    """The map of an image and, if asked, its overlay."""
    files = [out / map_name(name.as_posix())]
    return [*files, out / overlay_name(name.as_posix())] if overlays else files
