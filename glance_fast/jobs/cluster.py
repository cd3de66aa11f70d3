"""A folder of photographs scored by the workers of a Ray cluster: ``glance-fast score-dir --cluster``.

Photographs are dealt in blocks, in their order. A worker loads the model once and keeps it. Of a block it
writes the maps, and then a part with the rows; only then the block counts as done. Ray hands a block whose
worker died to another one, which writes the same files again. At the end the parts become ``scores.csv``.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from glance_fast.data.files import remove_stale
from glance_fast.data.roi import Masks
from glance_fast.data.store import Folder, Store, check_apart, open_store
from glance_fast.data.table import ScoreRow, printable
from glance_fast.errors import UserError
from glance_fast.jobs.actors import LOCAL, Place, ask, connected, place_of, score_blocks
from glance_fast.jobs.chunk import map_name, overlay_name
from glance_fast.jobs.folder import OURS, Scored, masks_of
from glance_fast.jobs.output import apart, one_of, output
from glance_fast.jobs.parts import PARTS, fold_parts, put_rows, read_parts, read_record, read_table
from glance_fast.jobs.ranks import this_process
from glance_fast.jobs.record import check_same, provenance_of, run_text
from glance_fast.jobs.regions import write_regions_of
from glance_fast.jobs.shards import WHOLE, parts_in
from glance_fast.jobs.table import RUN, TABLE, Odd, Summary, drift_remarks
from glance_fast.jobs.worker import Job, run_files
from glance_fast.model import NO_BF16, Glance
from glance_fast.progress import Reporter
from glance_fast.run import load
from glance_fast.tiles import tile_of

# Photographs of a block at most: so many are scored again where a worker dies.
MOST_TOGETHER = 256
# Blocks for each worker at least, so that all end at about the same time.
BLOCKS_EACH = 4


class _Plan(NamedTuple):
    kept: dict[str, ScoreRow]
    todo: list[str]


def score_cluster(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    cluster: str = LOCAL,
    workers: int | None = None,
    threads: int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    overlays: bool = False,
    regions: bool = False,
    coco: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    roi: str | Path | None = None,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter | None = None,
) -> Scored:
    """Score every image below a folder by workers of a Ray cluster, as ``score_folder`` does by itself.

    What is written is the same. A worker that dies is replaced, and its block is scored again: no image is
    lost, and none is in the table twice.

    Parameters
    ----------
    run : path
        A run folder on this machine. Its files go to the workers through Ray.
    images, out : path or URL
        Folders as for ``score_folder``: on a disk that all machines see, or in a store that fsspec knows,
        such as ``s3://bucket/photos``. Each machine finds the keys to a store by itself, in its environment
        or by its role.
    cluster : str
        "local" starts Ray on this machine, for this call; "HOST:PORT" joins the cluster whose head has this
        address, and which this machine is part of. A program that has called ``ray.init`` keeps its own.
    workers : int, optional
        As many as the cluster has room for if not given; no more in any case.
    threads : int, optional
        Processors of each worker; 4 if not given, or those of the smallest machine. With a GPU, 1.
    engine, precision, overlays, regions, coco, resume, overwrite
        As for ``score_folder``. Remarks on single images are on those that this call scored.
    roi : path, optional
        One mask for all images.
    device : str
        "auto" (a GPU for each worker where the cluster has any), "cpu" or "cuda".
    memory_mib : int, optional
        As for ``load``.
    reporter : Reporter, optional
        Shows progress; nobody sees any if not given.

    Returns
    -------
    Scored

    Raises
    ------
    UserError
        As for ``score_folder``; or Ray is not installed, the cluster cannot be reached, a store cannot be
        read or written, workers differ, or workers died over one block time and again. What was written
        stays.

    Examples
    --------
    >>> score_cluster("run", "s3://line/today", "s3://line/scores", workers=8)  # doctest: +SKIP
    """
    reporter = reporter or Reporter(Console(quiet=True))
    source, target = open_store(images), open_store(out)
    _check_request(run, source, target, roi, workers, resume, overwrite)
    model = load(run, "cpu", memory_mib=memory_mib)
    masks = _check_model(model, run, source, engine, precision, roi, regions or coco)
    names = source.images()
    job = Job(
        images=_everywhere(source),
        out=_everywhere(target),
        engine=engine,
        precision=precision,
        device=device,
        threads=threads,
        memory_mib=memory_mib,
        overlays=overlays,
        roi=masks,
    )
    with connected(cluster):
        import ray

        place = place_of(cluster, device, threads)
        _check_room(place, cluster, workers, reporter)
        job = replace(job, device=place.device, threads=place.threads)
        files = ray.put(run_files(run))
        how, together = ask(files, job, place)
        if precision not in ("auto", how["precision"]):
            reporter.say(NO_BF16)
        called = source.path if isinstance(source, Folder) else source.identity
        provenance = provenance_of(model, called, engine, precision, masks) | how
        with _begun(target, overwrite, resume):
            if resume:
                check_same(target, read_record(target), provenance)
                fold_parts(target, provenance)
            kept, todo = _plan(target, names, overlays, resume)
            target.write(RUN, run_text(provenance).encode())
            put_rows(target, TABLE, kept.values())
            crew = min(workers or place.fitting, place.fitting)
            blocks = _blocks(todo, together, crew)
            started, odd, done = time.monotonic(), Odd(), len(names) - len(todo)
            with reporter.task("scoring", None) as advance:
                advance(done, len(names))
                for block in score_blocks(files, job, place, crew, provenance, blocks) if blocks else ():
                    odd, done = odd + block.odd, done + block.scored + block.errors
                    advance(done, len(names))
            seconds = time.monotonic() - started
            rows = _joined(target, names, kept, provenance)
            summary = Summary(
                scored=sum(not row.error for row in rows),
                anomalous=sum(row.anomalous == "1" for row in rows),
                errors=sum(bool(row.error) for row in rows),
                remarks=(*odd.remarks(), *drift_remarks(rows)),
            )
            record = provenance | {
                "scored": summary.scored,
                "anomalous": summary.anomalous,
                "errors": summary.errors,
                "seconds": round(seconds, 3),
                "seconds_per_image": round(seconds / len(todo), 4) if todo else None,
                "workers": min(crew, len(blocks)),
            }
            put_rows(target, TABLE, rows)
            target.write(RUN, run_text(record).encode())
            target.remove(target.names(PARTS))
    if regions or coco:
        with reporter.task("regions", None):
            write_regions_of(target, rows, provenance["pixel_threshold"], coco)
    table = target.path / TABLE if isinstance(target, Folder) else target.at(TABLE)
    return Scored(table, WHOLE, True, False, summary)


def is_begun_at(out: str | Path) -> bool:
    """Whether there is something to resume in a folder, or in one of a store."""
    return _is_begun(open_store(out))


def _is_begun(target: Store) -> bool:
    return target.text(RUN) is not None or target.text(TABLE) is not None


def _everywhere(store: Store) -> Store:
    """A folder under a name that holds wherever a worker stands."""
    return Folder(store.path.absolute()) if isinstance(store, Folder) else store


def _check_request(
    run: str | Path,
    source: Store,
    target: Store,
    roi: str | Path | None,
    workers: int | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse what can be seen to be wrong before a model is loaded."""
    if this_process().launched:
        raise UserError("`cluster`: torchrun's processes share the work by themselves; use one of both")
    if workers is not None and workers < 1:
        raise UserError(f"`workers={workers}`: at least 1 is needed")
    one_of(resume, overwrite)
    check_apart(target, source)
    if isinstance(target, Folder):
        apart(target.path, *(Path(path) for path in (run, roi) if path is not None))
        if parts_in(target.path):
            raise UserError(f"{target}: holds shards; `resume=True` without `cluster` goes on with them")
    begun = _is_begun(target)
    if resume and not begun:
        raise UserError(f"{target}: nothing to resume there; leave `resume` away to begin")
    if begun and not (resume or overwrite):
        raise UserError(
            f"{target}: is not empty; `resume=True` goes on with the scoring there, `overwrite=True` "
            "replaces it, or choose another `out`"
        )


