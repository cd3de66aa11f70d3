"""Many small images scored by a command that is killed again and again: is anything lost, or done twice?

    python -m benchmarks.soak [--images 5000] [--kills 40] [--seed 0] [--work FOLDER] [--out FILE]

Makes images and a model, scores them once undisturbed, and then into another folder by ``glance-fast
score-dir --resume``, which SIGKILL, SIGTERM or SIGINT ends at random times until so many have hit it. Then it
compares the two folders. The undisturbed pass also says whether memory grows with the number of images. The
result is printed, and kept in ``benchmarks/results/soak.json`` or another FILE. It needs Linux, for
``/proc``.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.costs.machine import describe
from benchmarks.tables import ROOT
from glance_fast import Config, Glance
from glance_fast.jobs.table import read_rows
from glance_fast.run import save_model

RESULTS = ROOT / "benchmarks/results/soak.json"
SIDE = 48
SETTINGS = {"image_size": 64, "patch": 32, "stride": 16, "width": 8}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# After the first new row, when a signal comes at the latest.
MOST_SECONDS = 1.0
# Seconds in which a signal that can be answered must end the command.
PATIENCE = 60
# Share of the images by which everything is loaded and compiled, and what memory may differ after it.
WARM, FLAT = 0.2, 0.05


def make(work: Path, images: int, seed: int) -> tuple[Path, Path]:
    """A run folder of an untrained model, and a folder of images in twenty subfolders."""
    run, photos = work / "run", work / "photos"
    save_model(Glance(Config(**SETTINGS), seed), run)
    rng = np.random.default_rng(seed)
    for number in range(images):
        path = photos / f"{number % 20:02}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return run, photos


class Scoring:
    """``glance-fast score-dir`` in a process of its own, as a script starts it in the background."""

    def __init__(self, run: Path, photos: Path, out: Path) -> None:
        resume = ["--resume"] if out.exists() else []
        command = ["score-dir", str(run), str(photos), "--out", str(out), "--device", "cpu", "--quiet"]
        self.table = out / "scores.csv"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glance_fast.cli", *command, *resume],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def rows(self) -> int:
        """Lines of the table, without its head."""
        return self.table.read_bytes().count(b"\n") - 1 if self.table.is_file() else 0

    def resident(self) -> float:
        """MiB of memory; 0 once it has ended."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return 0.0
        return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        try:
            said = self.process.communicate(timeout=PATIENCE)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit(f"a signal did not end the command within {PATIENCE} seconds") from None
        return self.process.returncode, said


def undisturbed(run: Path, photos: Path, out: Path, images: int) -> dict[str, object]:
    """Score all at once; gives what memory was resident meanwhile."""
    scoring, samples = Scoring(run, photos, out), []
    while scoring.running():
        samples.append((scoring.rows(), scoring.resident()))
        time.sleep(0.05)
    code, said = scoring.end()
    if code or said:
        raise SystemExit(f"the undisturbed command failed ({code}): {said}")
    after = [mib for rows, mib in samples if WARM * images <= rows and mib]
    if len(after) < 2:
        return {"samples": len(after)}
    middle = len(after) // 2
    growth = statistics.median(after[middle:]) / statistics.median(after[:middle]) - 1
    spread = max(after) / min(after) - 1
    return {
        "samples": len(after),
        "resident_mib_least": round(min(after), 1),
        "resident_mib_most": round(max(after), 1),
        "growth_second_half": round(growth, 4),
        "spread": round(spread, 4),
        "flat": spread <= FLAT,
    }


def disturbed(run: Path, photos: Path, out: Path, kills: int, seed: int) -> dict[str, object]:
    """Score until it is done, with so many kills or fewer; gives how they hit, and what was done twice."""
    rng, hits, ends = random.Random(seed), Counter[str](), Counter[str]()
    done: dict[Path, int] = {}
    again, starts = 0, 0
    while True:
        scoring = Scoring(run, photos, out)
        starts += 1
        number = strike(scoring, rng) if hits.total() < kills else None
        if number is None:
            scoring.process.wait()
        else:
            hits[number.name] += 1
        code, said = scoring.end()
        expected = (0,) if number is None else (0, 130, -number)
        if code not in expected or "Traceback" in said or said.count("\n") > 1:
            raise SystemExit(f"{number.name if number else 'nothing'} ended the command with {code}: {said}")
        ends["by itself" if code == 0 else "in one line" if code == 130 else "by the system"] += 1
        again += sum(path.stat().st_mtime_ns != when for path, when in done.items())
        done = {
            path: path.stat().st_mtime_ns
            for path in (out / "maps" / f"{name}.tiff" for name in read_rows(out / "scores.csv"))
        }
        if code == 0:
            return {"starts": starts, "signals": dict(hits), "ended": dict(ends), "scored_twice": again}


def strike(scoring: Scoring, rng: random.Random) -> signal.Signals | None:
    """Send a signal, one in four while the command starts, the others while it scores; None if it ended."""
    begun, limit = scoring.rows(), time.monotonic() + rng.uniform(0.5, 4)
    starting = rng.random() < 0.25
    # Until Python has started, SIGINT is ignored.
    number = rng.choice((signal.SIGKILL, signal.SIGTERM) if starting else SIGNALS)
    while scoring.running() and (time.monotonic() < limit if starting else scoring.rows() <= begun):
        time.sleep(0.005)
    if not starting:
        time.sleep(rng.uniform(0, MOST_SECONDS))
    if not scoring.running():
        return None
    scoring.process.send_signal(number)
    return number


def compare(out: Path, whole: Path, photos: Path) -> dict[str, object]:
    """What two folders of scores share, and what they should not hold."""
    names = [path.relative_to(photos).as_posix() for path in photos.rglob("*.png")]
    lines = [(folder / "scores.csv").read_text(encoding="utf-8").splitlines()[1:] for folder in (out, whole)]
    counts = Counter(line.partition(",")[0] for line in lines[0])
    wanted = {"scores.csv", "run.json", *(f"maps/{name}.tiff" for name in names)}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    maps = [f"maps/{name}.tiff" for name in names]
    return {
        "lost": sum(counts[name] == 0 for name in names),
        "twice": sum(counts[name] > 1 for name in names),
        "rows_that_differ": sum(one != other for one, other in zip(*lines, strict=False)),
        "maps_that_differ": sum(
            (out / m).read_bytes() != (whole / m).read_bytes() for m in maps if m in found
        ),
        "files_missing": len(wanted - found),
        "files_too_many": len(found - wanted),
    }


def soak(work: Path, images: int, kills: int, seed: int) -> dict[str, object]:
    """All of it; see above."""
    run, photos = make(work, images, seed)
    whole, out = work / "whole", work / "out"
    memory = undisturbed(run, photos, whole, images)
    done = disturbed(run, photos, out, kills, seed)
    given = {"images": images, "side": SIDE, "kills": kills, "seed": seed}
    return given | done | compare(out, whole, photos) | {"memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a new folder, to be looked at afterwards")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(given.work or Path(temporary), given.images, given.kills, given.seed)
    text = json.dumps({"machine": describe(), **found}, indent=1) + "\n"
    given.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
