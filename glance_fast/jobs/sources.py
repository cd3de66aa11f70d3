"""Where images come from while they come: a folder that fills, paths on standard input, a video, a camera."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.folders import SUFFIXES, walk_images
from glance_fast.data.table import printable
from glance_fast.errors import ImageError, UserError

if TYPE_CHECKING:
    from av.container import InputContainer

# Seconds between two looks at a folder. A file that looks the same in two of them is whole.
MOMENT = 0.5
# Share of its time that looking may take: a large folder on a slow disk is looked at less often.
LOOKING = 0.2
# Paths from standard input that may wait; beyond them the program that writes them waits.
PATHS = 4096
# Frames that may wait, each in memory as large as it was taken.
FRAMES = 8
# Bytes of a line of standard input: more is no path.
LONGEST = 1 << 16
# Seconds in which a camera must answer.
PATIENCE = 10.0


class Arrival(NamedTuple):
    """An image that has come.

    Attributes
    ----------
    name : str
        What it is called.
    since : float
        When it was found, of ``time.monotonic``.
    image : Path, ndarray of uint8 [H, W, 3], or ImageError
        Its file, its pixels, or why there are none.
    """

    name: str
    since: float
    image: Path | NDArray[np.uint8] | ImageError


@dataclass(frozen=True)
class Source:
    """Images as they come.

    Attributes
    ----------
    arrivals : iterator of Arrival
        Waits for the next one.
    stop : threading.Event
        Set, it ends those that wait for a folder.
    limit : int or None
        How many may be taken from it and wait.
    drops : bool
        Whether those that have waited longest are given up where more would wait; else the source waits.
    folder : Path or None
        The one that is watched, if it is one.
    """

    arrivals: Iterator[Arrival]
    stop: threading.Event
    limit: int | None
    drops: bool
    folder: Path | None = None


def open_source(
    source: str, *, take_all: bool = False, every: int = 1, say: Callable[[str], None] | None = None
) -> Source:
    """Open what a user names.

    Parameters
    ----------
    source : str
        A folder; ``"-"`` for paths on standard input, one a line; a video file; or a camera: a device such as
        ``/dev/video0``, or an address such as ``rtsp://...``.
    take_all : bool
        Of a folder, take those images too that are there already.
    every : int
        Of a video or a camera, take every so many frames.
    say : callable, optional
        Told, in a line, when a folder cannot be read for a while.

    Returns
    -------
    Source

    Raises
    ------
    UserError
        There is nothing of that kind, it cannot be read, or an argument does not fit it. For a video or a
        camera, PyAV may be missing.
    """
    path, stop = Path(source), threading.Event()
    address = re.match(r"[a-z][a-z0-9+.-]+://", source)
    if take_all and not path.is_dir():
        raise UserError(f"`all`: is for a folder, and {source} is none")
    if every != 1 and (source == "-" or path.is_dir()):
        raise UserError("`every`: is for videos and cameras; of images, each is scored")
    if source == "-":
        return Source(paths_of(0), stop, PATHS, drops=False)
    if path.is_dir():
        # Looked at now, not when the model has been read: what comes meanwhile is new.
        there = set(walk_images(path))
        taken = set() if take_all else there
        images = images_of(path, taken, stop, say or (lambda line: None))
        return Source(images, stop, None, drops=False, folder=path)
    if address:
        return Source(frames_of(_open(source, source, live=True), source, every), stop, FRAMES, drops=True)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{source}: no such folder, video or camera") from error
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"{source}: is one image; give a folder, a video, or - and its path as a line")
    if stat.S_ISCHR(mode):
        camera = _open(source, source, live=True, kind="v4l2")
        return Source(frames_of(camera, source, every), stop, FRAMES, drops=True)
    # By its protocol: FFmpeg takes what stands before a colon in a file's name for one.
    video = _open(f"file:{path}", source, live=False)
    return Source(frames_of(video, printable(path), every), stop, FRAMES, drops=False)


def images_of(
    folder: Path, taken: set[Path], stop: threading.Event, say: Callable[[str], None]
) -> Iterator[Arrival]:
    """New images below a folder, each once by its name, as soon as it is whole.

    Parameters
    ----------
    folder : Path
        Looked at again and again: that needs nothing from the system, and works on shared disks.
    taken : set of Path
        Images that are not new.
    stop : threading.Event
        Set, it ends this.
    say : callable
        Told when the folder cannot be read; it is looked at again later.
    """
    looks: dict[Path, tuple[int, int]] = {}
    silent = False
    while not stop.is_set():
        began = time.monotonic()
        try:
            present = set(walk_images(folder))
            # What is gone may come again. Not so while the folder cannot be read: then all seems gone.
            taken &= present
            silent = False
        except UserError as error:
            if not silent:
                say(f"{error}; waiting for it")
            present, silent = set(looks), True
        before, looks = looks, {path: _look(path) for path in present - taken}
        whole = [path for path, look in looks.items() if before.get(path) == look] if not silent else []
        for path in sorted(whole, key=lambda path: (looks[path], path)):
            yield Arrival(printable(path.relative_to(folder)), time.monotonic(), path)
            taken.add(path)
        stop.wait(max(MOMENT, (time.monotonic() - began) * (1 / LOOKING - 1)))


def paths_of(descriptor: int) -> Iterator[Arrival]:
    """Images whose paths are the lines of a file that is open; empty lines are none.

    Raises
    ------
    UserError
        It cannot be read, or a line is too long to be a path.
    """
    # Not sys.stdin: a thread that waits in it would not let the program end.
    rest = b""
    try:
        while chunk := os.read(descriptor, LONGEST):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from _as_arrivals(lines)
            if len(rest) > LONGEST:
                raise UserError("standard input: a line is too long; expected paths of images, one a line")
    except OSError as error:
        raise UserError(f"standard input: cannot be read: {error.strerror or error}") from error
    yield from _as_arrivals([rest])


def frames_of(container: InputContainer, name: str, every: int) -> Iterator[Arrival]:
    """Every so many frames of a video, upright; ``name#12`` is the one with that number, from 0.

    A packet that cannot be decoded is an arrival with its error, and the next one is tried.
    """
    from av import FFmpegError

    number = 0
    with container:
        packets = container.demux(container.streams.video[0])
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except FFmpegError as error:
                reason = f"the video is damaged or breaks off there: {error.strerror}"
                yield Arrival(f"{name}#{number}", time.monotonic(), ImageError(name, reason))
                continue
            for frame in frames:
                if number % every == 0:
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield Arrival(f"{name}#{number}", time.monotonic(), upright.astype(np.uint8, copy=False))
                number += 1


def _open(address: str, name: str, *, live: bool, kind: str | None = None) -> InputContainer:
    """A video or a camera, opened by PyAV; ``kind`` is FFmpeg's name of a way to read it."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{name}: for videos and cameras PyAV is needed: pip install 'glance-fast[video]'"
        ) from error
    try:
        container = av.open(address, "r", format=kind, timeout=PATIENCE if live else None)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{name}: no video or camera that can be read ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{name}: there is no video in it")
    return container


def _as_arrivals(lines: list[bytes]) -> Iterator[Arrival]:
    for line in lines:
        path = os.fsdecode(line.removesuffix(b"\r"))
        if path:
            yield Arrival(printable(path), time.monotonic(), Path(path))


def _look(path: Path) -> tuple[int, int]:
    """When a file was changed and its size: what tells that it is still being written."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # a broken link; a file that has gone is not listed in the next look
    return status.st_mtime_ns, status.st_size