def _check_model(
    model: Glance,
    run: str | Path,
    source: Store,
    engine: str,
    precision: str,
    roi: str | Path | None,
    regions: bool,
) -> Masks | None:
    """Refuse what the model cannot do; gives the mask of the region of interest, if there is one."""
    model.check(engine, precision)
    if tile_of(model) is not None:
        raise UserError(f"{run}: was trained on tiles, by which `cluster` does not score; leave it away")
    if regions and not math.isfinite(model.calibration.pixel_threshold):
        raise UserError("`regions`: the model is not calibrated, and has no threshold for them")
    masks = masks_of(roi, model, source.path if isinstance(source, Folder) else None)
    if masks is not None and not masks.single:
        raise UserError(
            f"{roi}: with `cluster`, `roi` is one mask for all photographs, and no folder of masks"
        )
    return masks


def _check_room(place: Place, cluster: str, workers: int | None, reporter: Reporter) -> None:
    """Say where there is no room for all workers; refuse it where there is none for any."""
    wanted = workers or 1
    if place.fitting >= wanted:
        return
    each = "a GPU" if place.gpus else f"`threads={place.threads}`"
    if cluster == LOCAL or not place.fitting:
        raise UserError(
            f"`cluster={cluster}`: there is room for {place.fitting} of {wanted} workers with {each} each; "
            "give fewer `workers` or `threads`, or more machines"
        )
    reporter.say(f"{cluster}: room for {place.fitting} of {wanted} workers; the others are left away")


