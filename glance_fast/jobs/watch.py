"""Images scored as they come: ``glance-fast watch``.

A thread waits for images and another one decodes them, few ahead, so that memory stays flat; the caller's own
thread scores what is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.calibration import verdict
from glance_fast.data.depth import Unlike, shown_as, unlike
from glance_fast.data.files import check_inside
from glance_fast.data.images import Pixels, read_image, write_png
from glance_fast.data.roi import resize_scores
from glance_fast.errors import ImageError, UserError, cannot_write
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.jobs.belt import Belt
from glance_fast.jobs.chunk import MOST_ORIGINALS
from glance_fast.jobs.sources import Arrival, Source
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.tiles import prepared, score_images

# Seconds between two lines that say how many wait.
BETWEEN = 10.0
# Fewer that wait are no word worth.
MANY = 16
# Seconds that an image may still take to be read once nothing more is wanted.
PATIENCE = 10.0


@dataclass(frozen=True)
class Line:
    """What is said of an image.

    Attributes
    ----------
    path : str
        Below the folder that is watched, as it was given on standard input, or such as ``video.mp4#12``.
    score, above : float or None
        As in ``scores.csv``; None where there is an error.
    anomalous : bool or None
        None where there is an error, or where the model has no threshold.
    milliseconds : float
        From when the image was found to its score.
    error : str or None
        Why there is no score.
    """

    path: str
    score: float | None
    above: float | None
    anomalous: bool | None
    milliseconds: float
    error: str | None

    def to_json(self) -> str:
        """As one line of JSON, without its end."""
        return json.dumps(asdict(self), allow_nan=False)


class _Prepared(NamedTuple):
    name: str
    since: float
    image: Pixels | ImageError
    original: NDArray[np.uint8] | None = None  # for an overlay
    unlike: Unlike = Unlike()


class Backlog:
    """Finds words for images that come faster than they are scored.

    Parameters
    ----------
    together : int
        How many are scored at a time.
    """

    def __init__(self, together: int) -> None:
        self._least = max(2 * together, MANY)
        self._told, self._dropped, self._said = 0, 0, -math.inf

    def line(self, now: float, waiting: int, age: float, dropped: int) -> str | None:
        """What is to be said, if something is: that twice as many wait, none any more, or more were dropped.

        Parameters
        ----------
        now : float
            Seconds.
        waiting : int
            Images.
        age : float
            Seconds for which the first of them has waited.
        dropped : int
            Frames, since the beginning.
        """
        if self._told and waiting < self._least:
            self._told = 0
            return f"caught up: {waiting} wait"
        if now - self._said < BETWEEN:
            return None
        if dropped > self._dropped:
            self._dropped, self._said = dropped, now
            return (
                f"does not keep up: {dropped} frames dropped so far, for they come faster than they are "
                "scored; a larger `every` takes fewer"
            )
        if waiting >= max(self._least, 2 * self._told):
            self._told, self._said = waiting, now
            return f"does not keep up: {waiting} images wait, the first one for {age:.0f} s"
        return None


def watch(
    model: Glance,
    source: Source,
    *,
    engine: str = "auto",
    precision: str = "auto",
    overlays: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Generator[Line, None, None]:
    """Score images as they come.

    Those that wait are scored together, up to ``model.at_once()``. Ending the iteration (``close``) ends what
    runs beside it.

    Parameters
    ----------
    model : Glance
        Trained.
    source : Source
        Of ``open_source``; used up.
    engine, precision : str
        As for ``Glance.score``.
    overlays : Path, optional
        A folder to write pictures of the maps over the images to, each named after its image. Made, and what
        has the same name there replaced.
    say : callable, optional
        Told, in a line, when scoring does not keep up and when it has caught up; and once where images are of
        another depth than those in training.

    Yields
    ------
    Line
        One an image, in the order in which they came. A damaged image gives one with its error.

    Raises
    ------
    UserError
        The model has no such engine, the source cannot be read any more, or ``overlays`` lies in the folder
        that is watched or cannot be written.

    Examples
    --------
    >>> for line in watch(model, open_source("incoming")):  # doctest: +SKIP
    ...     print(line.path, line.score)
    """
    model.check(engine, precision)
    if overlays and source.folder and overlays.resolve().is_relative_to(source.folder.resolve()):
        raise UserError(
            f"{overlays}: lies in {source.folder}, where overlays would be taken for new images; "
            "choose another folder for them"
        )
    together = model.at_once(precision)
    if overlays:
        together = min(together, MOST_ORIGINALS)
    waiting: Belt[Arrival] = Belt(source.limit, source.drops)
    ready: Belt[_Prepared] = Belt(together)
    # It may wait for standard input, and then for ever.
    threading.Thread(target=_find, args=(source, waiting), daemon=True, name="glance-find").start()
    decode = threading.Thread(
        target=_decode, args=(model, waiting, ready, bool(overlays)), daemon=True, name="glance-decode"
    )
    decode.start()
    backlog, told = Backlog(together), set[str]()
    try:
        while batch := ready.take(together):
            remarks = {remark for item in batch for remark in item.unlike.remarks()}
            for remark in sorted(remarks - told):
                if say:
                    say(remark)
            told |= remarks
            yield from _score(model, batch, engine, precision, overlays)
            number, first = waiting.waiting()
            now = time.monotonic()
            line = backlog.line(now, number, now - first.since if first else 0.0, waiting.dropped)
            if line and say:
                say(line)
    finally:
        source.stop.set()
        waiting.clear()
        ready.clear()
        # Python ends threads that are left, and PyTorch aborts the program where it holds tensors.
        decode.join(PATIENCE)
        if waiting.dropped and say:
            say(f"{waiting.dropped} frames were dropped, for they came faster than they were scored")


@contextlib.contextmanager
def add_lines(path: Path) -> Iterator[Callable[[str], None]]:
    """Open a file, and give what adds a line to its end, written at once.

    Where a killed process left half a line there, that line is ended first.

    Raises
    ------
    UserError
        It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error

    def add(line: str) -> None:
        rest = f"{line}\n".encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise cannot_write(path, error) from error

    with file:
        yield add


