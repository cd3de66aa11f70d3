"""``glance-fast demo``: the whole path on textures that ship with scikit-image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from glance_fast.config import Config
from glance_fast.data.demo import TEXTURES, build_demo
from glance_fast.data.files import write_text
from glance_fast.data.layouts import normal_images
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.evaluation.inputs import find_category
from glance_fast.evaluation.report import IndexRow, mean, write_index
from glance_fast.evaluation.summary import METRICS
from glance_fast.progress import Reporter
from glance_fast.training.fit import fit

SIZE = 128
# Smaller than the defaults in everything that costs time; the method is the same. A patch of 64 pixels would
# be half of the image.
CONFIG = Config(
    image_size=SIZE, patch=32, stride=8, finetune_steps=120, steps=200, variants=120, validation=0.2
)


class Counts(TypedDict, total=False):
    """Images of each texture, as ``build_demo`` takes them."""

    train: int
    good: int
    per_defect: int


def run_demo(
    out: Path,
    reporter: Reporter,
    config: Config = CONFIG,
    *,
    device: str | torch.device = "auto",
    **counts: Unpack[Counts],
) -> dict[str, dict]:
    """Build the data, and train, score and evaluate a model for every texture.

    Writes ``out/data/<texture>``, ``out/runs/<texture>``, ``out/results/<texture>``, ``out/report.html`` and
    ``out/metrics.json``.

    Parameters
    ----------
    out : Path
        Folder to write to.
    reporter : Reporter
        Shows progress.
    config : Config
        Settings of the trainings.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    **counts : int
        Passed on to ``build_demo``: train, good, per_defect.

    Returns
    -------
    dict
        Metrics by texture, and under "overall" their means; None for what cannot be had of a texture.

    Raises
    ------
    UserError
        There is no test image, or as for ``build_demo``, ``fit`` and ``evaluate``.
    """
    with reporter.task("building the data set", None):
        build_demo(out / "data", size=config.image_size[0], seed=config.seed, **counts)
    # Without test images it ends here, before any training.
    categories = {t: find_category(out / "data" / t, out / "results" / t) for t in TEXTURES}
    results: dict[str, dict] = {}
    for texture, category in categories.items():
        reporter.say(f"- {texture} -")
        paths = normal_images(category.data)
        model = fit(paths, out / "runs" / texture, config, reporter=reporter, device=device)
        with reporter.task("evaluating", None) as advance:
            results[texture] = evaluate(model, category, out / "results" / texture, progress=advance)
    results["overall"] = {name: mean([results[t][name] for t in TEXTURES]) for name in METRICS}
    write_text(out / "metrics.json", json.dumps(results, indent=2) + "\n")
    rows = [IndexRow(t, out / "results" / t / "report.html", results[t]) for t in TEXTURES]
    write_index(out / "report.html", rows, "glance-fast demo: planted defects in three textures")
    return results
