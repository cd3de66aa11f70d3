"""One of many workers that score photographs: it loads a model once, and scores a block at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import glance_fast
from glance_fast.data.images import encode_png
from glance_fast.data.prefetch import Prefetcher
from glance_fast.data.roi import Masks, resize_scores
from glance_fast.data.score_maps import encode_tiff
from glance_fast.data.store import Folder, Store
from glance_fast.data.table import printable
from glance_fast.device import use_threads
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.jobs.chunk import (
    Photo,
    fault_of,
    map_name,
    odd_photo,
    overlay_name,
    prepared,
    score_chunk,
    together,
)
from glance_fast.jobs.parts import part_name, put_rows, read_record
from glance_fast.jobs.record import SAME
from glance_fast.jobs.table import RUN, Odd
from glance_fast.run import CALIBRATION, CONFIG, MODEL, load

# Photographs that are read or written at a time: a disk answers at once, a store waits.
FILES_AT_ONCE = {True: 2, False: 8}


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes
    ----------
    images, out : Store
        Where photographs are read, and files written.
    engine, precision, device : str
        As for ``score_folder``.
    threads, memory_mib : int or None
        As for ``use_threads`` and ``load``.
    overlays : bool
        Whether to write them.
    roi : Masks or None
        One mask for all photographs, at the model's image size.
    version : str
        Of the package that asks.
    """

    images: Store
    out: Store
    engine: str
    precision: str
    device: str
    threads: int | None
    memory_mib: int | None
    overlays: bool
    roi: Masks | None
    version: str = glance_fast.__version__


@dataclass(frozen=True)
class Done:
    """What came of a block: numbers of photographs, and what is odd about those that were read."""

    scored: int
    errors: int
    odd: Odd


def run_files(run: str | Path) -> dict[str, bytes]:
    """What a worker needs of a run folder, by the names of its files."""
    return {name: (Path(run) / name).read_bytes() for name in (MODEL, CONFIG, CALIBRATION)}


class Worker:
    """Scores blocks of photographs with one model.

    Parameters
    ----------
    files : mapping of bytes
        The run, as ``run_files`` gives it.
    job : Job

    Raises
    ------
    UserError
        This machine has another version of the package, or not the device; or the model does not fit into
        ``memory_mib``.
    """

    def __init__(self, files: Mapping[str, bytes], job: Job) -> None:
        if job.version != glance_fast.__version__:
            raise UserError(
                f"a worker has glance-fast {glance_fast.__version__}, and the command {job.version}; install "
                "the same on all machines"
            )
        self._job = job
        use_threads(job.threads)
        with tempfile.TemporaryDirectory(prefix="glance-fast-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            self._model = load(folder, job.device, memory_mib=job.memory_mib)
        self._display = display_range(self._model.calibration)
        on_disks = isinstance(job.images, Folder) and isinstance(job.out, Folder)
        self._pool = ThreadPoolExecutor(FILES_AT_ONCE[on_disks], thread_name_prefix="glance-files")

    def how(self) -> dict[str, Any]:
        """How this machine scores, as ``run.json`` has it."""
        model, job = self._model, self._job
        return {
            "engine": model.chosen_engine(job.engine),
            "precision": model.chosen_precision(job.precision),
            "device": str(model.device),
        }

    def together(self) -> int:
        """How many photographs it scores at a time.

        Raises
        ------
        UserError
            As for ``Glance.memory_share``.
        """
        return together(self._model.at_once(self._job.precision), self._job.overlays)

    def check(self, provenance: dict[str, Any]) -> None:
        """Refuse to work where this machine scores otherwise, or sees other folders, than the command does.

        Raises
        ------
        UserError
            So it is.
        """
        for name, value in self.how().items():
            if name in SAME and value != provenance[name]:
                raise UserError(
                    f"workers differ: one scores with {name} {value}, others with {provenance[name]}; give "
                    f"`{name}`, or take machines that are alike"
                )
        images, out = self._job.images, self._job.out
        if isinstance(images, Folder) and not images.path.is_dir():
            raise UserError(f"{images}: a worker's machine has no such folder; {_SEEN}")
        record = read_record(out)
        if record is None or any(record[name] != provenance[name] for name in SAME):
            raise UserError(f"{out.at(RUN)}: a worker does not see there what the command wrote; {_SEEN}")

    def score(self, names: Sequence[str], provenance: dict[str, Any]) -> Done:
        """Score photographs, write their files, and then the part that has their rows.

        Parameters
        ----------
        names : sequence of str
            Below the folder of photographs.
        provenance : dict
            As of ``provenance_of``.

        Raises
        ------
        UserError
            A store cannot be read or written.
        """
        job, step = self._job, self.together()
        files = Prefetcher(self._pool, self._read)
        rows, odd = [], Odd()
        for start in range(0, len(names), step):
            chunk = names[start : start + step]
            read = files.batch(chunk)
            files.prefetch(names[start + step : start + 2 * step])
            rows += self._score(chunk, read)
            odd = sum((odd_photo(self._model, photo) for photo in read if isinstance(photo, Photo)), odd)
        put_rows(job.out, part_name(provenance, names), rows)
        errors = sum(bool(row.error) for row in rows)
        return Done(len(rows) - errors, errors, odd)

    def _read(self, name: str) -> Photo | ImageError:
        job = self._job
        try:
            image, resolution = job.images.image(name)
            inside = job.roi.of(Path(name), Path(name), image.shape[:2]) if job.roi else None
            return prepared(self._model, image, job.overlays, inside, resolution)
        except ImageError as error:
            return error

    def _score(self, names: Sequence[str], read: Sequence[Photo | ImageError]) -> list:
        def write(i: int, photo: Photo, score_map: np.ndarray, inside: np.ndarray | None) -> str:
            return self._write(names[i], photo, score_map, inside)

        shown = [printable(name) for name in names]
        how = self._job.engine, self._job.precision
        return score_chunk(self._model, shown, read, write, *how, self._pool)

    def _write(self, name: str, photo: Photo, score_map: np.ndarray, inside: np.ndarray | None) -> str:
        """Write the files of one photograph; gives what is wrong with its name, if something is."""
        out, full = self._job.out, resize_scores(score_map, photo.shape, inside)
        try:
            out.write(map_name(name), encode_tiff(full, photo.resolution))
            if photo.original is not None:
                picture = overlay(photo.original, full, *self._display)
                out.write(overlay_name(name), encode_png(picture))
        except UserError as error:
            return fault_of(error, isinstance(out, Folder) and (out.path / "maps").is_dir())
        return ""


_SEEN = "folders must lie on a disk that all machines see, or in a store"
