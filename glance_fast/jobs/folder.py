"""A folder of photographs scored, alone or with others, begun or gone on with: ``glance-fast score-dir``."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from glance_fast.data.roi import Masks
from glance_fast.data.store import is_url, without_secrets
from glance_fast.errors import UserError
from glance_fast.jobs.directory import deal_directory, find_images, score_directory
from glance_fast.jobs.output import apart, one_of, output
from glance_fast.jobs.parts import PARTS
from glance_fast.jobs.ranks import Ranks, ranks
from glance_fast.jobs.record import read_run
from glance_fast.jobs.regions import COCO, REGIONS, write_regions
from glance_fast.jobs.shards import WHOLE, Shard, check_folder, files_of, join, joined, parse_shard, parts_in
from glance_fast.jobs.table import RUN, TABLE, Summary
from glance_fast.model import NO_BF16, Glance
from glance_fast.progress import Reporter
from glance_fast.run import load
from glance_fast.tiles import no_region, tile_of

# What a scoring leaves in its folder.
OURS = (TABLE, RUN, "maps", "overlays", PARTS, REGIONS, COCO)


@dataclass(frozen=True)
class Scored:
    """What came of scoring a folder.

    Attributes
    ----------
    table : Path or str
        ``scores.csv``, or the table of this shard where others are to finish yet; a URL where it lies in a
        store.
    shard : Shard
        What was scored; 1 of 1 is all.
    whole : bool
        Whether the table holds all shards.
    before : bool
        Whether it did before: this shard was done, and nothing was scored.
    summary : Summary
        What the table holds.
    """

    table: Path | str
    shard: Shard
    whole: bool
    before: bool
    summary: Summary


def score_folder(
    run: str | Path | Glance,
    images: str | Path,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    tile: int | str | None = None,
    overlays: bool = False,
    regions: bool = False,
    coco: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    shard: str | None = None,
    roi: str | Path | None = None,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter | None = None,
) -> Scored | None:
    """Score every image below a folder; ``score_directory`` says what is written.

    Several machines share the work where each has another ``shard`` and all have one ``out``; the last to
    finish joins their tables. Processes that torchrun started share it by themselves: call this in each.

    Parameters
    ----------
    run : path or Glance
        A run folder, or a model.
    images : path
        A folder, searched with its subfolders.
    out : path
        Folder to write: new or empty, unless ``resume``, ``overwrite`` or ``shard`` is given. It is removed
        where nothing came of it.
    engine, precision : str
        As for ``Glance.score``.
    tile, overlays
        As for ``score_directory``.
    regions, coco : bool
        Whether to write ``regions.jsonl`` (``glance_fast.jobs.regions``), and ``regions.coco.json`` with it,
        once all images are scored. Of several shards, the one that joins them does.
    resume : bool
        Score only what ``scores.csv`` lacks, and what failed. What shards left is gone on with, too.
    overwrite : bool
        Replace what an earlier call wrote to ``out``; refused where anything else lies there.
    shard : str, optional
        "2/4": every fourth image, beginning with the second.
    roi : path, optional
        A mask of the region of interest, or a folder with one a photograph (``glance_fast.data.roi.Masks``).
        It takes the place of the one that the model was trained with. Outside it a map is at its lowest and
        never above 0; what lies there counts nowhere.
    device : str
        Of a run folder: "auto" (CUDA where there is one), "cpu" or "cuda". Processes of torchrun take a CUDA
        device of their own each.
    memory_mib : int, optional
        Of a run folder, as for ``load``.
    reporter : Reporter, optional
        Shows progress; nobody sees any if not given.

    Returns
    -------
    Scored or None
        None in all processes of torchrun but the first, which speaks for all.

    Raises
    ------
    UserError
        Something given is no run folder, no folder of images or no shard; ``out`` holds what the call would
        not go on with or replace, or lies among what is read; the model has no such engine; ``roi`` is no
        mask, shows nothing, or lies in ``images``; or something cannot be written. What was written stays.

    Examples
    --------
    >>> score_folder("run", "photos/new", "scores", resume=True).summary.anomalous  # doctest: +SKIP
    """
    for place in (images, out):
        if is_url(place):
            shown = without_secrets(str(place))
            raise UserError(f"{shown}: workers of Ray alone read and write stores; give `cluster=local`")
    images, out = Path(images), Path(out)
    reporter = reporter or Reporter(Console(quiet=True))
    how: dict[str, Any] = {"engine": engine, "precision": precision, "tile": tile}
    with ranks() as here, contextlib.ExitStack() as folder:
        part = Shard(here.rank + 1, here.count) if here.launched else parse_shard(shard or str(WHOLE))
        # With other calls, which begin and end when they will.
        shared = part != WHOLE and not here.launched
        # The first process speaks for all: what is wrong is said once, and ends the others.
        if here.rank == 0:
            if here.launched and shard:
                raise UserError("`shard`: torchrun's processes share the work by themselves; leave it away")
            if shared and overwrite:
                raise UserError("`overwrite=True` would delete what other shards did; choose another `out`")
            one_of(resume, overwrite)
            apart(out, *(Path(path) for path in (run, roi) if isinstance(path, (str, Path))), images)
            find_images(images, out)
            parts = [path.name for path in files_of(out, parts_in(out))]
            if shared and check_folder(out, part, resume):
                done = joined(out, part)
                assert done is not None  # or the folder would have been refused
                return Scored(WHOLE.table(out), part, True, True, done)
            ours = (*OURS, *parts)
            if resume and not is_begun(out):
                raise UserError(f"{out}: nothing to resume there; leave `resume` away to begin")
            model = _model(run, here, device, memory_mib)
            masks = masks_of(roi, model, images)
            # Before what an earlier one wrote is replaced.
            model.check(engine, precision)
            no_region(model.config, tile_of(model, tile), masks if masks is not None else model.inside)
            if (regions or coco) and not math.isfinite(model.calibration.pixel_threshold):
                raise UserError("`regions`: the model is not calibrated, and has no threshold for them")
            model.memory_share("fp32")
            if precision not in ("auto", model.chosen_precision(precision)):
                reporter.say(NO_BF16)
            if is_begun(out) and not (resume or overwrite or shared):
                raise UserError(
                    f"{out}: is not empty; `resume=True` goes on with the scoring there, `overwrite=True` "
                    "replaces it, or choose another `out`"
                )
            folder.enter_context(output(out, ours, overwrite, resume, shared))
            if resume and here.count > 1:
                deal_directory(model, images, out, here.count, **how, roi=masks)
        here.wait()
        if here.rank > 0:
            model = _model(run, here, device, memory_mib)
            masks = masks_of(roi, model, images)
        with reporter.task(f"scoring shard {part}" if part != WHOLE else "scoring", None) as advance:
            summary = score_directory(
                model,
                images,
                out,
                **how,
                overlays=overlays,
                resume=resume,
                shard=part,
                roi=masks,
                progress=advance,
            )
            here.wait()
        if here.rank > 0:
            return None
        whole = join(out, part) if part != WHOLE else summary
    if whole is None and here.launched:
        raise UserError(f"{out}: not what the other processes wrote to; `out` must be on a disk that all see")
    table = WHOLE.table(out) if whole else part.table(out)
    if whole and (regions or coco):
        with reporter.task("regions", None):
            write_regions(out, table, threshold_of(out), coco)
    return Scored(table, part, whole is not None, False, whole or summary)


def is_begun(out: Path, part: Shard = WHOLE) -> bool:
    """Whether there is something to resume: of a shard or, without one, of any."""
    parts = parts_in(out) if part == WHOLE else [part]
    return any(path.is_file() for path in files_of(out, [WHOLE, *parts]))


def threshold_of(out: Path) -> float | None:
    """The pixel threshold of the model that a folder was scored with."""
    run = read_run(WHOLE.run(out))
    return run.get("pixel_threshold") if run else None


def _model(run: str | Path | Glance, here: Ranks, device: str, memory_mib: int | None) -> Glance:
    return run if isinstance(run, Glance) else load(run, here.device(device), memory_mib=memory_mib)


def masks_of(roi: str | Path | None, model: Glance, images: Path | None) -> Masks | None:
    """The regions of interest that are given, at the model's image size; refused if among the images."""
    if roi is None:
        return None
    masks = Masks(roi, model.config.image_size)
    if images is not None and masks.among(images):
        raise UserError(f"{roi}: lies in {images}, where masks would be taken for photographs; move it away")
    return masks
