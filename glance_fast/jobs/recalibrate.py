"""A trained model's threshold anew, with other photographs of good parts: ``glance-fast calibrate``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from glance_fast.calibration import Calibration, with_thresholds
from glance_fast.config import allowed, json_schema
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import remove_stale
from glance_fast.data.layouts import normal_images
from glance_fast.data.tile_cache import TileCache, images_for
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import CALIBRATION, load, save_calibration
from glance_fast.training.calibrate import digest, recalibrate
from glance_fast.training.fit import LEAST_IMAGES, check_shapes
from glance_fast.training.tiles import calibrate_photographs


def calibrate_run(
    run: str | Path,
    good: str | Path | None = None,
    false_alarms: float | None = None,
    *,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    reporter: Reporter | None = None,
) -> Calibration:
    """Set the thresholds of a run folder anew, and write its ``calibration.json``, whole or not at all.

    Parameters
    ----------
    run : path
        A run folder; nothing but ``calibration.json`` changes.
    good : path, optional
        Photographs of good parts, as ``train`` finds them. Those that cannot be read, and those that the
        model was trained on, are reported and left out. Without it, the scores that the run keeps serve.
    false_alarms : float, optional
        Share of normal images that may lie above the threshold, from 0.00001 to 0.5; the run's own if not
        given.
    device, memory_mib
        As for ``load``.
    reporter : Reporter, optional
        Shows progress; nobody sees any if not given.

    Returns
    -------
    Calibration
        What was written; ``glance_fast.calibration.promise`` puts it into words.

    Raises
    ------
    UserError
        Neither ``good`` nor ``false_alarms`` is given; ``false_alarms`` is out of its range; the run is none,
        keeps no scores where they are needed, or cannot be written to; fewer than 8 photographs are left; or
        one is of another shape than in training, of a model that keeps their aspect.
    """
    run = Path(run)
    if good is None and false_alarms is None:
        raise UserError(
            f"{run}: nothing to calibrate with; give a folder of photographs of good parts, or `false_alarms`"
        )
    limits = json_schema()["properties"]["false_alarms"]
    if false_alarms is not None and not limits["minimum"] <= false_alarms <= limits["maximum"]:
        raise UserError(
            f"false_alarms: expected {allowed(limits)}, got {false_alarms}; 0.01 is one in a hundred"
        )
    # What is wrong with the folder is said before the model is read.
    paths = normal_images(good) if good is not None else []
    model = load(run, device, memory_mib=memory_mib)
    before = model.calibration
    if good is None and not (before.scores and before.peaks):
        raise UserError(
            f"{run / CALIBRATION}: of an earlier version, which kept no scores to set the threshold by; "
            "give a folder of photographs of good parts as well"
        )
    if not os.access(run, os.W_OK | os.X_OK):
        raise UserError(f"{run}: cannot be written to; change its permissions")
    if good is not None:
        _calibrate_on(model, Path(good), paths, reporter or Reporter(Console(quiet=True)))
    wanted = before.false_alarms if false_alarms is None else false_alarms
    model.calibration = with_thresholds(model.calibration, wanted)
    remove_stale(run, ())
    save_calibration(model, run)
    return model.calibration


def _calibrate_on(model: Glance, good: Path, paths: list[Path], reporter: Reporter) -> None:
    """Calibrate with those of the photographs that can be read and that the model has not seen."""
    # Images too large for the memory given are refused before any is read.
    model.memory_share()
    with reporter.task("reading images", len(paths)) as advance:
        cache = images_for(paths, model.config, advance, model.calibration.white)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        for remark in cache.unlike.remarks():
            reporter.say(remark)
        check_shapes(cache, model.config)
        new, seen, copies = _unseen(model, cache)
        if copies:
            reporter.say(f"left out: {copies} {_photographs(copies)} with the same pixels as another")
        indices = np.flatnonzero(np.isin(cache.groups, new))
        # Of as many as training takes: the moments of fewer say little.
        if len(indices) < LEAST_IMAGES:
            reason = f" ({seen} more were trained on)" if seen else ""
            kind = "tiles" if isinstance(cache, TileCache) else _photographs(len(new))
            raise UserError(
                f"{good}: {len(indices)} {kind} to calibrate with{reason}; at least "
                f"{LEAST_IMAGES} are needed, of good parts and new to the model"
            )
        if seen:
            reporter.say(
                f"left out: {seen} {_photographs(seen)} that the model was trained on, whose scores would "
                "be too low"
            )
        if not model.calibration.trained_on:
            reporter.say(
                "the run does not tell what it was trained on; photographs among these that it was "
                "would make the threshold too low"
            )
        with reporter.task("calibrating", None) as advance:
            recalibrate(model, cache, indices, advance)
        if isinstance(cache, TileCache):
            calibrate_photographs(model, cache, reporter, new, seen=False)


def _unseen(model: Glance, cache: ImageCache) -> tuple[list[int], int, int]:
    """Which photographs are new to the model, each once; how many it was trained on; how many are copies.

    They are known by their pixels, or by those of a tile.
    """
    trained_on = set(model.calibration.trained_on)
    names: dict[int, list[str]] = {}
    together = model.at_once()
    for start in range(0, len(cache), together):
        indices = range(start, min(start + together, len(cache)))
        for index, image in zip(indices, cache.batch(indices), strict=True):
            names.setdefault(int(cache.groups[index]), []).append(digest(image))
    new: dict[str, int] = {}
    seen = 0
    for photograph, own in names.items():
        if trained_on.isdisjoint(own):
            new.setdefault(own[0], photograph)
        else:
            seen += 1
    return list(new.values()), seen, len(names) - len(new) - seen


def _photographs(count: int) -> str:
    return "photograph" if count == 1 else "photographs"
