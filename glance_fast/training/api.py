"""Training from Python: ``glance_fast.fit``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from glance_fast.config import Config
from glance_fast.data.folders import normal_images
from glance_fast.device import pick_device
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.progress import Reporter, Steps
from glance_fast.run import MODEL
from glance_fast.training.fit import LEAST_IMAGES
from glance_fast.training.fit import fit as train


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
        Of a step: the row of ``log.csv`` so far, such as ``loss``, ``images_per_second`` and, of the last
        step, ``r2``.
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
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    callback: Callable[[Event], None] | None = None,
) -> Glance:
    """Learn what good parts look like.

    Parameters
    ----------
    images : path or sequence of paths
        A folder of photographs of good parts, an MVTec category (its ``train/good``), or the photographs.
        Those that cannot be read are told to ``callback`` and left out.
    config : Config, optional
        Settings; the defaults if not given.
    out : path, optional
        Run folder to write. A training in it that was broken off goes on. Nothing is kept if not given.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    memory_mib : int, optional
        That calibration may take beside the model, as for ``load``.
    callback : callable, optional
        Called with an ``Event``, for a tracker of experiments, say. What it raises ends the training.

    Returns
    -------
    Glance
        Calibrated, in evaluation mode.

    Raises
    ------
    UserError
        ``images`` holds too few that can be read; ``out`` holds a finished model, or was begun with other
        images or settings; the device is not available; or memory or the disk does not suffice.

    Examples
    --------
    >>> model = glance_fast.fit("photos/good", glance_fast.Config(seed=1), "run")  # doctest: +SKIP
    >>> model.score(["photos/new/1.png"]).scores  # doctest: +SKIP
    """
    chosen = pick_device(device)
    paths = normal_images(images) if isinstance(images, (str, Path)) else [Path(path) for path in images]
    if len(paths) < LEAST_IMAGES:
        raise UserError(f"{len(paths)} images; at least {LEAST_IMAGES} are needed to train")
    config = config or Config()
    with CallbackReporter(callback or (lambda event: None)) as reporter:
        learn = functools.partial(train, reporter=reporter, device=chosen, memory_mib=memory_mib)
        if out is not None:
            if (Path(out) / MODEL).exists():
                raise UserError(f"{out}: holds a finished model; load it, or give another folder")
            return learn(paths, Path(out), config)
        with TemporaryDirectory() as folder:
            return learn(paths, Path(folder), config)
