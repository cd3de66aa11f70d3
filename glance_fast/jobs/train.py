"""A run folder from a folder of good parts: ``glance_fast.fit`` and ``glance-fast train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from rich.console import Console

from glance_fast.config import Config
from glance_fast.data.layouts import find_layout
from glance_fast.data.roi import Masks
from glance_fast.data.tile_cache import MOST_TILES, images_for
from glance_fast.device import pick_device
from glance_fast.errors import UserError
from glance_fast.jobs.output import apart, one_of, output
from glance_fast.jobs.ranks import ranks
from glance_fast.model import Glance
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher, load_teacher
from glance_fast.progress import Reporter, Steps
from glance_fast.run import (
    CALIBRATION,
    CHECKPOINT,
    CONFIG,
    FORMER,
    LOG,
    MODEL,
    NORMAL,
    REPLACING,
    is_unfinished,
    settings_of,
)
from glance_fast.tiles import no_region
from glance_fast.training import fit as training
from glance_fast.training.loop import begun_with

OURS = (MODEL, CONFIG, CALIBRATION, NORMAL, LOG, CHECKPOINT, FORMER, REPLACING)


@dataclass(frozen=True)
class Event:
    """Something that happened in training.

    Attributes
    ----------
    kind : {"line", "task", "step"}
        A line for people; progress of a task without figures; a step of a net.
    name : str
        The line, the task or the net, such as "local-32".
    done : int
        Of a task or of steps.
    total : int or None
        How many there are, where that is known.
    figures : dict of str to float
        Of a step: the row of ``log.csv`` so far, such as ``loss``, ``images_per_second`` and, about ten times
        a stage, ``r2``.
    """

    kind: str
    name: str
    done: int = 0
    total: int | None = None
    figures: dict[str, float] = field(default_factory=dict)


class CallbackReporter(Reporter):
    """Tells a function what a ``Reporter`` shows people."""

    def __init__(self, callback: Callable[[Event], None]) -> None:
        super().__init__(Console(quiet=True))
        self._callback = callback

    def say(self, line: str) -> None:
        """Hand on one line."""
        self._callback(Event("line", line))

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Hand on how far a task is."""
        yield lambda done, of=total: self._callback(Event("task", name, done, of))

    def step(self, stage: Steps, done: int) -> None:
        """Hand on the figures of a step."""
        figures = {key: value for key, value in stage.row.items() if isinstance(value, (int, float))}
        self._callback(Event("step", stage.name, done, stage.steps, figures))


def fit(
    images: str | Path | Sequence[str | Path],
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    local_nets: Sequence[str | Path] = (),
    teacher_weights: str | Path | None = None,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    roi: str | Path | None = None,
    callback: Callable[[Event], None] | None = None,
) -> Glance:
    """Learn what good parts look like.

    Processes that torchrun started share the work, to the result of one process but for rounding: call this
    in each, with the same arguments. All of them return the model; the first one writes ``out``.

    Parameters
    ----------
    images : path or sequence of paths
        A folder of photographs of good parts, a category in a layout of ``glance_fast.data.layouts`` (of
        MVTec's its ``train/good``), a CSV file of paths and labels, or the photographs. Those that cannot be
        read are told to ``callback`` and left out.
    config : Config, optional
        Settings; the defaults if not given.
    out : path, optional
        Run folder to write. A training in it that was broken off goes on. Nothing is kept if not given.
    overwrite : bool
        Replace the model in ``out``, or the training that was broken off there.
    local_nets : sequence of path
        Local-Nets from ``glance-fast distill``, in place of the built-in ones for their patch sizes.
    teacher_weights : path, optional
        A ResNet-18 (``.safetensors``) to fine-tune Local-Net by, in place of the built-in one.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    memory_mib : int, optional
        That calibration may take beside the model, as for ``load``.
    roi : path, optional
        A mask of the region of interest, white where one is to look, for all photographs
        (``glance_fast.data.roi.Masks``). The model keeps it and scores there alone; what lies outside counts
        neither for whitening nor for moments and thresholds.
    callback : callable, optional
        Called with an ``Event``, for a tracker of experiments, say. What it raises ends the training.

    Returns
    -------
    Glance
        Calibrated, in evaluation mode.

    Raises
    ------
    UserError
        ``images`` holds too few that can be read; ``out`` holds a finished model or something else, or was
        begun with other images, settings or nets; a net is none, or for a patch size that the model does not
        have; the device is not available; ``roi`` is no mask, shows nothing, is of another shape than a
        photograph, or a folder; or memory or the disk does not suffice.

    Examples
    --------
    >>> model = glance_fast.fit("photos/good", glance_fast.Config(seed=1), "run")  # doctest: +SKIP
    >>> model.score(["photos/new/1.png"]).scores  # doctest: +SKIP
    """
    with CallbackReporter(callback or (lambda event: None)) as reporter, ExitStack() as stack:
        run = Path(stack.enter_context(TemporaryDirectory()) if out is None else out)
        if (run / MODEL).exists() and not overwrite:
            raise UserError(
                f"{run}: holds a finished model; load it, give another `out`, or `overwrite=True` replaces it"
            )
        return train_folder(
            images,
            run,
            config or Config(),
            resume=is_unfinished(run) and not overwrite,
            overwrite=overwrite,
            local_nets=local_nets,
            teacher_weights=teacher_weights,
            device=device,
            memory_mib=memory_mib,
            roi=roi,
            reporter=reporter,
        )


