"""The examples in docstrings and in examples/ do what they say."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clients import serving
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


EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name, *arguments, **environment):
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_run_here_and_named_in_the_documentation():
    here = Path(__file__).read_text(encoding="utf-8")
    page = (EXAMPLES.parent / "docs/python.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert f'"{path.name}"' in here and f"`{path.name}`" in page, path.name


@pytest.fixture
def photos(tmp_path):
    """A good part and one with a hole."""
    rng, paths = np.random.default_rng(0), [tmp_path / "good.png", tmp_path / "punched.png"]
    for path in paths:
        Image.fromarray(draw_part(rng, defect=path.stem == "punched")).save(path)
    return paths


@pytest.mark.slow
def test_a_program_scores_and_compares_with_the_threshold(run_folder, photos):
    first, *lines = run_example("score.py", run_folder, *photos, CUDA_VISIBLE_DEVICES="")
    model = glance_fast.load(run_folder, "cpu")
    assert first == f"threshold {model.calibration.threshold:.3f}"
    found = model.score(photos)
    for line, photo, score, score_map in zip(lines, photos, found.scores, found.maps, strict=True):
        word = "anomalous" if score > model.calibration.threshold else "normal"
        above = model.calibration.share_above(float(score))
        assert line == f"{photo}: score {score:.3f}, {word}, above {above:.3g}, peak {score_map.max():.2f}"


@pytest.mark.slow
def test_a_program_hands_losses_to_a_tracker(parts, tmp_path):
    run, log = tmp_path / "run", tmp_path / "metrics.jsonl"
    *_, last = run_example("track_training.py", parts, run, log, CUDA_VISIBLE_DEVICES="")
    threshold = glance_fast.load(run, "cpu").calibration.threshold
    assert last == f"{run}: trained, threshold {threshold:.3f}"
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in found if row["net"] == "global-32"]
    assert steps == list(range(1, 21)) and {row["net"] for row in found} == {"local-32", "global-32"}
    assert all(row["loss"] > 0 for row in found)


@pytest.mark.slow
def test_a_program_asks_a_server_with_the_standard_library(run_folder, photos, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    model = glance_fast.load(run_folder, "cpu")
    scores = model.score(photos).scores
    with serving(model) as served:
        lines = run_example("serve_client.py", f"http://127.0.0.1:{served.port}", *photos, damaged)
    for photo, score in zip(photos, scores, strict=True):
        word = "anomalous" if score > model.calibration.threshold else "normal"
        assert any(line.startswith(f"{photo}: score {score:.3f}, {word}, ") for line in lines)
    assert lines[-1].startswith(f"{damaged}: no score: ")
    regions = [line for line in lines if line.startswith("  rows ")]
    counted = sum(int(line.split()[-2]) for line in lines if line.endswith(" regions"))
    assert len(regions) == counted


@pytest.mark.slow
def test_a_busy_server_is_asked_again(photos, tmp_path):
    """By the client of an application of its own, which is busy once."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    answers = [(429, {"error": "busy"}), (200, {"score": 1.5, "anomalous": False, "regions": []})]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, said = answers.pop(0)
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *line):
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        lines = run_example("serve_client.py", f"http://127.0.0.1:{server.server_port}", photos[0])
        server.shutdown()
    assert lines == [f"{photos[0]}: score 1.500, normal, 0 regions"] and answers == []


@pytest.mark.slow
def test_a_program_scores_without_torch(run_folder, tmp_path):
    photo, model, picture = (tmp_path / name for name in ("photo.png", "model.onnx", "map.png"))
    image = draw_part(np.random.default_rng(0), size=150, defect=True)[:, :100]
    Image.fromarray(image).save(photo)
    export_run(run_folder, model, check=tmp_path)
    script = EXAMPLES / "onnx_score.py"
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
    said = re.fullmatch(r"(.*): score (.*), (.*) \(threshold (.*)\)", done.stdout.strip())
    assert said and said[1] == str(photo) and said[3] == verdict
    # One step of the last digit: rounding differs.
    figures = float(said[2]), float(said[4])
    assert figures == pytest.approx((ours.scores[0], trained.calibration.threshold), abs=2e-3)
    shown = np.asarray(Image.open(picture))
    assert shown.shape == (150, 100) and shown.dtype == np.uint8
    low, high = ours.maps.min(), max(ours.maps.max(), trained.calibration.pixel_threshold)
    grey = (255 * (ours.maps[0] - low) / (high - low)).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(grey).resize((100, 150)))
    assert np.ptp(shown) > 50 and np.abs(shown.astype(int) - wanted).max() <= 2
