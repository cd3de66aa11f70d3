"""Accuracy with the defaults on three kinds of data: aligned, at any angle, texture.

    python -m benchmarks.testbeds aligned any-angle texture --seeds 3

*aligned* is MVTec transistor as it is (``GLANCE_FAST_DATA/transistor``); *any-angle* is the same with every
image turned by a random angle, training, test and masks alike; *texture* is the demo's grass, gravel and
brick at 192 pixels with planted defects of 4 to 80 pixels. Trains with the defaults, evaluates, and adds
the figures to ``benchmarks/results/testbeds.json``: the blend, each score alone, and Local-Net without
Global-Net.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from scipy.ndimage import rotate

from glance_fast.checkpoint import load
from glance_fast.config import Config, parse_setting
from glance_fast.data.demo import TEXTURES, build_demo
from glance_fast.data.folders import ImageCache, mvtec_test, normal_images, read_sample_mask
from glance_fast.data.images import read_image, read_mask, resize, write_png
from glance_fast.evaluation import metrics
from glance_fast.model import Glance
from glance_fast.nets.teacher import to_input
from glance_fast.scoring.calibration import NormalScores, calibration_of, normal_scores, whiten
from glance_fast.scoring.maps import HeadMaps, combine
from glance_fast.training.fit import fit, split
from glance_fast.training.progress import Reporter

RESULTS = Path(__file__).parent / "results" / "testbeds.json"
KINDS = {"aligned": ["transistor"], "any-angle": ["transistor-turned"], "texture": list(TEXTURES)}
TEXTURE_SIZE = 192


def build_turned(source: Path, out: Path, seed: int = 0) -> None:
    """Every image of an MVTec category turned by a random angle about its middle, its mask with it."""
    rng = np.random.default_rng(seed)
    for path in sorted(source.rglob("*.png")):
        relative = path.relative_to(source)
        if relative.parts[0] == "ground_truth":
            continue
        angle = rng.uniform(0, 360)
        turned = rotate(read_image(path), angle, reshape=False, order=1, mode="reflect")
        write_png(out / relative, turned)
        mask = source / "ground_truth" / relative.relative_to(relative.parts[0])
        mask = mask.with_name(f"{path.stem}_mask.png")
        if relative.parts[0] == "test" and mask.is_file():
            grey = read_mask(mask).astype(np.float32)
            grey = rotate(grey, angle, reshape=False, order=1, mode="constant") > 0.5
            target = out / mask.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey.astype(np.uint8) * 255).save(target)


def prepare(name: str, work: Path) -> Path:
    """The folder of a data set, built where it is not there yet."""
    if name in TEXTURES:
        out = work / "textures"
        if not (out / name).is_dir():
            build_demo(out, size=TEXTURE_SIZE, train=80, good=20, per_defect=12)
        return out / name
    if "GLANCE_FAST_DATA" not in os.environ:
        raise SystemExit("GLANCE_FAST_DATA is not set: it names the folder that holds transistor/")
    source = Path(os.environ["GLANCE_FAST_DATA"]) / "transistor"
    if name == "transistor":
        return source
    out = work / name
    if not out.is_dir():
        build_turned(source, out)
    return out


def feature_chunks(model: Glance, images: np.ndarray) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Features of prepared images, a chunk at a time."""
    step = model.at_once
    return [model.features(images[i : i + step]) for i in range(0, len(images), step)]


def local_chunks(model: Glance, images: np.ndarray) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The same of Local-Net alone, with nothing where Global-Net's features would be."""
    for start in range(0, len(images), model.at_once):
        x = to_input(torch.from_numpy(images[start : start + model.at_once]))
        local = [scale.local(x, scale.grid.stride).flatten(2).mT for scale in model.scales]
        yield [(z, torch.zeros_like(z)) for z in local]


def paper_model(model: Glance) -> Glance:
    """Patch 64 of a model of two patch sizes, scored by Eq. 11 to 13 as they stand."""
    settings = {"patch": 64, "stride": 16, "holes": None, "blend": "paper", "lambda_s": 0.8}
    paper = Glance(dataclasses.replace(model.config, **settings))
    state = model.scales[model.config.patches.index(64)].state_dict()
    paper.scales[0].load_state_dict(
        {k: v for k, v in state.items() if k not in ("residual_mean", "whitening")}
    )
    return paper


