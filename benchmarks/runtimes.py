"""What an image takes by an exported file, in ONNX Runtime and in OpenVINO, beside glance-fast.

    python -m benchmarks.runtimes RUN IMAGES [--rounds 40]

The model is exported to ONNX, and images are scored one at a time by each, in turns, with as many threads.
The result is kept in ``benchmarks/results/runtimes.json`` and written into docs/commands/export.md. What is
not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

# As the command line has it, before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np

from benchmarks.costs.machine import describe
from benchmarks.tables import ROOT, rewrite
from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image, resize
from glance_fast.device import has_bf16, use_threads
from glance_fast.jobs.export import export_run
from glance_fast.run import load

RESULTS, PAGE = ROOT / "benchmarks/results/runtimes.json", ROOT / "docs/commands/export.md"


def onnx_runtime(path, threads):
    """Scores an image by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"images": image[None]})[0][0]


def openvino(path, threads):
    """Scores an image by OpenVINO, in float32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda image: request.infer({"images": image[None]})[compiled.output(0)][0]


def measured(run, images, rounds, threads):
    """Of each way to score: milliseconds an image (median), and how far its maps are from the first's."""
    model = load(run, "cpu")
    pictures = [resize(read_image(path), model.config.image_size) for path in list_images(images)[:8]]
    ways = {"glance-fast, fp32": lambda image: model.score([image], precision="fp32").maps[0]}
    if has_bf16(model.device):
        ways["glance-fast, bf16"] = lambda image: model.score([image], precision="bf16").maps[0]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        export_run(run, path, "onnx")
        for name, package, make in (
            ("ONNX Runtime", "onnxruntime", onnx_runtime),
            ("OpenVINO", "openvino", openvino),
        ):
            try:
                ways[f"{name} {importlib.metadata.version(package)}"] = make(path, threads)
            except importlib.metadata.PackageNotFoundError:
                print(f"{name} is not installed, and left out")
        expected = [ways["glance-fast, fp32"](picture) for picture in pictures]
        seconds = {name: [] for name in ways}
        apart = dict.fromkeys(ways, 0.0)
        for number in range(rounds):
            place = number % len(pictures)
            for name, score in ways.items():
                started = time.perf_counter()
                found = score(pictures[place])
                # The first round of each image is for warming up.
                if number >= len(pictures):
                    seconds[name].append(time.perf_counter() - started)
                off = float(np.abs(found - expected[place]).max() / np.ptp(expected[place]))
                apart[name] = max(apart[name], off)
    return {
        name: {"milliseconds": 1e3 * statistics.median(times), "apart": apart[name]}
        for name, times in seconds.items()
    }


def table(results):
    """The results, and what they were measured on."""
    lines = ["| an image by | takes | map differs by at most |", "|---|---|---|"]
    for name, found in results["ways"].items():
        off = "-" if name == "glance-fast, fp32" else f"{found['apart']:.1e} of its spread"
        lines.append(f"| {name} | {found['milliseconds']:.1f} ms | {off} |")
    where = f"{results['machine']}, {results['threads']} threads"
    return "\n".join([*lines, "", f"Net `surround` with the default settings, on {where}."])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    threads = use_threads(None)
    ways = measured(given.run, given.images, given.rounds, threads)
    results = {"machine": describe()["processor"], "threads": threads, "ways": ways}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    assert rewrite(PAGE, {"runtimes": table(results)})


if __name__ == "__main__":
    main()
