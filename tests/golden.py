"""Scores of drawn images by the weights that ship, to be compared with those kept in ``golden.json``.

python tests/golden.py      writes the file anew, after a change that is meant to change scores
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from samples import draw_part

from glance_fast.config import Config
from glance_fast.model import Glance
from glance_fast.training.calibrate import calibration_of
from glance_fast.training.whitening import fit_whitening

FILE = Path(__file__).with_name("golden.json")
# The least that leaves a surrounding beside patches of 64.
SIZE = 144
# Of the default net Global-Net starts at random, seeded; of "pyramid" it ships, too.
SETTINGS = {
    "surround": {"patch": [32, 64], "stride": [8, 16]},
    "pyramid": {"patch": [32, 64], "stride": [16, 16], "net": "pyramid"},
    "paper's blend": {"patch": 32, "stride": 16, "net": "pyramid", "blend": "paper"},
}
NORMAL, LOOKED_AT = 16, 3


def compute(name: str) -> dict[str, list[float]]:
    """Image scores, thresholds, some patch scores and pixels in fp32, calibrated on drawn features.

    Not on features of images: whitening magnifies what differs little between a few of them, and with it
    how one machine rounds and another does not.
    """
    rng = np.random.default_rng(0)
    images = [draw_part(rng, SIZE, defect=i > 0) for i in range(LOOKED_AT)]
    model = Glance(Config(image_size=SIZE, **SETTINGS[name]), seed=0).eval()
    with torch.inference_mode():
        normal = [_draw_features(rng, len(scale.grid), scale.local.features) for scale in model.scales]
        model.calibration = calibration_of(model, fit_whitening(model, [normal]))
    result = model.score(images, precision="fp32")
    patches = result.patch_scores if isinstance(result.patch_scores, tuple) else (result.patch_scores,)
    return {
        "scores": result.scores.tolist(),
        "threshold": [model.calibration.threshold, model.calibration.pixel_threshold],
        "pixels": result.maps[:, 7::27, 7::27].ravel().tolist(),
        **{f"patches {i}": scores.ravel()[::7].tolist() for i, scores in enumerate(patches)},
    }


def _draw_features(
    rng: np.random.Generator, patches: int, features: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """z_l and z_g [NORMAL, patches, features] of normal images that never were."""
    global_, residual = rng.normal(size=(2, NORMAL, patches, features))
    local = global_ + residual * np.linspace(0.1, 0.4, features)
    return torch.from_numpy(local).float(), torch.from_numpy(global_).float()


def write() -> None:
    """Write the file anew."""
    golden = {name: compute(name) for name in SETTINGS}
    rounded = {
        n: {k: [float(f"{x:.7g}") for x in v] for k, v in found.items()} for n, found in golden.items()
    }
    FILE.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
