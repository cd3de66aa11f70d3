"""A trained model as one file for other runtimes, checked before it is kept: ``glance-fast export``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import glance_fast
from glance_fast.data.depth import deepened
from glance_fast.data.files import atomic_write
from glance_fast.data.folders import list_images
from glance_fast.data.images import Pixels, resize
from glance_fast.errors import UserError
from glance_fast.export.formats import OUTPUTS, SUFFIXES, Scorer, check_packages, finite, scorer, write
from glance_fast.export.graph import ScoringGraph
from glance_fast.jobs.bench import photographs
from glance_fast.jobs.output import check_file
from glance_fast.maps import combine
from glance_fast.model import Glance
from glance_fast.run import load
from glance_fast.tiles import whole_only

# By which maps and scores may differ from the model's, as a share of the spread of a map.
LIMIT = 1e-4
# A share by which float32 moves a probability near 1, where 1 / (1 + e) is formed.
STEP = 2**-22
# Photographs out of a folder that a file is checked on.
COMPARED = 16
# Times that both are run for what is said of their speed.
ROUNDS = 7


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with the model.

    Attributes
    ----------
    file, format : str
        As given.
    bytes : int
        Size of the file.
    images : int
        Photographs that both have scored.
    map_difference, score_difference : float
        The largest, as shares of the spread (maximum less minimum) of the model's map of that photograph;
        beyond what the last digit of s_DAD makes of a map (``bounds``), or in the mean of a map.
    seconds, model_seconds : float
        An image of the model's size, the median, with the file and with the model, both in fp32 on the CPU.
    """

    file: str
    format: str
    bytes: int
    images: int
    map_difference: float
    score_difference: float
    seconds: float
    model_seconds: float


def export_run(
    run: str | Path,
    out: str | Path,
    format: str = "onnx",
    check: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a run's model as one file, which takes images of any size, and keep it if it says the same.

    Parameters
    ----------
    run : path
        A run folder.
    out : path
        The file, which ends in ".onnx" or ".pt2".
    format : {"onnx", "torch-export"}
        Of the file.
    check : path, optional
        Folder of photographs that both score; up to 16 of them. Without it, three that come with
        scikit-image, at several sizes.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Exported

    Raises
    ------
    UserError
        The format or its packages are not there; the file's name does not fit, or it cannot be written; the
        run is none, or its net is a masked one; no photograph can be read; or maps or scores differ by more
        than 0.0001 of a map's spread, and there is no file then.
    """
    out = Path(out)
    check_packages(format)
    suffix = SUFFIXES[format]
    check_file(out, overwrite, f"model{suffix}")
    if out.suffix != suffix:
        raise UserError(f"{out}: `format={format}` makes files that end in {suffix}; name it so")
    paths = list_images(check) if check is not None else None
    model = load(run, "cpu", "fp32")
    whole_only(model.config, "export")
    graph = ScoringGraph(model).eval()
    white = model.calibration.white
    pictures = built_in(model.config.image_size) if paths is None else photographs(paths, COMPARED, white)
    pictures = [stored(picture, white) for picture in pictures]
    with atomic_write(out) as temporary:
        write(graph, temporary, format, notes_of(model))
        found = compare(model, scorer(temporary, format), pictures, out)
        size = temporary.stat().st_size
    return Exported(str(out), format, size, len(pictures), *found)


def notes_of(model: Glance) -> dict[str, Any]:
    """What a file says of itself. An infinite threshold, which calls nothing anomalous, is None."""
    return {
        "version": glance_fast.__version__,
        "image_size": list(model.config.image_size),
        # Images are uint16, and this value is white; None: they are uint8.
        "white": model.calibration.white,
        "threshold": finite(model.calibration.threshold),
        "pixel_threshold": finite(model.calibration.pixel_threshold),
        "outputs": list(OUTPUTS),
    }


def stored(picture: Pixels, white: int | None) -> Pixels:
    """A picture as a file takes it: of more than 8 bits where the model was trained on such ones."""
    return picture if white is None or picture.dtype == np.uint16 else deepened(picture, white)


def built_in(size: tuple[int, int]) -> list[Pixels]:
    """Photographs that come with scikit-image: of the model's size, smaller and wider, and far larger."""
    from skimage import data

    height, width = size
    return [
        resize(data.astronaut(), size),
        resize(data.coffee(), (height * 3 // 4 + 1, width * 3 // 2 + 1)),
        # Where resizing averages whole pixels first.
        resize(data.rocket(), (height * 6 + 5, width * 3 + 1)),
    ]


def compare(
    model: Glance, file: Scorer, pictures: Sequence[Pixels], out: Path
) -> tuple[float, float, float, float]:
    """The last four of ``Exported``.

    Raises
    ------
    UserError
        They differ too much.
    """
    maps_apart, scores_apart = 0.0, 0.0
    for picture in pictures:
        (low, low_score), (ours, _), (high, high_score) = bounds(model, picture)
        maps, scores, _ = file(picture[None])
        # A map that is even everywhere has no spread, and any difference is too much then.
        spread = max(float(np.ptp(ours)), float(np.finfo(np.float32).tiny))
        # The mean tells what is wrong everywhere, also where bounds are wide. Unlike Python's max, NumPy's
        # does not pass over NaN.
        found = np.maximum(beyond(maps, low, high), np.abs(maps - ours).mean()) / spread
        maps_apart = float(np.maximum(maps_apart, found))
        scores_apart = float(np.maximum(scores_apart, beyond(scores, low_score, high_score) / spread))
    if not (maps_apart <= LIMIT and scores_apart <= LIMIT):
        raise UserError(
            f"{out}: not kept, for it does not say what the model says: maps differ by up to "
            f"{maps_apart:.1e} of their spread and scores by {scores_apart:.1e}, allowed is {LIMIT:.0e}; "
            "please report it"
        )
    picture = resize(pictures[0], model.config.image_size)
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS):
        for times, run in zip(
            seconds, (lambda: file(picture[None]), lambda: model.score([picture])), strict=True
        ):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return maps_apart, scores_apart, median(seconds[0]), median(seconds[1])


def bounds(model: Glance, picture: Pixels) -> list[tuple[NDArray, NDArray]]:
    """The model's map [1, h, w] and score [1] with every s_DAD lower by its last digit, as it is, and higher.

    Where a patch is distorted for certain, one step of float32 below 1 is all that is left of its log odds:
    the order of a sum decides on it, and no file could be held to it. Maps never fall where s_DAD rises.
    """
    found = model.patch_scores(model.prepare(picture)[None])
    sides = []
    for factor in (1 - STEP, 1, 1 + STEP):
        moved = [scale._replace(distortion=(scale.distortion * factor).clamp(max=1)) for scale in found]
        maps, scores = combine(model.head_maps(moved), model.config, model.calibration, model.inside)
        sides.append((maps.numpy(), scores.numpy()))
    return sides


def beyond(values: NDArray, low: NDArray, high: NDArray) -> float:
    """By how much values lie outside of their bounds, at most."""
    return float(np.maximum(np.maximum(low - values, values - high), 0).max())
