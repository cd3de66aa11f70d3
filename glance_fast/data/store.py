"""A folder of files wherever it lies: on a disk, or in a store that fsspec knows, such as ``s3://``.

Files in it are called by their path below it, with ``/`` between its parts. What a message or a table says of
a store holds neither a password nor a signature, whatever its URL does.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from glance_fast.data.files import atomic_write, check_inside
from glance_fast.data.folders import SUFFIXES, list_images, natural_key
from glance_fast.data.images import Pixels, decode_image, read_image
from glance_fast.data.resolution import Resolution, resolution_of
from glance_fast.data.table import printable
from glance_fast.errors import ImageError, UserError, excerpt

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
# Bytes of a name that every store takes; S3's limit.
LONGEST = 1024


class Store(ABC):
    """A folder of files."""

    @abstractmethod
    def __str__(self) -> str:
        """What a message calls it."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells it from others, wherever one stands."""

    @abstractmethod
    def images(self) -> list[str]:
        """Names of all images in it, in natural order, as ``list_images`` has them.

        Raises
        ------
        UserError
            It is not there, cannot be listed, or holds no image.
        """

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """Names of all files, or of those below one of its subfolders; none where there is no such folder.

        Raises
        ------
        UserError
            They cannot be listed.
        """

    @abstractmethod
    def image(self, name: str) -> tuple[Pixels, Resolution | None]:
        """A photograph, as ``read_image`` gives it, and what ``resolution_of`` says of it.

        Raises
        ------
        ImageError
            As ``read_image``: what is wrong with this file.
        UserError
            The store cannot be read.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises
        ------
        FileNotFoundError, PermissionError
            It is not there, or may not be read.
        UserError
            The store cannot be read.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; one of that name is replaced.

        Raises
        ------
        UserError
            It cannot be written.
        """

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there count as removed.

        Raises
        ------
        UserError
            They cannot be removed.
        """

    @abstractmethod
    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """A file as one on a disk, for as long as the context lasts.

        Raises
        ------
        FileNotFoundError, PermissionError, UserError
            As ``read``.
        """

    def at(self, name: str) -> str:
        """What a message calls a file in it."""
        return f"{self}/{printable(name)}"

    def text(self, name: str) -> str | None:
        """A text file, bytes that are no UTF-8 replaced; None where there is none.

        Raises
        ------
        UserError
            It cannot be read.
        """
        try:
            return self.read(name).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.at(name)}: cannot be read: {error.strerror or error}") from error


class Folder(Store):
    """A folder on a disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        return printable(self.path.resolve())

    def images(self) -> list[str]:
        return [path.relative_to(self.path).as_posix() for path in list_images(self.path)]

    def names(self, folder: str = "") -> set[str]:
        return {
            (Path(root) / name).relative_to(self.path).as_posix()
            for root, _, names in os.walk(self.path / folder)
            for name in names
        }

    def image(self, name: str) -> tuple[Pixels, Resolution | None]:
        return read_image(self.path / name), resolution_of(self.path / name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        check_inside(path, self.path)
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    def remove(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self.path / name
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders - {self.path}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        yield self.path / name


class Bucket(Store):
    """A folder in a store that fsspec knows by its URL.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/photos``. Keys to the store are found as its driver finds them: in the
        environment, in files of the user, in the role of the machine.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        # Connections stay where they are.
        return type(self), (self._url,)

    def __str__(self) -> str:
        return without_secrets(self._url)

    @property
    def identity(self) -> str:
        return str(self)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of fsspec, and the folder's path there."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise UserError(
                f"{self}: reading and writing stores needs fsspec: pip install 'glance-fast[cluster]'"
            ) from error
        with self._in_one_line("opened"):
            system, root = url_to_fs(self._url)
            return system, root.rstrip("/")

    def images(self) -> list[str]:
        found = []
        for name in self.names():
            path = PurePosixPath(name)
            if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts):
                found.append(name)
        if not found:
            kinds = " ".join(sorted(SUFFIXES))
            raise UserError(f"{self}: no image in this folder or below it (looked for {kinds})")
        return sorted(found, key=lambda name: natural_key(PurePosixPath(name)))

    def names(self, folder: str = "") -> set[str]:
        system, root = self._opened
        with self._in_one_line("listed"):
            # Others have written there since.
            system.invalidate_cache()
            try:
                found = system.find(f"{root}/{folder}" if folder else root)
            except FileNotFoundError:
                if not folder:
                    raise
                found = []
        # A folder that some programs make is an empty file of its name.
        return {path[len(root) + 1 :] for path in found if path.startswith(f"{root}/")} - {""}

    def image(self, name: str) -> tuple[Pixels, Resolution | None]:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            # On a disk, it would be a name of another file.
            raise ImageError(name, "its name has an empty part, or one of dots alone; rename it")
        try:
            data = self.read(name)
        except FileNotFoundError:
            raise ImageError(name, "no such file") from None
        except PermissionError:
            raise ImageError(name, "no permission to read it") from None
        except IsADirectoryError:
            raise ImageError(name, "is a folder, not an image") from None
        return decode_image(data, name), resolution_of(data)

    def read(self, name: str) -> bytes:
        system, root = self._opened
        with self._in_one_line("read", name):
            return system.cat_file(f"{root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        system, root = self._opened
        if len(f"{root}/{name}".encode(errors="surrogateescape")) > LONGEST:
            error = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            raise UserError(f"{self.at(name)}: cannot be written: {error.strerror}") from error
        with self._in_one_line("written", name):
            system.pipe_file(f"{root}/{name}", data)

    def remove(self, names: Iterable[str]) -> None:
        system, root = self._opened
        paths = [f"{root}/{name}" for name in names]
        with self._in_one_line("removed"):
            if paths:
                system.rm(paths)

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="glance-fast-") as folder:
            path = Path(folder) / "file"
            path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def _in_one_line(self, done: str, name: str = "") -> Iterator[None]:
        """Raise what a store's driver raises as a ``UserError``, but that a file to read is not there."""
        try:
            yield
        except UserError:
            raise
        # Drivers raise what they will: botocore's errors have no class that fsspec or Python knows.
        except Exception as error:
            if done == "read" and isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise
            place = self.at(name) if name else str(self)
            raise UserError(f"{place}: cannot be {done}: {_reason(error)}") from error


def is_url(place: str | Path) -> bool:
    """Whether it names a store, and no folder of this machine."""
    return isinstance(place, str) and _URL.fullmatch(place) is not None


def open_store(place: str | Path) -> Store:
    """A folder by its path, or one in a store by its URL.

    Parameters
    ----------
    place : str or Path
        ``photos/new``, ``file:///data/photos`` or ``s3://bucket/photos``; which URLs there are, the packages
        of fsspec say that are installed.
    """
    found = _URL.fullmatch(place) if isinstance(place, str) else None
    if found is None:
        return Folder(place)
    if found[1] in ("file", "local"):
        return Folder(unquote(found[2]))
    return Bucket(str(place))


def check_apart(out: Store, images: Store) -> None:
    """Refuse to write where is read.

    Raises
    ------
    UserError
        One of the two lies in the other.
    """
    ours, theirs = out.identity, images.identity
    if ours == theirs:
        raise UserError(f"{out}: is the folder that is read; choose another `out`")
    if f"{theirs}/".startswith(f"{ours}/"):
        raise UserError(f"{out}: holds {images}, which is read; choose another `out`")
    if f"{ours}/".startswith(f"{theirs}/"):
        raise UserError(
            f"{out}: lies in {images}, where overlays and maps would be taken for photographs; "
            "choose another folder for them"
        )


def without_secrets(text: str) -> str:
    """Text with the passwords and the queries of URLs in it left out: a query may hold a signature."""
    text = re.sub(r"(?<=://)[^/\s@]*@", "", text)
    return re.sub(r"(?<=://)([^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text)


def _reason(error: Exception) -> str:
    """What a driver's error says, on one line and without secrets, and what to do."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "no such bucket or folder"
    if isinstance(error, PermissionError):
        return "no permission; the keys that are found for it do not allow this"
    if "Credentials" in kind or "Token" in kind:
        return "no keys to it are found, or they are not valid; set them as its driver asks for them"
    if kind in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionError",
        "ConnectionRefusedError",
    ):
        return "the store does not answer"
    if isinstance(error, ImportError):
        return f"a package is missing for such stores ({excerpt(str(error))})"
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return "fsspec knows no such stores"
    said = without_secrets(str(error).partition("\n")[0])
    return f"{kind}: {excerpt(said)}" if said else kind