def settings_of_unfinished(out: Path) -> Config:
    """Settings of the training that is to be gone on with.

    Raises
    ------
    UserError
        There is none, or its settings cannot be read.
    """
    if (out / MODEL).exists():
        raise UserError(f"{out}: this training is finished; `overwrite=True` trains anew")
    if not is_unfinished(out):
        raise UserError(f"{out}: nothing to resume there; leave `resume` away to begin")
    return settings_of(out)


def train_folder(
    images: str | Path | Sequence[str | Path],
    out: Path,
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    local_nets: Sequence[str | Path] = (),
    teacher_weights: str | Path | None = None,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    roi: str | Path | None = None,
    reporter: Reporter,
) -> Glance:
    """Train on photographs of good parts, and write a run folder.

    All that can be known to be wrong is found before an old run is replaced.

    Parameters
    ----------
    images, out, config, overwrite, local_nets, teacher_weights, device, memory_mib, roi
        As for ``fit``.
    resume : bool
        Go on with the training in ``out``.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    Glance
        Calibrated, in evaluation mode.

    Raises
    ------
    UserError
        As for ``fit``; or ``out`` holds something, and is neither to be gone on with nor to be replaced.
    """
    with ranks() as here, ExitStack() as stack:
        # The first process speaks for all: what is wrong is said once, and ends the others.
        if here.rank == 0:
            before = _begun_in(out, resume, overwrite)
            chosen = pick_device(here.device(device))
            given = _inputs(images, out, config, local_nets, teacher_weights, roi)
            if before not in (None, given.config):
                raise begun_with("other settings, those in config.toml", out)
            most = len(given.paths) if config.tile is None else MOST_TILES
            training.untrained(given.config, most, chosen, memory_mib)
            if overwrite:
                # Read twice, so that an old model is not lost to photographs that cannot be read.
                with images_for(given.paths, dataclasses.replace(given.config, cache_mib=1)) as readable:
                    training.check_images(readable, given.source, given.masks)
                    training.check_shapes(readable, given.config)
            stack.enter_context(output(out, OURS, overwrite, resume))
        here.wait()
        with here.together():
            if here.rank > 0:
                chosen = pick_device(here.device(device))
                given = _inputs(images, out, config, local_nets, teacher_weights, roi)
            model = training.fit(
                given.paths,
                out,
                given.config,
                reporter=reporter,
                device=chosen,
                local_nets=given.local_nets,
                teacher=given.teacher,
                memory_mib=memory_mib,
                layout=given.layout,
                roi=given.masks,
                workers=here.workers(chosen),
            )
        here.wait()
        return model


def _begun_in(out: Path, resume: bool, overwrite: bool) -> Config | None:
    """Settings of the training that is to be gone on with, if any; refuse to write over one unasked."""
    one_of(resume, overwrite)
    before = settings_of_unfinished(out) if resume else None
    if is_unfinished(out) and not (resume or overwrite):
        raise UserError(
            f"{out}: an unfinished training is there; `resume=True` goes on with it, `overwrite=True` begins "
            "anew"
        )
    return before


class _Inputs(NamedTuple):
    config: Config  # of the shape that photographs have, where they keep their aspect
    paths: list[Path]
    source: str  # to begin a message about them with
    layout: str | None
    local_nets: list[Path]
    teacher: Teacher | None
    masks: Masks | None


def _inputs(
    images: str | Path | Sequence[str | Path],
    out: Path,
    config: Config,
    local_nets: Sequence[str | Path],
    teacher_weights: str | Path | None,
    roi: str | Path | None,
) -> _Inputs:
    """What a training reads, as far as it can be told to be right before the photographs are read."""
    teacher = load_teacher(Path(teacher_weights)) if teacher_weights else None
    if isinstance(local_nets, (str, Path)):
        local_nets = [local_nets]
    nets = [Path(path) for path in local_nets]
    for path in nets:
        patch = Student.load(path).local.patch
        if patch not in config.patches:
            used = " and ".join(map(str, config.patches))
            raise UserError(f"{path}: made for patches of {patch} pixels; this model uses {used}")
    if isinstance(images, (str, Path)):
        apart(out, Path(images))
        layout = find_layout(images)
        paths, source, known = layout.normal(Path(images)), f"{images}: ", layout.name
    else:
        paths, source, known = [Path(path) for path in images], "", None
    config = training.of_their_shape(config, paths)
    no_region(config, config.tile, roi)
    masks = _mask_for(roi, out, config, paths)
    # A single photograph has many tiles.
    least = training.LEAST_IMAGES if config.tile is None else 1
    if len(paths) < least:
        number = f"{len(paths)} image{'' if len(paths) == 1 else 's'}"
        raise UserError(f"{source}{number}; at least {least} are needed to train")
    return _Inputs(config, list(paths), source, known, nets, teacher, masks)


def _mask_for(roi: str | Path | None, out: Path, config: Config, paths: Sequence[Path]) -> Masks | None:
    """The one mask to train with, at the image size."""
    if roi is None:
        return None
    masks = Masks(roi, config.image_size)
    if not masks.single:
        raise UserError(
            f"{roi}: is a folder; a model learns place by place what is normal, and is trained with one mask "
            "for all photographs (score-dir and evaluate take one a photograph)"
        )
    apart(out, masks.path)
    if masks.path.resolve() in {path.resolve() for path in paths}:
        raise UserError(f"{roi}: lies among the photographs, and would be trained on; move it away")
    return masks
