"""Images read and resized once, held in memory or streamed from disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from glance_fast.data.depth import Levels, Unlike, check_depth, deepened, fitted, levels, unlike, white_of
from glance_fast.data.images import Pixels, read_image, resize
from glance_fast.data.prefetch import Prefetcher
from glance_fast.errors import ImageError, UserError

log = logging.getLogger(__name__)


class ImageCache:
    """Images of one size, by index; held in memory where they fit, else read again for every batch.

    Every file is decoded once at construction, so that the bad ones are known before any work is done with
    the others.

    Parameters
    ----------
    paths : iterable of path
        Files to read.
    size : (height, width)
        Images are resized to it, in pixels.
    memory_limit : int
        In bytes. Up to it, all images are held as one array ``[N, height, width, 3]``, uint8 or, where there
        is one of more than 8 bits, uint16.
    workers : int
        Threads that decode. Pillow lets others run while it decodes; processes would clash with Numba's
        threads.
    progress : callable, optional
        Called in the constructing thread with the number of files read so far.
    white : int or None, optional
        Of the model that the images are for (``Calibration.white``): where that is None, images of more than
        8 bits are among those that cannot be read. If not given, it is found from the images.

    Attributes
    ----------
    paths : list of pathlib.Path
        The files that can be read, in the order given. Indices refer to it.
    shapes : list of (int, int)
        Their heights and widths before resizing.
    groups : ndarray of int, shape [N]
        Of which photograph each image is; of whole photographs, its own.
    errors : list of ImageError
        One for each of the others; they are logged as warnings, too.
    held : bool
        Whether the images are in memory.
    white : int or None
        Stored value that becomes 255; None where all images have 8 bits.
    unlike : Unlike
        Numbers of images whose depth is not that of the others, or of those in the model's training.

    Raises
    ------
    UserError
        None of the files can be read.
    ValueError
        ``workers`` is less than 1.

    Notes
    -----
    Not for use by several threads at once. ``close``, or a ``with`` statement, ends the threads.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        size: tuple[int, int],
        memory_limit: int = 2 << 30,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        white: int | Literal["found"] | None = "found",
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        files = [Path(path) for path in paths]
        self.size = (int(size[0]), int(size[1]))
        self._limit, self._lock = memory_limit, threading.Lock()
        self._images: Pixels
        self._make_room(len(files), np.uint16 if isinstance(white, int) else np.uint8)

        shapes: list[tuple[int, int]] = [(0, 0)] * len(files)
        # The largest stored value of each image of more than 8 bits.
        largest: list[int | None] = [None] * len(files)
        odd = [Unlike()] * len(files)

        def take(index: int) -> ImageError | None:
            try:
                image = read_image(files[index])
                if white != "found":
                    check_depth(image, white, files[index])
            except ImageError as error:
                return error
            shapes[index] = image.shape[:2]
            if white == "found":
                largest[index] = int(image.max()) if image.dtype != np.uint8 else None
            else:
                odd[index] = unlike(image, white)
                image = fitted(image, self.size, white) if self.held else image
            if self.held:
                self._keep(index, resize(image, self.size))
            return None

        outcomes: list[ImageError | None] = []
        pool = ThreadPoolExecutor(workers, thread_name_prefix="glance-images")
        try:
            for outcome in pool.map(take, range(len(files))):
                outcomes.append(outcome)
                if progress is not None:
                    progress(len(outcomes))
        finally:
            pool.shutdown(cancel_futures=True)

        self.errors = [outcome for outcome in outcomes if outcome is not None]
        good = [index for index, outcome in enumerate(outcomes) if outcome is None]
        if not good:
            first = f"; the first: {self.errors[0]}" if self.errors else ""
            raise UserError(f"none of {len(files)} images can be read{first}")
        for error in self.errors:
            log.warning("left out: %s", error)
        self.paths = [files[index] for index in good]
        self.shapes = [shapes[index] for index in good]
        self.groups = np.arange(len(good))
        if self.held and self.errors:
            for to, index in enumerate(good):  # in place: a second array might not fit
                self._images[to] = self._images[index]
            self._images = self._images[: len(good)]
        if white == "found":
            deep = [value for index in good if (value := largest[index]) is not None]
            self.white = white_of(max(deep)) if deep else None
            self.unlike = Unlike(shallow=len(good) - len(deep)) if deep else Unlike()
            self._settle([largest[index] is None for index in good])
        else:
            self.white, self.unlike = white, sum((odd[index] for index in good), Unlike())
        self._pool: ThreadPoolExecutor | None = None
        self._files: Prefetcher[int, Pixels] | None = None
        if not self.held:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="glance-images")
            self._files = Prefetcher(self._pool, self._read_resized)

    def __len__(self) -> int:
        return len(self.paths)

    def __enter__(self) -> ImageCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batch(self, indices: ArrayLike) -> Levels:
        """Return images by their places in ``paths``.

        Parameters
        ----------
        indices : sequence of int, length B
            Each in ``[0, len(cache))``; repetition is allowed.

        Returns
        -------
        ndarray of uint8, or float32 of 0 to 255 where ``white`` is known, shape [B, height, width, 3]
            A copy.

        Raises
        ------
        ImageError
            A file that was good at construction no longer is.
        IndexError
            An index is out of range.
        RuntimeError
            The cache is closed and its images are not held.
        """
        wanted = self._checked(indices)
        if self.held:
            return levels(self._images[list(wanted)], self.white)
        images = np.empty((len(wanted), *self.size, 3), np.dtype("u1" if self.white is None else "u2"))
        for image, read in zip(images, self._open().batch(wanted), strict=True):
            image[...] = read
        return levels(images, self.white)

    def prefetch(self, indices: ArrayLike) -> None:
        """Start to read the batch that will be asked for next, with the same indices in the same order.

        One batch can wait: a second call gives up the first. Does nothing where the images are held.

        Parameters
        ----------
        indices : sequence of int
            As for ``batch``, and checked in the same way.
        """
        wanted = self._checked(indices)
        if not self.held:
            self._open().prefetch(wanted)

    def close(self) -> None:
        """End the threads. Held images stay available."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._files = None

    def _checked(self, indices: ArrayLike) -> tuple[int, ...]:
        array = np.asarray(indices)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError("indices must be a flat sequence of integers")
        if array.size and not (array.min() >= 0 and array.max() < len(self.paths)):
            raise IndexError(f"indices must be from 0 to {len(self.paths) - 1}")
        return tuple(array.astype(np.intp).tolist())

    def _make_room(self, count: int, kind: Any) -> None:
        """For so many images of uint8 or uint16, or for none where they do not fit."""
        values = count * self.size[0] * self.size[1] * 3
        self.held = values * np.dtype(kind).itemsize <= self._limit
        self._images = np.empty((count if self.held else 0, *self.size, 3), kind)

    def _keep(self, index: int, image: Pixels) -> None:
        """Hold an image; the first of more than 8 bits makes room for such ones."""
        with self._lock:
            if self.held and image.dtype == np.uint16 and self._images.dtype == np.uint8:
                before = self._images
                self._make_room(len(before), np.uint16)
                if self.held:
                    self._images[...] = before
            if self.held:
                self._images[index] = image

    def _settle(self, shallow: list[bool]) -> None:
        """Make of held images what ``fitted`` makes of them, now that it is known what is white."""
        if self.white is None or not self.held:
            return
        for index in np.flatnonzero(shallow):
            self._images[index] = deepened(self._images[index], self.white)
        # The filter overshoots at edges.
        np.minimum(self._images, np.uint16(self.white), out=self._images)

    def _open(self) -> Prefetcher[int, Pixels]:
        if self._files is None:
            raise RuntimeError("the image cache is closed")
        return self._files

    def _read_resized(self, index: int) -> Pixels:
        path = self.paths[index]
        return fitted(read_image(path), self.size, self.white, path)
