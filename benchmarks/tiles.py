"""What a pixel of a large photograph costs beside one of small photographs, and the memory it takes.

    python -m benchmarks.tiles RUN IMAGE [--side 8000] [--rounds 3] [--out FILE]

RUN was trained on tiles. A photograph of side x side pixels is made of IMAGE, and photographs of one
tile each that have a quarter of its pixels together. ``glance-fast score-dir`` scores both in processes of
their own, in turns, so that both see the same machine; seconds are those of ``run.json``, and memory is the
largest of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from benchmarks.costs.machine import describe
from glance_fast.data.images import read_image, write_png
from glance_fast.run import settings_of


def score(run, images, out):
    """Seconds of scoring, and the most memory of the process, MiB."""
    command = [
        sys.executable,
        "-m",
        "glance_fast.cli",
        "score-dir",
        run,
        images,
        "--out",
        out,
        "--overwrite",
        "-q",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"score-dir ended with {process.returncode}"
    return json.loads((out / "run.json").read_text())["seconds"], usage.ru_maxrss / 1024


def make(folder, image, side, tile):
    """One large photograph, and small ones: the folders, and the pixels in each."""
    large, small = folder / "large", folder / "small"
    large.mkdir()
    times = -(-side // image.shape[0]), -(-side // image.shape[1])
    whole = np.tile(image, (*times, 1))[:side, :side]
    # Deflate, by rows of the file: what is read in parts where it is too large for Pillow.
    tifffile.imwrite(
        large / "large.tiff",
        whole,
        photometric="rgb",
        compression="zlib",
        compressionargs={"level": 1},
        rowsperstrip=64,
    )
    count = max(8, side * side // tile**2 // 4)
    rng = np.random.default_rng(0)
    for i in range(count):
        top, left = rng.integers(0, side - tile + 1, 2)
        write_png(small / f"{i}.png", whole[top : top + tile, left : left + tile])
    return (large, side * side), (small, count * tile * tile)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--side", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tile = settings_of(given.run).tile
    if tile is None:
        parser.error(f"{given.run}: was not trained on tiles")
    with tempfile.TemporaryDirectory() as folder:
        kinds = make(Path(folder), read_image(given.image), given.side, tile)
        rounds = []
        for _ in range(given.rounds):
            found = [(*score(given.run, images, Path(folder) / "out"), pixels) for images, pixels in kinds]
            rounds.append(found)
            print(
                *(f"{1e9 * s / pixels:.0f} ns a pixel, {mib:.0f} MiB" for s, mib, pixels in found), sep="; "
            )
    large, small = zip(*rounds, strict=True)
    result = {
        "side": given.side,
        "tile": tile,
        "large_ns_per_pixel": statistics.median(1e9 * s / n for s, _, n in large),
        "small_ns_per_pixel": statistics.median(1e9 * s / n for s, _, n in small),
        "ratio": statistics.median(a[0] / a[2] / (b[0] / b[2]) for a, b in rounds),
        "large_mib": max(mib for _, mib, _ in large),
        "small_mib": max(mib for _, mib, _ in small),
        "machine": describe(),
    }
    print(json.dumps(result, indent=2))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
