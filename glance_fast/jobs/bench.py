"""How fast a model scores on this machine, and what each engine's scores are worth: ``glance-fast bench``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import glance_fast
from glance_fast.data.depth import check_depth
from glance_fast.data.images import read_image
from glance_fast.device import has_bf16
from glance_fast.engines.memory import MIB
from glance_fast.engines.timing import measured
from glance_fast.errors import ImageError, UserError
from glance_fast.kernels.native import compiled
from glance_fast.model import Glance, ScoreResult

# Runs of each engine after one that is not counted; the paper's procedure takes its time.
ROUNDS = {"auto": 7, "dense": 7, "grouped": 7, "patchwise": 1}
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """What was measured of one engine.

    Attributes
    ----------
    engine, precision : str
        As ``Glance.score`` takes them.
    images : int
        Handed over at a time.
    seconds : float
        An image, the median.
    patches : float
        A second.
    times : float
        As fast as what the engine is compared with, an image at a time.
    memory_mib : float or None
        The most that the process held, or that was allocated on a GPU; None where nothing tells.
    difference : float
        Largest difference of a patch score from that of what it is compared with, as a share of the largest;
        NaN, and None in ``Bench.as_dict``, where that is 0 or scores are not finite.
    agreement : float or None
        Spearman correlation with those patch scores, the least over the patch sizes; None where all are one.
    """

    engine: str
    precision: str
    images: int
    seconds: float
    patches: float
    times: float
    memory_mib: float | None
    difference: float
    agreement: float | None


@dataclass(frozen=True)
class Bench:
    """All that ``glance-fast bench`` says.

    Attributes
    ----------
    rows : list of Measured
        The engines.
    stages : dict of dict
        Seconds an image by precision and stage of the engine of the first row: "dense", or net "surround"'s
        only one, "auto".
    about : dict
        The machine and the model; ``compared_with``: the engine that in fp32 the others are compared with.
    """

    rows: list[Measured]
    stages: dict[str, dict[str, float]]
    about: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file, which has no NaN."""
        engines = [asdict(row) for row in self.rows]
        for engine in engines:
            if not math.isfinite(engine["difference"]):
                engine["difference"] = None
        return {"about": self.about, "engines": engines, "stages": self.stages}


@dataclass
class _Way:
    """An engine in a precision, and what it said of all images."""

    engine: str
    precision: str
    result: ScoreResult | None = None


@dataclass
class _Case:
    """A way to score so many images at a time: the most memory it held, and seconds an image of each run."""

    way: _Way
    images: int
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)

    def run(self, model: Glance, image: np.ndarray) -> None:
        """Score an image as many times as are handed over at a time."""
        model.score([image] * self.images, self.way.engine, self.way.precision)


