"""CIFAR-10 as its makers give it, binary batches or Python's, or as folders of images.

Python's batches are pickles, which can run any code. They are read by an unpickler that knows two names, an
array and its type, as classes of ours; a file that asks for anything else is refused.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image
from glance_fast.errors import ImageError, UserError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""By their labels, 0 to 9."""

SIDE = 32
# Three planes, red, green and blue.
PIXELS = 3 * SIDE * SIDE
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
BINARY, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
ANEW = "get the data set anew"


@dataclass(frozen=True)
class Labelled:
    """Images and what they show.

    Attributes
    ----------
    images : ndarray, uint8 [N, 32, 32, 3]
    labels : ndarray, int64 [N]
        0 to 9, places in ``CLASSES``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def of(self, label: int) -> NDArray[np.uint8]:
        """The images of a class, in their order."""
        return self.images[self.labels == label]


@dataclass(frozen=True)
class Cifar10:
    """The data set.

    Attributes
    ----------
    train, test : Labelled
        Its two parts, as its makers split it.
    """

    train: Labelled
    test: Labelled

    def digest(self) -> str:
        """Of all pixels and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.labels.tobytes())
            digest.update(part.images.tobytes())
        return digest.hexdigest()


def read_cifar10(data: str | Path, progress: Callable[[int, int], None] | None = None) -> Cifar10:
    """Read CIFAR-10 in whichever form it lies there.

    ==========================================  ===========================================================
    ``data_batch_1.bin`` to ``test_batch.bin``  a byte for the label, then 3072 for the image, and so on
    ``data_batch_1`` to ``test_batch``          pickles of Python 2; nothing in them is run
    ``train/<class>/``, ``test/<class>/``       images of 32x32 pixels, of any kind that is read elsewhere
    ==========================================  ===========================================================

    Parameters
    ----------
    data : path
        A folder that holds one of these, or ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, as the
        archives unpack to.
    progress : callable, optional
        Called with (files read, files in all).

    Returns
    -------
    Cifar10

    Raises
    ------
    UserError
        There is no such folder or nothing of it in there, a batch is missing, damaged or shorter than the
        others, a label is none of CIFAR-10's, a folder is none of its classes, or one is missing.
    ImageError
        An image cannot be read, or has another size.
    """
    data = Path(data)
    if not data.is_dir():
        raise UserError(f"{data}: is a file, not a folder" if data.exists() else f"{data}: no such folder")
    for folder in (data, data / BINARY, data / PICKLED):
        if any((folder / f"{name}.bin").exists() for name in BATCHES):
            return _read_batches(folder, ".bin", _read_binary, progress)
        if any((folder / name).exists() for name in BATCHES):
            return _read_batches(folder, "", _read_pickled, progress)
    if (data / "train").is_dir() or (data / "test").is_dir():
        return _read_folders(data, progress)
    raise UserError(
        f"{data}: no CIFAR-10 in it; expected {BINARY}, {PICKLED}, or train/<class> and test/<class>"
    )


def _read_batches(
    folder: Path,
    suffix: str,
    read: Callable[[Path], Labelled],
    progress: Callable[[int, int], None] | None,
) -> Cifar10:
    paths = [folder / f"{name}{suffix}" for name in BATCHES]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; CIFAR-10 has {paths[0].name} to {paths[-1].name}; {ANEW}")
    parts = []
    for path in paths:
        parts.append(read(path))
        if progress:
            progress(len(parts), len(paths))
    most = max(len(part.labels) for part in parts)
    for path, part in zip(paths, parts, strict=True):
        if len(part.labels) < most:
            raise UserError(
                f"{path}: holds {len(part.labels)} images, another batch {most}; it was cut short, {ANEW}"
            )
    return Cifar10(_joined(parts[:-1]), parts[-1])


def _read_binary(path: Path) -> Labelled:
    records = np.frombuffer(_bytes_of(path), np.uint8)
    if not len(records) or len(records) % (1 + PIXELS):
        raise UserError(
            f"{path}: {len(records)} bytes are no whole number of images of {1 + PIXELS}; "
            f"it was cut short, or is no batch of CIFAR-10; {ANEW}"
        )
    records = records.reshape(-1, 1 + PIXELS)
    return _labelled(path, records[:, 1:], records[:, 0])


