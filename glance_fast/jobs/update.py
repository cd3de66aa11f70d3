"""New good photographs enter a trained model's statistics: ``glance-fast update``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from glance_fast.calibration import Calibration, is_anomalous
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import remove_stale
from glance_fast.data.layouts import normal_images
from glance_fast.errors import UserError
from glance_fast.jobs.former import finish, replacing, restore
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import CONFIG, NORMAL, load, of_whole_photographs, save_model
from glance_fast.tiles import whole_only
from glance_fast.training.calibrate import digest, room
from glance_fast.training.normal import read_names, write_normal
from glance_fast.training.update import Joined, join

# Photographs that a line names.
NAMED = 5


@dataclass(frozen=True)
class Scores:
    """What the new photographs score, the model not having seen them.

    Attributes
    ----------
    photographs : int
        Behind the statistics.
    mean, std : float
        Moments of the new photographs' scores, in deviations of normal ones.
    threshold : float
        Of an image's score.
    false_alarms : int
        New photographs above the threshold.
    """

    photographs: int
    mean: float
    std: float
    threshold: float
    false_alarms: int


@dataclass(frozen=True)
class Update:
    """What an update changed.

    Attributes
    ----------
    new : int
        Photographs that entered.
    before, after : Scores
        Of them, by the model as it was and, each by a whitening that has not seen it, as it is now.
    strange : tuple of (str, float)
        Those that the model as it was called anomalous, and their scores, the highest first.
    expected : float
        How many of them were to be expected.
    """

    new: int
    before: Scores
    after: Scores
    strange: tuple[tuple[str, float], ...]
    expected: float

    def caution(self) -> str:
        """What to say where new photographs look anomalous; empty where none does."""
        if not self.strange:
            return ""
        named = ", ".join(f"{path} ({score:.1f})" for path, score in self.strange[:NAMED])
        more = len(self.strange) - NAMED
        return (
            f"caution: {len(self.strange)} of {self.new} new photographs were anomalous to the model as it "
            f"was; {self.expected:.2g} are to be expected. Good parts that look new are what an update is "
            f"for; if these are bad parts, `undo=True` and leave them out: {named}"
            + (f" and {more} more" if more > 0 else "")
        )


class _Found(NamedTuple):
    """Names of photographs and their places in the cache."""

    earlier: dict[str, int]
    new: dict[str, int]


def update_run(
    run: str | Path,
    good: str | Path,
    *,
    old: str | Path | None = None,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    reporter: Reporter | None = None,
) -> Update:
    """Let new good photographs enter the statistics of a run folder, as if they had always been there.

    No net is trained. Whitening, moments and thresholds are what all photographs together give, for the run
    keeps what is needed of the earlier ones (``normal.safetensors``, 0.3 MB a photograph with the default
    settings). What the run was before stays in its folder ``former`` for ``undo_update``, about as large as
    the run itself; either may be deleted by hand.

    Parameters
    ----------
    run : path
        A run folder; ``model.safetensors``, ``calibration.json`` and ``normal.safetensors`` are replaced, all
        of them or none.
    good : path
        Photographs of good parts, as ``train`` finds them. Those that cannot be read, and those that the
        model knows already, are reported and left out. One is enough.
    old : path, optional
        The photographs that the model was trained on, for a run without ``normal.safetensors``: of an earlier
        version, say.
    device, memory_mib
        As for ``load``.
    reporter : Reporter, optional
        Shows progress; nobody sees any if not given.

    Returns
    -------
    Update

    Raises
    ------
    UserError
        The run is none, keeps nothing of its photographs, or cannot be written to; no new photograph is among
        ``good``, none of its own among ``old``; or memory does not suffice.
    """
    run, reporter = Path(run), reporter or Reporter(Console(quiet=True))
    # What is wrong with a folder is said before the model is read.
    paths = normal_images(good)
    past = normal_images(old) if old is not None else []
    _check_writable(run)
    finish(run)
    model = load(run, device, memory_mib=memory_mib)
    whole_only(model.config, "update")
    of_whole_photographs(model, run)
    # Images too large for the memory given are refused before any is read.
    model.memory_share()
    kept = _kept(run, model, old is not None)
    with reporter.task("reading images", len(past) + len(paths)) as advance:
        files = [*past, *paths]
        size, limit, white = model.config.image_size, model.config.cache_mib << 20, model.calibration.white
        cache = ImageCache(files, size, limit, progress=advance, white=white)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        for remark in cache.unlike.remarks():
            reporter.say(remark)
        unreadable = {error.path for error in cache.errors}
        found = _sorted_out(model, cache, sum(path not in unreadable for path in past), reporter)
        if not found.new:
            raise UserError(f"{good}: no photograph that is new to the model; nothing was changed")
        if old is not None and not found.earlier:
            raise UserError(f"{old}: none of the photographs that the model was trained on")
        before = model.calibration
        if kept and len(before.scores) != len(kept[1]):
            reporter.say(
                f"the threshold was set by {len(before.scores)} other photographs (glance-fast calibrate); "
                "from now on it is that of the trained and the new ones, until it is set by others again"
            )
        with reporter.task("updating", None) as advance:
            joined = join(model, kept, cache, *found, advance)
        names = {name: str(cache.paths[index]) for name, index in found.new.items()}
    remove_stale(run, ())
    with reporter.task("writing", None), replacing(run) as new:
        write_normal(new / NORMAL, model, joined.normal)
        save_model(model, new)
        # It says what it said.
        (new / CONFIG).unlink()
    return _told(before, model.calibration, joined, list(names.values()))


def undo_update(run: str | Path) -> None:
    """Take the last update of a run folder back: its files are those from before it, bit for bit.

    What ``glance-fast calibrate`` changed since then is taken back with it.

    Parameters
    ----------
    run : path
        A run folder.

    Raises
    ------
    UserError
        It is none, there is no update to undo, or it cannot be written to.
    """
    run = Path(run)
    _check_writable(run)
    restore(run)


def _check_writable(run: Path) -> None:
    """Refuse a folder that cannot be written to; ``load`` says what is wrong with one that is none."""
    if run.is_dir() and not os.access(run, os.W_OK | os.X_OK):
        raise UserError(f"{run}: cannot be written to; change its permissions")


def _kept(run: Path, model: Glance, given: bool) -> tuple[Path, tuple[str, ...]] | None:
    """File of the earlier photographs and their names; None where they are given as images."""
    path = run / NORMAL
    if given:
        return None
    if not path.is_file():
        raise UserError(
            f"{path}: missing: the run is of an earlier version, or the file was deleted; give the "
            "photographs that it was trained on as well (`old`), or train again"
        )
    return path, read_names(path, model)


def _sorted_out(model: Glance, cache: ImageCache, past: int, reporter: Reporter) -> _Found:
    """Which photographs enter; of the others it is said why not. The first ``past`` are the old ones."""
    trained_on = set(model.calibration.trained_on)
    earlier, new = dict[str, int](), dict[str, int]()
    strangers = known = copies = 0
    for index in range(len(cache)):
        name = digest(cache.batch([index])[0])
        if index < past:
            # Where a run does not tell what it was trained on, the user does.
            if name in trained_on or not trained_on:
                earlier.setdefault(name, index)
            else:
                strangers += 1
        elif name in trained_on or name in earlier:
            known += 1
        elif name in new:
            copies += 1
        else:
            new[name] = index
    for number, why in (
        (strangers, "among the old ones that the model was not trained on; good ones belong to the new ones"),
        (known, "that the model knows already"),
        (copies, "with the same pixels as another"),
    ):
        if number:
            reporter.say(f"left out: {_photographs(number)} {why}")
    if earlier and (missing := len(trained_on - set(earlier))):
        reporter.say(
            f"{_photographs(missing)} that the model was trained on, not among the old ones: counted no more"
        )
    # As many as training would take.
    chosen = sorted(earlier)[: room(model, len(earlier))] if earlier else []
    return _Found({name: earlier[name] for name in chosen}, new)


def _photographs(number: int) -> str:
    return f"{number} photograph{'' if number == 1 else 's'}"


def _told(before: Calibration, after: Calibration, joined: Joined, paths: list[str]) -> Update:
    """Before and after, in figures."""

    def scores(calibration: Calibration, values: np.ndarray, behind: int) -> Scores:
        above = int(is_anomalous(values, calibration.threshold).sum())
        return Scores(behind, float(values.mean()), float(values.std()), calibration.threshold, above)

    total, new = len(joined.normal.names), len(paths)
    strange = np.flatnonzero(is_anomalous(joined.before, before.threshold))
    strange = strange[np.argsort(-joined.before[strange], kind="stable")]
    return Update(
        new,
        scores(before, joined.before, total - new),
        scores(after, joined.after, total),
        tuple((paths[i], float(joined.before[i])) for i in strange),
        before.false_alarms * new,
    )