def bench(
    model: Glance,
    images: Sequence[Any],
    *,
    patchwise: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Measure the engines of a model, one after the other in each round.

    Parameters
    ----------
    model : Glance
        Trained, for what is said of agreement to mean anything.
    images : sequence
        At least one, as ``Glance.score`` takes them: the first is timed alone and as a batch, and the
        agreement is measured on all.
    patchwise : bool
        Whether to run the paper's procedure, which takes long; without it the dense engine in fp32 stands for
        its scores, and ``times`` compares with that. Net "surround" has no such procedure: its own scores in
        fp32 stand for it.
    progress : callable, optional
        Called with (runs done, runs in all).

    Returns
    -------
    Bench
    """
    prepared = [model.prepare(image) for image in images]
    precisions = ("fp32", "bf16") if has_bf16(model.device) else ("fp32",)
    patchwise = patchwise and model.config.masked
    engines = ("dense", "grouped") if model.config.masked else ("auto",)
    ways = [_Way(engine, precision) for engine in engines for precision in precisions]
    cases = [_Case(way, count) for way in ways for count in sorted({1, model.at_once(way.precision)})]
    exact = cases[0]
    if patchwise:
        exact = _Case(_Way("patchwise", "fp32"), 1)
        ways.append(exact.way)
        cases.append(exact)
    total = len(ways) + len(cases) + max(ROUNDS.values())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for way in ways:
        way.result = model.score(prepared, way.engine, way.precision)
        advance()
    for case in cases:
        # Before what is counted: each has run once now.
        _forget_peak()
        case.run(model, prepared[0])
        case.peak_mib = _peak_mib()
        advance()
    for number in range(max(ROUNDS.values())):
        for case in cases:
            if number < ROUNDS[case.way.engine]:
                started = time.perf_counter()
                case.run(model, prepared[0])
                case.seconds.append((time.perf_counter() - started) / case.images)
        advance()
    patches = sum(len(scale.grid) for scale in model.scales)
    rows = [_measured(case, exact, patches) for case in cases]
    stages = {precision: _stages(model, prepared[0], engines[0], precision) for precision in precisions}
    return Bench(rows, stages, _about(model, len(prepared), exact.way.engine))


def photographs(paths: Sequence[Path], most: int, white: int | None = None) -> list[np.ndarray]:
    """Up to ``most`` images, evenly out of those that ``paths`` name; unreadable ones are passed over.

    So are those of more than 8 bits where ``white``, the model's (``Calibration.white``), is None.

    Raises
    ------
    UserError
        None can be read.
    """
    found: list[np.ndarray] = []
    # From every part of the list first: neighbours are alike.
    first = dict.fromkeys(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int).tolist())
    error: ImageError | None = None
    for path in (paths[i] for i in dict.fromkeys([*first, *range(len(paths))])):
        try:
            image = read_image(path)
            check_depth(image, white, path)
            found.append(image)
        except ImageError as unreadable:
            error = unreadable
        if len(found) == most:
            break
    if not found:
        raise UserError(f"no image can be read; the last one: {error}")
    return found


def noise(model: Glance) -> list[np.ndarray]:
    """An image of the model's size and depth that is nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (*model.config.image_size, 3), dtype=np.uint8)
    return [model.prepare(pixels)]


def _measured(case: _Case, exact: _Case, patches: int) -> Measured:
    """The row of a case beside what it is compared with."""
    each = median(case.seconds)
    # All images were scored before anything was timed.
    assert case.way.result is not None and exact.way.result is not None
    apart = [_compare(*pair) for pair in _pairs(case.way.result, exact.way.result)]
    return Measured(
        engine=case.way.engine,
        precision=case.way.precision,
        images=case.images,
        seconds=each,
        patches=patches / each,
        times=median(exact.seconds) / each,
        memory_mib=case.peak_mib,
        # Unlike max, it does not pass over NaN.
        difference=float(np.max([difference for difference, _ in apart])),
        agreement=_least([agreement for _, agreement in apart]),
    )


def _pairs(result: ScoreResult, exact: ScoreResult) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patch scores of both, one pair a scale."""
    one, other = (
        r.patch_scores if isinstance(r.patch_scores, tuple) else (r.patch_scores,) for r in (result, exact)
    )
    return list(zip(one, other, strict=True))


def _compare(scores: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Largest difference as a share of the largest score, and Spearman correlation."""
    largest = float(np.abs(exact).max())
    difference = float(np.abs(scores - exact).max()) / largest if largest > 0 else math.nan
    return difference, float(spearmanr(scores.ravel(), exact.ravel()).statistic)


def _least(agreements: list[float]) -> float | None:
    return min(agreements) if np.isfinite(agreements).all() else None


def _stages(model: Glance, image: np.ndarray, engine: str, precision: str) -> dict[str, float]:
    """Seconds of each stage of an engine for one image, and the rest, of the run that took the median time.

    They add up to all of that run: medians of each stage would not.
    """
    runs = []
    for _ in range(ROUNDS[engine]):
        started = time.perf_counter()
        with measured() as seconds:
            model.score([image], engine, precision)
        whole = time.perf_counter() - started
        runs.append((whole, {**seconds, "rest": whole - sum(seconds.values())}))
    return sorted(runs, key=lambda run: run[0])[len(runs) // 2][1]


def _forget_peak() -> None:
    """Begin to look for the most memory anew."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif REFERENCES.exists():
        REFERENCES.write_text("5")


def _peak_mib() -> float | None:
    """The most memory since then, MiB."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    if not REFERENCES.exists():
        return None
    lines = [line.split() for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0][1]) / 1024 if lines else None


def _about(model: Glance, images: int, exact: str) -> dict[str, Any]:
    cuda = model.device.type == "cuda"
    return {
        "glance_fast": glance_fast.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(model.device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "compiled": None if cuda else compiled(),
        "image_size": list(model.config.image_size),
        "patches": [len(scale.grid) for scale in model.scales],
        "patch": list(model.config.patches),
        "stride": list(model.config.strides),
        "net": model.config.net,
        "images": images,
        "compared_with": exact,
    }