@contextlib.contextmanager
def _begun(target: Store, overwrite: bool, resume: bool) -> Iterator[None]:
    """Work in the output folder, as ``output`` has it; in a store, nobody keeps others away."""
    if isinstance(target, Folder):
        with output(target.path, OURS, overwrite, resume):
            yield
            # What workers that died left half written.
            remove_stale(target.path, OURS)
        return
    there = target.names()
    strangers = sorted(name for name in there if name.split("/")[0] not in OURS)
    if there and not resume and (strangers or not overwrite):
        what = f"holds {strangers[0]!r}, which this command did not write" if strangers else "is not empty"
        raise UserError(f"{target}: {what}; choose another `out`")
    if overwrite:
        target.remove(there)
    yield


def _plan(target: Store, names: list[str], overlays: bool, resume: bool) -> _Plan:
    """What is left to do, and the rows that stay of an earlier call."""
    if not resume:
        return _Plan({}, names)
    # Errors are tried again, and of images that are gone they are of no use to anyone.
    rows = {path: row for path, row in read_table(target).items() if not row.error}
    there = target.names("maps") | (target.names("overlays") if overlays else set())
    todo = []
    for name in names:
        files = [map_name(name), *([overlay_name(name)] if overlays else [])]
        if printable(name) not in rows or not there.issuperset(files):
            rows.pop(printable(name), None)
            todo.append(name)
    return _Plan(rows, todo)


def _blocks(names: Sequence[str], together: int, workers: int) -> list[Sequence[str]]:
    """Names in blocks of whole chunks, so that chunks are those of a scoring without workers."""
    fair = len(names) // (workers * BLOCKS_EACH)
    step = together * max(1, min(MOST_TOGETHER, fair) // together)
    return [names[start : start + step] for start in range(0, len(names), step)]


def _joined(
    target: Store, names: list[str], kept: dict[str, ScoreRow], provenance: dict[str, Any]
) -> list[ScoreRow]:
    """The rows of all images in their order, then those of images that are gone."""
    found, _ = read_parts(target, provenance)
    rows = kept | found
    lacking = [name for name in names if printable(name) not in rows]
    if lacking:
        raise UserError(
            f"{target}: lacks the row of {printable(lacking[0])!r}: another command has written there; "
            "`resume=True` makes it"
        )
    ordered = [rows.pop(printable(name)) for name in names]
    return [*ordered, *rows.values()]