def _find(source: Source, waiting: Belt[Arrival]) -> None:
    """Put what comes on the belt, until nothing more comes or is wanted."""
    try:
        for arrival in source.arrivals:
            if not waiting.put(arrival):
                break
    except BaseException as error:  # noqa: BLE001  # the thread that scores raises it
        waiting.close(error)
    waiting.close()


def _decode(model: Glance, waiting: Belt[Arrival], ready: Belt[_Prepared], originals: bool) -> None:
    """Make images of what comes, of the size that the model takes."""
    try:
        while taken := waiting.take(1):
            (arrival,) = taken
            image: Path | Pixels | ImageError = arrival.image
            original, odd = None, Unlike()
            try:
                if isinstance(image, Path):
                    image = read_image(image)
                if not isinstance(image, ImageError):
                    white = model.calibration.white
                    odd = unlike(image, white)
                    original = shown_as(image, white) if originals else None
                    image = prepared(model, image)
            except ImageError as error:
                image = error
            assert not isinstance(image, Path)
            if not ready.put(_Prepared(arrival.name, arrival.since, image, original, odd)):
                break
    except BaseException as error:  # noqa: BLE001  # the thread that scores raises it
        ready.close(error)
    ready.close()


def _score(
    model: Glance, batch: list[_Prepared], engine: str, precision: str, overlays: Path | None
) -> Iterator[Line]:
    """Lines of images that have been decoded."""
    images = [item.image for item in batch if not isinstance(item.image, ImageError)]
    result = score_images(model, images, engine, precision)
    display = display_range(model.calibration)
    scores = iter(result)
    for item in batch:
        milliseconds = round(1000 * (time.monotonic() - item.since), 1)
        if isinstance(item.image, ImageError):
            yield Line(item.name, None, None, None, milliseconds, item.image.reason)
            continue
        score_map, score, inside = next(scores)
        good = math.isfinite(score) and np.isfinite(score_map).all()
        reason = "" if good else NOT_FINITE
        if good and overlays and item.original is not None:
            full = resize_scores(score_map, item.original.shape[:2], inside)
            picture = overlay(item.original, full, *display)
            reason = _write(overlays, item.name, picture)
        if reason:
            yield Line(item.name, None, None, None, milliseconds, reason)
        else:
            yield Line(item.name, *verdict(model.calibration, score), milliseconds, None)


def _write(overlays: Path, name: str, picture: NDArray[np.uint8]) -> str:
    """Write an overlay; gives what is wrong with its name, if something is."""
    path = _place(overlays, name)
    try:
        check_inside(path, overlays)
        write_png(path, picture)
    except UserError as error:
        # This is one image's fault; a full disk, say, concerns them all.
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG:
            return "its name is too long for that of an overlay; rename it"
        raise
    return ""


def _place(overlays: Path, name: str) -> Path:
    """The overlay of an image; one that was named by a path from elsewhere is no less below the folder."""
    parts = [part for part in Path(name).parts if part != ".." and part != Path(name).anchor]
    return overlays.joinpath(*parts[:-1], f"{parts[-1]}.png")