def _read_pickled(path: Path) -> Labelled:
    whole = _unpickled(path)
    pixels, labels = (whole.get(name) for name in (b"data", b"labels")) if isinstance(whole, dict) else (0, 0)
    if (
        not isinstance(pixels, _Array)
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
    ):
        raise UserError(f"{path}: holds no data and labels as a batch of CIFAR-10 does; {ANEW}")
    count = len(labels)
    if not count or pixels.shape != (count, PIXELS) or len(pixels.raw) != count * PIXELS:
        raise UserError(
            f"{path}: damaged: {count} labels, an array {list(pixels.shape)}, {len(pixels.raw)} bytes in it; "
            f"{ANEW}"
        )
    return _labelled(
        path, np.frombuffer(pixels.raw, np.uint8).reshape(pixels.shape, order=pixels.order), labels
    )


def _labelled(path: Path, planes: NDArray[np.uint8], labels: Iterable[int]) -> Labelled:
    """Images from planes [N, 3072]."""
    labels = list(map(int, labels))
    for number, label in enumerate(labels):
        if not 0 <= label < len(CLASSES):
            raise UserError(f"{path}: image {number} has the label {label}, CIFAR-10's are 0 to 9; {ANEW}")
    images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Labelled(np.ascontiguousarray(images), np.array(labels, np.int64))


def _joined(parts: list[Labelled]) -> Labelled:
    images, labels = ([getattr(part, name) for part in parts] for name in ("images", "labels"))
    return Labelled(np.concatenate(images), np.concatenate(labels))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Array:
    """Stands for a NumPy array in a pickle, so that nothing of NumPy is called with what a file says.

    Its name in the pickle is that of the function that makes an empty one, or of the class itself.
    """

    shape: tuple[Any, ...] = ()
    order: Literal["C", "F"] = "C"
    raw: bytes = b""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        if not (isinstance(kind, _Kind) and kind.name in (b"u1", b"|u1") and isinstance(raw, bytes)):
            raise ValueError("an array of other numbers than bytes")
        if not isinstance(shape, tuple):
            raise ValueError("a shape that is none")
        self.shape, self.order, self.raw = shape, "F" if by_columns else "C", raw


class _Kind:
    """Stands for the type of an array's numbers."""

    def __init__(self, name: Any, *arguments: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Refused(Exception):
    """A pickle asks for something that no batch of CIFAR-10 needs."""


class _Unpickler(pickle.Unpickler):
    """Knows arrays and their type; all else that a name could stand for is refused."""

    KNOWN = {  # noqa: RUF012  # a constant
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
    }

    def find_class(self, module: str, name: str) -> type:
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, name: Any) -> NoReturn:
        raise _Refused("an object kept elsewhere")


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except _Refused as error:
        raise UserError(
            f"{path}: asks for {error}, which no batch of CIFAR-10 does; nothing of it was run; {ANEW}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError),
        *(RuntimeError, TypeError, ValueError, pickle.UnpicklingError),
    ) as error:
        raise UserError(f"{path}: cut short, or no batch of CIFAR-10; {ANEW}") from error


def _read_folders(data: Path, progress: Callable[[int, int], None] | None) -> Cifar10:
    paths: dict[str, list[tuple[Path, int]]] = {}
    for part in ("train", "test"):
        _check_names(data / part)
        found = [list_images(data / part / name) for name in CLASSES]
        paths[part] = [(path, label) for label, of_class in enumerate(found) for path in of_class]
    total, done = sum(map(len, paths.values())), 0
    parts = {}
    for part, listed in paths.items():
        images = np.empty((len(listed), SIDE, SIDE, 3), np.uint8)
        for number, (path, _) in enumerate(listed):
            image = read_image(path)
            if image.shape != images.shape[1:]:
                height, width = image.shape[:2]
                raise ImageError(path, f"is {width}x{height}; images of CIFAR-10 are {SIDE}x{SIDE}")
            if image.dtype != np.uint8:
                raise ImageError(path, "has more than 8 bits; images of CIFAR-10 have 8")
            images[number] = image
            done += 1
            if progress:
                progress(done, total)
        parts[part] = Labelled(images, np.array([label for _, label in listed], np.int64))
    return Cifar10(parts["train"], parts["test"])


def _check_names(folder: Path) -> None:
    """Refuse a folder that is none of the classes: it would silently be left out."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; CIFAR-10 has train/<class> and test/<class>")
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error
    for name in names:
        if name not in CLASSES and not name.startswith("."):
            raise UserError(f"{folder / name}: no class of CIFAR-10 ({', '.join(CLASSES)})")
