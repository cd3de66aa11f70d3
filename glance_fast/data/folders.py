"""Folders of images: which files count, and in which order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from glance_fast.errors import UserError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
)
"""File names that are taken for images, in lower case. What is in them decides later whether they are."""


def list_images(folder: str | Path) -> list[Path]:
    """Find all images below a folder.

    Parameters
    ----------
    folder : path
        Searched with all its subfolders; links to folders are followed, each real folder is entered once.
        Files and folders whose names start with a dot are left out (among them the ``._name`` files that
        macOS leaves behind).

    Returns
    -------
    list of pathlib.Path
        Below ``folder`` as it was given, in natural order (``2.png`` before ``10.png``), the same on every
        system.

    Raises
    ------
    UserError
        The folder is missing, is a file, cannot be read, or holds no image.
    """
    folder = Path(folder)
    found = list(walk_images(folder))
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"{folder}: no image in this folder or below it (looked for {kinds})")
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def walk_images(folder: Path) -> Iterator[Path]:
    """The images of ``list_images``, in no order; none is not refused.

    Raises
    ------
    UserError
        The folder is missing, is a file, or cannot be read.
    """
    check_folder(folder)
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        # Links last: a folder that is reached in both ways is listed under its own name.
        current = folders.pop() if folders else links.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = current / entry.name
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        (links if entry.is_symlink() else folders).append(path)
                    elif path.suffix.lower() in SUFFIXES:
                        yield path  # a broken link, too: reading it says so, leaving it out would not
        except OSError as error:
            raise UserError(f"{current}: the folder cannot be read: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say; as with a broken one, reading it says what is wrong


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, in natural order; none where there is no such folder.

    Links to folders count. Names that start with a dot do not.

    Raises
    ------
    UserError
        The folder cannot be read.
    """
    if not folder.is_dir():
        return []
    try:
        # Not iterdir, which would ask of every image what it is.
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and _is_folder(entry)]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error
    return [folder / name for name in sorted(names, key=lambda name: natural_key(Path(name)))]


def check_folder(folder: Path) -> None:
    """Refuse what is no folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{folder}: is a file, not a folder; give the folder that holds the images")
    raise UserError(f"{folder}: no such folder")


def natural_key(path: PurePath) -> tuple[list[list[str | int]], str]:
    """Order by folder, digits as numbers, letters without case; the name itself decides between equals."""
    parts: list[list[str | int]] = []
    for part in path.parts:
        pieces = re.split(r"([0-9]+)", part.casefold())
        parts.append([int(piece) if place % 2 else piece for place, piece in enumerate(pieces)])
    return parts, path.as_posix()
