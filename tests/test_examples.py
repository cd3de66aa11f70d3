"""The examples in docstrings and in examples/ do what they say."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

import glance_fast
from glance_fast.jobs.export import export_run

# Those marked to be skipped need a folder of photographs.
MODULES = (
    "config",
    "evaluation.metrics",
    "kernels.idw",
    "kernels.partial_conv",
    "kernels.patch_score",
    "kernels.surround_conv",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"glance_fast.{name}")
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.slow
def test_a_program_scores_without_torch(run_folder, tmp_path):
    photo, model, picture = (tmp_path / name for name in ("photo.png", "model.onnx", "map.png"))
    image = draw_part(np.random.default_rng(0), size=150, defect=True)[:, :100]
    Image.fromarray(image).save(photo)
    export_run(run_folder, model, check=tmp_path)
    script = Path(__file__).parent.parent / "examples" / "onnx_score.py"
    # Neither can be imported there.
    code = "import runpy, sys; sys.modules['torch'] = sys.modules['glance_fast'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-P", "-c", code, str(script), str(model), str(photo), str(picture)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    trained = glance_fast.load(run_folder, "cpu")
    ours = trained.score([image])
    verdict = "anomalous" if ours.scores[0] > trained.calibration.threshold else "normal"
    start = f"{photo}: score {ours.scores[0]:.3f}, {verdict} (threshold {trained.calibration.threshold:.3f})"
    assert done.stdout.strip() == start
    shown = np.asarray(Image.open(picture))
    assert shown.shape == (150, 100) and shown.dtype == np.uint8
    low, high = ours.maps.min(), max(ours.maps.max(), trained.calibration.pixel_threshold)
    grey = (255 * (ours.maps[0] - low) / (high - low)).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(grey).resize((100, 150)))
    assert np.ptp(shown) > 50 and np.abs(shown.astype(int) - wanted).max() <= 2
