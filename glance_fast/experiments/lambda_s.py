"""Table 4: what λ_s of Eq. 13 does to trained models, without training again.

The paper blends the raw scores of one patch size. Here that is the rows "raw" (of several sizes the mean of
their maps); "calibrated" are those of a calibrated model, its statistics taken anew for every λ_s. Maps are
smoothed as the model's settings say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glance_fast.calibration import ScaleStatistics
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import digest_of
from glance_fast.data.layouts import categories, normal_images
from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.evaluation.summary import defective_of
from glance_fast.experiments import figures, paper
from glance_fast.experiments.measure import METRICS, RUNS, measured
from glance_fast.experiments.study import RECORD, Row, study
from glance_fast.jobs.output import apart
from glance_fast.maps import HeadMaps, combine
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import MODEL, load, of_whole_photographs
from glance_fast.tiles import whole_only
from glance_fast.training.calibrate import calibration_of, features_of
from glance_fast.training.whitening import fit_whitening

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RAW, CALIBRATED = "raw", "calibrated"
COLUMNS = {"category": str, "blend": str, "lambda_s": float, **dict.fromkeys(METRICS, float)}
PICTURE = "lambda.png"


def run_lambda(
    run: Path,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter,
) -> list[Row]:
    """Score the test images of trained models by every λ_s from 0 to 1 in steps of 0.2.

    Parameters
    ----------
    run : Path
        A run folder, or what ``run_categories`` wrote: all of its models.
    data : Path
        The category that the model was trained on; of several models, the folder of their categories.
    out : Path
        Folder to write: ``results.csv``, ``lambda.png``, ``experiment.json``.
    resume, overwrite : bool
        As for ``run_categories``.
    device, memory_mib
        As for ``glance_fast.load``.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of dict
        Rows of ``results.csv``: ``category``, ``blend`` ("raw", and "calibrated" where the model is),
        ``lambda_s`` and the metrics.

    Raises
    ------
    UserError
        There is no model, or no such category; ``out`` cannot be written, or holds another experiment.
    """
    apart(out, run, data)
    pairs = models_of(run, data)
    # Loaded at once, so that a bad one is known before the work on the others.
    models = {
        name: of_whole_photographs(load(folder, device, memory_mib=memory_mib), folder)
        for name, folder, _ in pairs
    }
    for model in models.values():
        whole_only(model.config, "lambda")
    for name, _, place in pairs:
        find_category(place, out / name)
    settings = {f"model of {name}": digest_of(model.state_dict())[:16] for name, model in models.items()}
    with study(out, "lambda", settings, COLUMNS, (PICTURE,), resume=resume, overwrite=overwrite) as table:
        for name, _, place in pairs:
            model = models[name]
            blends = [RAW] if model.config.blend == "paper" else [RAW, CALIBRATED]
            both = [(blend, share) for blend in blends for share in SHARES]
            wanted = [(b, s) for b, s in both if not table.find(category=name, blend=b, lambda_s=s)]
            if not wanted:
                continue
            category = find_category(place, out / name)
            photographs = read_photographs(
                category, model.prepare, model.config.image_size, white=model.calibration.white
            )
            with reporter.task(name, len(wanted)) as advance:
                by_share = _ByShare(model, place, photographs.prepared)
                for done, (blend, share) in enumerate(wanted, start=1):
                    maps, scores = by_share(blend, share)
                    found = measured(maps, photographs.masks, defective_of(category.samples), scores)
                    table.add({"category": name, "blend": blend, "lambda_s": share, **found})
                    advance(done)
        figures.save(out / PICTURE, figures.lines(curves(table.rows), "λ_s", "PRO"))
    return table.rows


def models_of(run: Path, data: Path) -> list[tuple[str, Path, Path]]:
    """Name, run folder and data of one model, or of all that ``run_categories`` trained."""
    if (run / MODEL).exists() or not (run / RECORD).exists():
        return [(find_category(data, run).name, run, data)]
    found = [
        (name, run / RUNS / name, place)
        for name, place in categories(data)
        if (run / RUNS / name / MODEL).exists()
    ]
    if not found:
        raise UserError(f"{run}: holds no finished model of a category in {data}")
    return found


def curves(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """PRO over λ_s by category and blend; "paper" for what it prints."""
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for row in rows:
        if row["pro"] is not None:
            x, y = found.setdefault((row["category"], row["blend"]), ([], []))
            x.append(row["lambda_s"])
            y.append(row["pro"])
    for name in dict.fromkeys(row["category"] for row in rows):
        printed = paper.figure_of("lambda_s", name)
        if printed:
            found[name, "paper"] = (list(SHARES), printed)
    return found


class _ByShare:
    """A model's maps and image scores of test images by any λ_s; its nets run once.

    Parameters
    ----------
    model : Glance
        Changed: calibrated anew.
    data : Path
        The normal images are taken from here.
    images : sequence of ndarray
        The test images, prepared.
    """

    @torch.inference_mode()
    def __init__(self, model: Glance, data: Path, images: Sequence[np.ndarray]) -> None:
        self.judges = {RAW: _raw_twin(model)}
        if model.config.blend == "calibrated":
            self.judges[CALIBRATED] = model
            self.weights = [scale.weight for scale in model.calibration.scales]
            with ImageCache(
                normal_images(data), model.config.image_size, white=model.calibration.white
            ) as cache:
                self.normal = fit_whitening(model, features_of(model, cache, range(len(cache))))
        self.maps: dict[str, list[list[HeadMaps]]] = {blend: [] for blend in self.judges}
        step = model.at_once()
        for start in range(0, len(images), step):
            features = model.features(np.stack(images[start : start + step]))
            for blend, judge in self.judges.items():
                scores = [
                    scale.patch_scores(*pair, ScaleStatistics())
                    for scale, pair in zip(judge.scales, features, strict=True)
                ]
                self.maps[blend].append(judge.head_maps(scores))

    @torch.inference_mode()
    def __call__(self, blend: str, share: float) -> tuple[np.ndarray, np.ndarray]:
        judge = self.judges[blend]
        shares = [share] * len(judge.scales)
        if blend == RAW:
            calibration = dataclasses.replace(
                judge.calibration, scales=tuple(ScaleStatistics(lambda_s=s) for s in shares)
            )
        else:
            calibration = calibration_of(judge, self.normal, shares, self.weights)
        parts = [combine(maps, judge.config, calibration) for maps in self.maps[blend]]
        maps, scores = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return maps, scores


def _raw_twin(model: Glance) -> Glance:
    """The same nets, whose scores are those of Eq. 11 and 12 as they stand."""
    twin = Glance(dataclasses.replace(model.config, blend="paper"))
    calibrated = ("residual_mean", "whitening")
    for own, given in zip(twin.scales, model.scales, strict=True):
        own.load_state_dict({k: v for k, v in given.state_dict().items() if k not in calibrated})
    return twin.to(model.device)
