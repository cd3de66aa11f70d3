"""glance-fast on a bed: trained with the defaults, or with other settings; the blend and what is in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.accuracy.beds import Bed, load_test
from benchmarks.accuracy.measure import figures, milliseconds
from benchmarks.accuracy.results import BLEND, LOCAL
from glance_fast.calibration import is_anomalous
from glance_fast.config import PRESETS, Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.experiments.local_alone import without_global
from glance_fast.maps import combine
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import load
from glance_fast.training.calibrate import calibration_of
from glance_fast.training.fit import fit
from glance_fast.training.whitening import fit_whitening

# Features (z_l, z_g) of some images, a pair a scale, for each chunk of them.
Chunks = list[list[tuple[torch.Tensor, torch.Tensor]]]

# Settings by the name under which their rows are kept: the presets, of which "surround" is the default.
FAMILIES = {"default" if name == "surround" else name: settings for name, settings in PRESETS.items()}


def train(folder: Path, run: Path, config: Config) -> dict[str, float]:
    """Train on a bed, or find that it was done.

    Parameters
    ----------
    folder : Path
        The bed.
    run : Path
        The run folder. A training that was broken off is begun anew, for its time would not be known.
    config : Config
        Settings.

    Returns
    -------
    dict
        ``seconds`` of the training, and the ``threads`` it had.
    """
    kept = run / "cost.json"
    if not kept.is_file():
        shutil.rmtree(run, ignore_errors=True)
        started = time.monotonic()
        with Reporter(Console(stderr=True)) as reporter:
            fit(normal_images(folder), run, config, reporter=reporter)
        cost = {"seconds": time.monotonic() - started, "threads": torch.get_num_threads()}
        kept.write_text(json.dumps(cost) + "\n", encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def measure(
    bed: Bed, folder: Path, run: Path, settings: dict[str, Any], seed: int, timed: bool = False
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train on a bed and measure every score.

    Parameters
    ----------
    bed : Bed
        Which.
    folder : Path
        Where it is.
    run : Path
        The run folder.
    settings : dict
        Those that are not the default; the bed's image size is, unless it is among them.
    seed : int
        Of the training.
    timed : bool
        Measure the milliseconds an image of the blend, too.

    Returns
    -------
    cost : dict
        As from ``train``.
    scores : dict
        Metrics of each score, and ``ms``.
    """
    cost = train(folder, run, Config(**{"image_size": bed.size, "seed": seed, **settings}))
    scores = ablate(load(run, "cpu"), folder)
    if timed:
        # Read anew, because taking the model apart changes it.
        model = load(run, "cpu")
        image = load_test(folder, model.config.image_size)[0][0]
        scores[BLEND]["ms"] = milliseconds(lambda: model.score([image], precision="fp32"))
    return cost, scores


@torch.inference_mode()
def ablate(model: Glance, folder: Path) -> dict[str, dict[str, float]]:
    """Measure the blend, each score alone, the paper's blend of patch 64, and Local-Net alone.

    The blend is the model as it is, with the shares of defective images found and of good ones called
    anomalous. All others are calibrated anew from the same normal images.
    """
    config = model.config
    cache = ImageCache(normal_images(folder), config.image_size)
    normal, (test, masks, labels) = cache.batch(range(len(cache))), load_test(folder, config.image_size)
    test_features = _chunks(model, test)
    maps, scores = _scored(model, test_features)
    above = is_anomalous(scores, model.calibration.threshold)
    out = {BLEND: figures(maps, scores, masks, labels)}
    out[BLEND] |= {"found": float(above[labels].mean()), "false_alarms": float(above[~labels].mean())}
    normal_features = _chunks(model, normal)

    def row(name: str, judge: Glance, normal_chunks: Chunks, test_chunks: Chunks, lambda_s: float) -> None:
        judge.config = dataclasses.replace(judge.config, lambda_s=lambda_s)
        # What the patch sizes count by is the model's: the rows differ in scores alone.
        weights = [s.weight for s in judge.calibration.scales]
        normal_scores = fit_whitening(judge, normal_chunks)
        judge.calibration = calibration_of(judge, normal_scores, weights=weights)
        out[name] = figures(*_scored(judge, test_chunks), masks, labels)

    for name, lambda_s in (("IAD alone", 1.0), ("DAD alone", 0.0)):
        row(name, model, normal_features, test_features, lambda_s)
    for index, patch in enumerate(config.patches):
        if patch == 64:
            one = [[[c[index]] for c in chunks] for chunks in (normal_features, test_features)]
            row("patch 64, paper's blend", _paper_model(model), *one, 0.8)
    alone = without_global(model, cache).score(list(test))
    out[LOCAL] = figures(alone.maps, alone.scores, masks, labels)
    return out


def _chunks(model: Glance, images: np.ndarray) -> Chunks:
    """Features of prepared images, a chunk at a time."""
    step = model.at_once()
    return [model.features(images[i : i + step]) for i in range(0, len(images), step)]


def _scored(model: Glance, chunks: Chunks) -> tuple[np.ndarray, np.ndarray]:
    """Maps and image scores from features."""
    parts = []
    for chunk in chunks:
        scales = zip(model.scales, chunk, model.calibration.scales, strict=True)
        patch_scores = [scale.patch_scores(*pair, statistics) for scale, pair, statistics in scales]
        parts.append(combine(model.head_maps(patch_scores), model.config, model.calibration))
    maps, scores = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return maps, scores


def _paper_model(model: Glance) -> Glance:
    """Patch 64 of a model of two patch sizes, scored by Eq. 11 to 13 as they stand."""
    frame = model.config.frames[model.config.patches.index(64)]
    one = {"patch": 64, "stride": 16, "holes": None, "finetune_steps": None, "frame": frame}
    paper = Glance(dataclasses.replace(model.config, **one, blend="paper", lambda_s=0.8))
    state = model.scales[model.config.patches.index(64)].state_dict()
    paper.scales[0].load_state_dict(
        {k: v for k, v in state.items() if k not in ("residual_mean", "whitening")}
    )
    return paper