def measure(
    model: Glance, held_out: list[NormalScores], test: list[HeadMaps], truth: dict
) -> dict[str, float]:
    """PRO, pixel AUROC and image AUROC of a model with these scores on held-out and on test images."""
    combined = combine(test, model.config, calibration_of(held_out, model.config))
    maps, scores = (t.numpy() for t in combined)
    pro, pixel = metrics.pro_and_auroc(maps, truth["masks"])
    return {"pro": pro, "pixel_auroc": pixel, "image_auroc": metrics.image_auroc(scores, truth["labels"])}


@torch.inference_mode()
def ablate(model: Glance, data: Path) -> dict[str, dict[str, float]]:
    """The blend, each score alone, the paper's blend of patch 64, and Local-Net alone, of one model."""
    config = model.config
    cache = ImageCache(normal_images(data), config.image_size)
    train, held_out = split(len(cache), config)
    normal = cache.batch(held_out)
    test, truth = test_set(data, config.image_size)
    normal_features, test_features = feature_chunks(model, normal), feature_chunks(model, test)
    out: dict[str, dict[str, float]] = {}

    def row(name: str, judge: Glance, normal_chunks, test_chunks, lambda_s: float) -> None:
        judge.config = dataclasses.replace(judge.config, lambda_s=lambda_s)
        test_maps = [s.maps for s in normal_scores(judge, test_chunks)]
        out[name] = measure(judge, normal_scores(judge, normal_chunks), test_maps, truth)

    for name, lambda_s in (("blend", config.lambda_s), ("IAD alone", 1.0), ("DAD alone", 0.0)):
        row(name, model, normal_features, test_features, lambda_s)
    for index, patch in enumerate(config.patches):
        if patch == 64:
            paper = paper_model(model)
            one = [[[c[index]] for c in chunks] for chunks in (normal_features, test_features)]
            row("patch 64, paper's blend", paper, *one, 0.8)
    whiten(model, local_chunks(model, cache.batch(train)))
    row("Local-Net alone", model, local_chunks(model, normal), local_chunks(model, test), 1.0)
    return out


def test_set(data: Path, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All test images, uint8 [N, H, W, 3], and their "masks" [N, H, W] and "labels" [N] (true: defective)."""
    samples = mvtec_test(data)
    originals = [read_image(s.path) for s in samples]
    masks = [
        resize_truth(read_sample_mask(s, o.shape[:2]), size) for s, o in zip(samples, originals, strict=True)
    ]
    labels = np.array([s.defect != "good" for s in samples])
    return np.stack([resize(o, size) for o in originals]), {"masks": np.stack(masks), "labels": labels}


def resize_truth(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the model's size: more than half covered counts."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.array(grey.resize(size[::-1], Image.Resampling.BOX)) > 127


def main() -> None:
    """Run the test beds named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/testbeds"), help="data and run folders")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label", default="default", help="name of these settings in the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = dict(map(parse_setting, arguments.set))
    for kind in arguments.kinds:
        for name in KINDS[kind]:
            data = prepare(name, arguments.work)
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                size = {"image_size": TEXTURE_SIZE} if kind == "texture" else {}
                config = Config(**{**size, "seed": seed, **settings})
                run = arguments.work / "runs" / f"{name}-{arguments.label}-{seed}"
                started = time.monotonic()
                if not (run / "model.safetensors").is_file():
                    shutil.rmtree(run, ignore_errors=True)
                    with Reporter(Console(stderr=True)) as reporter:
                        fit(normal_images(data), run, config, reporter=reporter)
                seconds = time.monotonic() - started
                rows = ablate(load(run, "cpu"), data)
                keep(arguments.results, kind, name, arguments.label, seed, seconds, rows)


def keep(
    path: Path, kind: str, name: str, label: str, seed: int, seconds: float, rows: dict[str, dict[str, float]]
) -> None:
    """Add rows to the file of results, in place of earlier ones of the same run."""
    found = json.loads(path.read_text()) if path.is_file() else []
    key = {"kind": kind, "data": name, "settings": label, "seed": seed}
    found = [row for row in found if {k: row[k] for k in key} != key]
    for what, values in rows.items():
        rounded = {k: round(v, 4) for k, v in values.items()}
        found.append(
            {**key, "score": what, "seconds": round(seconds), "threads": torch.get_num_threads(), **rounded}
        )
        print(name, label, seed, what, rounded, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
