"""Everything a GPU can show, in one command: right, how fast, and how far from what the card can do.

    python -m benchmarks.gpu --out DIR

In parts, of which each goes on where another failed:

checks       small calls as users make them: odd layouts, under ``torch.compile``, on a second device
operators    every operator at the default net's shapes: first checked against float64 on fresh random
             inputs, its outputs poisoned before, then timed by device events while its inputs rotate through
             more than the cache holds. Beside it the definition's sequence of torch operations, and cuDNN's
             plain convolution; the card's own ceilings (copy, matrix product) are measured first
images       whole images, from pixels to maps, by both nets and every engine
tuning       block sizes, for ``kernels/tuned/`` (on a GPU)
compiled     the definition's sequence of operations compiled, beside the operators
predictions  which of them were wrong (on a GPU)
picture

Writes ``checks.csv`` and ``gpu.csv`` (a row a version, as it is measured), ``gpu.png``, ``tuned.json``, and
prints a table last. What does not fit into ``--budget`` is skipped, and said so.

Without a GPU it runs at tiny sizes, Triton's kernels in their interpreter; the column ``where`` says so, and
its times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

if not torch.cuda.is_available():
    # Read when a kernel is defined, so before any is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from benchmarks import report
from benchmarks.costs.counts import Work
from benchmarks.costs.machine import describe
from benchmarks.gpu import checks, expected
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.scene import COMPILED, PLAIN, SEQUENCE, WHOLE, Case, Scene, on_gpu, tiny
from benchmarks.gpu.timing import (
    FAULTS,
    TOLERANCE,
    Deadline,
    OutOfTimeError,
    error,
    measure,
    poisoned,
    sets_for,
)
from glance_fast.config import Config
from glance_fast.model import ENGINES, Glance

BUDGET = 440.0  # seconds, of the eight minutes that a first look at a device may take
TUNING, LEAST_TUNING = 120.0, 20.0  # seconds: of these, and what is worth beginning with
CACHE = 64 << 20  # where the device does not say
END_TO_END = "images, end to end"
SKIPPED = "SKIPPED: out of time"
IMAGES_SECONDS = 4.0
MARKS = {
    SEQUENCE: ("|", "black"), WHOLE: ("|", "black"), COMPILED: ("D", "#c9622d"), PLAIN: ("x", "#7a7f85"),
    "ours": ("s", "#4a9e6b"), "ours, one kernel": ("o", "#2a6fbb"),
    "ours, library and epilogue": ("s", "#63a0d4"),
}  # fmt: skip


@dataclass
class Row:
    """One version of one operator at one shape.

    Attributes
    ----------
    where : {"gpu", "interpreter", "cpu"}
        Only times of "gpu" mean anything.
    ms : float
        Median time of one run, milliseconds; ``iqr_ms`` holds the middle half.
    tflops, gbps : float
        Counted operations and bytes over the time; ``of_rate`` and ``of_bandwidth`` are their shares of
        what was measured on this device.
    ratio : float
        The baseline's time over this one.
    error : float
        ||out - exact|| / ||exact||, exact in float64.
    note : str
        Why there is no time, or why it is wrong.
    """

    operator: str
    shape: str
    dtype: str
    version: str
    where: str
    clock: str = ""
    repeats: int = 0
    ms: float = float("nan")
    iqr_ms: float = float("nan")
    tflops: float = float("nan")
    gbps: float = float("nan")
    of_rate: float = float("nan")
    of_bandwidth: float = float("nan")
    ratio: float = float("nan")
    error: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do: operations, and bytes a second.

    Attributes
    ----------
    matrix, plain : float
        A large product of bfloat16, and one of float32 without the matrix units.
    copy, cache : float
        A large copy, and one that the second cache holds.
    """

    matrix: float
    plain: float
    copy: float
    cache: float


class Table:
    """Rows, written to a CSV as they come."""

    def __init__(self, path: Path, machine: dict) -> None:
        self.path, self.machine = path, machine
        self.rows: list[Row] = []
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*machine, *(f.name for f in fields(Row))])

    def add(self, row: Row) -> None:
        """Keep and write a row."""
        self.rows.append(row)
        values = (f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*self.machine.values(), *values])


def where_runs(device: torch.device, version: str) -> str:
    """Where a version runs; of no other place than a GPU are times worth anything."""
    if device.type == "cuda":
        return "gpu"
    return "interpreter" if version == "ours, one kernel" else "cpu"


# ---- the ceilings


def ceilings(device: torch.device) -> Ceilings:
    """Measure them; on random numbers, because products of zeros are faster."""
    large = device.type == "cuda"
    side, numbers, cached = (8192, 1 << 30, 1 << 21) if large else (256, 1 << 20, 1 << 16)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def product(dtype: torch.dtype) -> float:
        sets = [(draw(side, side).to(dtype), draw(side, side).to(dtype)) for _ in range(2)]
        return 2 * side**3 / measure(lambda pair: pair[0] @ pair[1], sets, device).seconds

    def copy(count: int) -> float:
        pairs = [(draw(count), torch.empty(count, device=device))]
        pairs *= 1 if count == numbers else 50
        return 2 * 4 * count / measure(lambda pair: pair[1].copy_(pair[0]), pairs, device).seconds

    return Ceilings(product(torch.bfloat16), product(torch.float32), copy(numbers), copy(cached))


# ---- one case


def run_case(case: Case, names: list[str], device: torch.device, top: Ceilings, seed: int) -> Iterator[Row]:
    """Check and time versions of a case, the baseline first."""
    generator = torch.Generator(device).manual_seed(seed)
    count = 2
    if device.type == "cuda":
        count = sets_for(case.work, torch.cuda.get_device_properties(device).L2_cache_size or CACHE)
    inputs = case.draw(generator)
    exact = case.exact(dict(inputs))
    sets = [dict(inputs), *(case.draw(generator) for _ in range(count - 1))]
    base = float("nan")
    for name in names:
        row = Row(case.operator, case.shape, case.dtype, name, where_runs(device, name))
        try:
            check(case, name, inputs, exact, row)
            graph = name not in case.uncaptured
            timing = measure(case.versions[name], [dict(s) for s in sets], device, graph)
        except FAULTS as fault:
            row.note = (
                f"failed: {type(fault).__name__}: {str(fault).splitlines()[0][:200] if str(fault) else ''}"
            )
            yield row
            continue
        base = timing.seconds if name == case.baseline else base
        row.clock, row.repeats = timing.clock, timing.repeats
        row.ms, row.iqr_ms, row.ratio = timing.seconds * 1e3, timing.iqr * 1e3, base / timing.seconds
        rate(row, case.work, timing.seconds, top, case.matrix)
        yield row


def check(case: Case, name: str, inputs: dict, exact: object, row: Row) -> None:
    """Compare a version with float64; what only bounds it computes something else."""
    if name in (PLAIN, WHOLE):
        return
    with poisoned():
        row.error = error(case.pick(inputs, case.versions[name](dict(inputs))), exact)
    if not row.error <= TOLERANCE[case.dtype]:
        row.note = f"WRONG: error above {TOLERANCE[case.dtype]:g}"


def rate(row: Row, work: Work, seconds: float, top: Ceilings, matrix: bool) -> None:
    """Fill in what the time means."""
    row.tflops, row.gbps = work.operations / seconds / 1e12, work.bytes / seconds / 1e9
    if row.where == "gpu":
        row.of_rate = work.operations / seconds / (top.matrix if matrix else top.plain)
        row.of_bandwidth = work.bytes / seconds / top.copy


def run_cases(
    scene: Scene, deadline: Deadline, table: Table, top: Ceilings, chosen: Callable[[str], bool], seed: int
) -> None:
    """All cases, those versions whose name is chosen; out of time, the rest is named and skipped."""
    for case in all_cases(scene):
        names = [name for name in case.versions if chosen(name)]
        # Without its baseline a time has no ratio.
        names = names if case.baseline in names or not names else [case.baseline, *names]
        if not names:
            continue
        try:
            deadline.check()
            for row in run_case(case, names, scene.device, top, seed):
                table.add(row)
                say(row)
                deadline.check()
        except OutOfTimeError:
            done = {(r.operator, r.shape, r.dtype, r.version) for r in table.rows}
            for name in names:
                if (case.operator, case.shape, case.dtype, name) not in done:
                    row = Row(case.operator, case.shape, case.dtype, name, where_runs(scene.device, name))
                    row.note = SKIPPED
                    table.add(row)
                    say(row)


# ---- whole images


def run_images(scene: Scene, deadline: Deadline, table: Table) -> None:
    """Images a second of untrained models, for every net and engine, from decoded images to maps."""
    settings = {
        "image_size": scene.image,
        "patch": scene.patch,
        "stride": scene.stride,
        "width": scene.width,
        "pretrained": False,
    }
    models = {net: Glance(Config(net=net, **settings)).to(scene.device) for net in ("surround", "pyramid")}
    rng = np.random.default_rng(0)
    base = float("nan")
    for name, precision in engines(scene.device):
        model = models["surround" if name == "auto" else "pyramid"]
        patches = len(model.scales[0].grid)
        shape = f"{scene.image}x{scene.image}, {patches} patches, net {model.config.net}"
        row = Row(END_TO_END, shape, precision, name, "gpu" if scene.device.type == "cuda" else "cpu")
        try:
            deadline.check()
            row.clock, seconds, images = "wall clock", *images_seconds(model, name, precision, rng, scene)
            row.ms, row.repeats = seconds * 1e3, images
            base = seconds if name == "patchwise" and np.isnan(base) else base
            row.ratio = base / seconds
        except OutOfTimeError:
            row.note = SKIPPED
        except FAULTS as fault:
            row.note = f"failed: {type(fault).__name__}: {fault}"[:220]
        table.add(row)
        say(row)


def engines(device: torch.device) -> list[tuple[str, str]]:
    """Engines that differ, each with its precisions; "auto" is that of net "surround"."""
    distinct = sorted(ENGINES, reverse=True)
    precisions = ("bf16", "fp32") if device.type == "cuda" else ("fp32",)
    return [(name, precision) for name in distinct for precision in precisions]


def images_seconds(
    model: Glance, engine: str, precision: str, rng: np.random.Generator, scene: Scene
) -> tuple[float, int]:
    """Seconds an image, and how many images that is the mean of."""
    import time

    def score(count: int) -> float:
        images = list(rng.integers(0, 256, (count, scene.image, scene.image, 3), dtype=np.uint8))
        started = time.perf_counter()
        model.score(images, engine=engine, precision=precision)
        return time.perf_counter() - started

    few = 8 if scene.device.type == "cuda" else 1
    score(few)
    first = score(few)
    limit = IMAGES_SECONDS if scene.device.type == "cuda" else 0.0
    count = few * max(1, min(256, int(limit / first)))
    return score(count) / count, count


# ---- what is said


def say(row: Row) -> None:
    """A line as it is measured."""
    if np.isnan(row.ms):
        found = row.note
    else:
        found = f"{row.ms:9.4f} ms  {row.ratio:6.2f} x  error {row.error:.1e}  {row.note}"
    print(
        f"{row.operator:24} {row.shape:46} {row.dtype:9} {row.version:28} [{row.where}] {found}", flush=True
    )


def short(rows: list[Row]) -> str:
    """The last table: for each case our fastest version, against every other."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.operator, row.shape, row.dtype), {}).setdefault(row.version, row)
    lines = [
        f"{'operator':24} {'shape':46} {'type':9} {'ours, ms':>9} {'eager':>6} {'comp.':>6} {'plain':>6} "
        f"{'rate':>5} {'band':>5} {'error':>8}"
    ]
    for (operator, shape, dtype), found in groups.items():
        own = [r for name, r in found.items() if name.startswith("ours") and not np.isnan(r.ms)]
        if not own:
            continue
        best, base = min(own, key=lambda r: r.ms), WHOLE if WHOLE in found else SEQUENCE
        others = (found[n].ms / best.ms if n in found else np.nan for n in (base, COMPILED, PLAIN))
        ratios = " ".join(f"{r:6.2f}" for r in others).replace("nan", "  -")
        shares = " ".join("    -" if np.isnan(s) else f"{s:5.0%}" for s in (best.of_rate, best.of_bandwidth))
        lines.append(f"{operator:24} {shape:46} {dtype:9} {best.ms:9.4f} {ratios} {shares} {best.error:8.1e}")
    for row in rows:
        if row.operator == END_TO_END and not np.isnan(row.ms):
            lines.append(
                f"{row.operator:24} {row.shape:46} {row.dtype:9} {row.version}: {1e3 / row.ms:.1f} a second"
            )
    return "\n".join(lines)


def picture(rows: list[Row], machine: str, path: Path) -> None:
    """A line for each case, a mark for each version at its speed against the baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [r for r in rows if r.operator != END_TO_END and np.isfinite(r.ratio)]
    if not timed:
        return
    lines = list(dict.fromkeys((r.operator, r.shape, r.dtype) for r in timed))
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.24 * len(lines)))
    for version, (mark, colour) in MARKS.items():
        found = [r for r in timed if r.version == version]
        places = [lines.index((r.operator, r.shape, r.dtype)) for r in found]
        if found:
            axes.scatter([r.ratio for r in found], places, marker=mark, color=colour, s=30, label=version)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [" ".join(line) for line in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    report.ratio_axis(axes, min(r.ratio for r in timed), max(r.ratio for r in timed))
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=3, frameon=False, fontsize=8)
    where = "" if timed[0].where == "gpu" else " No GPU: Triton's interpreter, no claim of speed."
    figure.text(0.01, 0.004, f"{machine}.{where}", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def verdict(rows: list[Row]) -> int:
    """Print what is wrong, failed or skipped; the exit code."""
    bad = [row for row in rows if row.note]
    for row in bad:
        print(f"{row.note}  ({row.operator}, {row.shape}, {row.dtype}, {row.version})")
    skipped = sum(row.note.startswith(SKIPPED) for row in bad)
    if skipped:
        print(f"{skipped} of {len(rows)} rows were skipped, because the budget was spent.")
    return int(len(bad) > skipped)


# ---- the parts


def run_parts(parts: dict[str, Callable[[], object]]) -> list[str]:
    """Run parts in turn, and go on where one fails: the names of those that did."""
    failed = []
    for name, run in parts.items():
        try:
            run()
        except (*FAULTS, subprocess.SubprocessError) as fault:
            failed.append(name)
            traceback.print_exc()
            print(f"PART FAILED: {name}: {type(fault).__name__}; the others go on", flush=True)
    return failed


def run_tuning(out: Path, seconds: float) -> None:
    """Find block sizes in a process of its own, which may take so long: ``tuned.json``."""
    if seconds < LEAST_TUNING:
        print(f"{SKIPPED}: tuning", flush=True)
        return
    path = out / "tuned.json"
    command = [sys.executable, "-m", "benchmarks.gpu.tune", "--budget", f"{seconds:.0f}", "--out", str(path)]
    # The last candidates may still be compiling when the budget is spent.
    subprocess.run(command, check=True, timeout=seconds + LEAST_TUNING)
    name = torch.cuda.get_device_name().replace(" ", "-")
    print(f"{path}: to keep it, kernels/tuned/{name}.json", flush=True)


def print_predictions(scene: Scene, rows: list[Row], top: Ceilings) -> None:
    """What was predicted of this device's rates, beside what our kernels did."""
    # Reads results, as this module writes them.
    from benchmarks.costs.analysis import prediction_of

    properties = torch.cuda.get_device_properties(scene.device)
    rates = top.matrix, top.plain, top.copy, top.cache
    card = expected.card_of(properties.name, *rates, properties.multi_processor_count)
    predicted = {
        (case.operator, case.shape, case.dtype): 1e3 * prediction_of(case, scene, card)
        for case in all_cases(scene)
    }
    print(expected.summary(expected.compare(rows, predicted)), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run everything; 1 if anything is wrong or failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help="seconds after which the rest is skipped"
    )
    parser.add_argument(
        "--tuning", type=float, default=TUNING, help="seconds of these for tuning; 0 leaves it out"
    )
    parser.add_argument("--seed", type=int, help="of the inputs; by default another one each time")
    options = parser.parse_args(arguments)
    deadline = Deadline(options.budget)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3))
    options.out.mkdir(parents=True, exist_ok=True)
    machine = describe()
    name = report.machine_name({"glance_fast": machine})
    scene, top = on_gpu() if device.type == "cuda" else tiny(), ceilings(device)
    limits = (
        f"{top.matrix / 1e12:.3g} TFLOP/s bf16, {top.plain / 1e12:.3g} TFLOP/s fp32, "
        f"copy {top.copy / 1e9:.4g} GB/s, in cache {top.cache / 1e9:.4g} GB/s"
    )
    print(f"{name}\nseed {seed}; {limits}", flush=True)
    table = Table(options.out / "gpu.csv", machine | {"seed": seed} | asdict(top))
    checked: list[checks.Check] = []
    # What takes longest to build and matters least comes last.
    parts: dict[str, Callable[[], object]] = {
        "checks": lambda: checked.extend(
            checks.run_checks(device, deadline, options.out / "checks.csv", seed)
        ),
        "operators": lambda: run_cases(scene, deadline, table, top, lambda v: v != COMPILED, seed),
        "images": lambda: run_images(scene, deadline, table),
        "tuning": lambda: run_tuning(options.out, min(options.tuning, deadline.left)),
        "compiled": lambda: run_cases(scene, deadline, table, top, lambda v: v == COMPILED, seed),
        "predictions": lambda: print_predictions(scene, table.rows, top),
        "picture": lambda: picture(table.rows, name, options.out / "gpu.png"),
    }
    if device.type != "cuda":
        del parts["tuning"], parts["predictions"]
    failed = run_parts(parts)
    print(f"\n{name}\n{limits}\n{short(table.rows)}")
    if device.type != "cuda":
        print("No GPU: tiny sizes, Triton in its interpreter; nothing here is a claim of speed.")
    for found in checked:
        if found.fault:
            print(checks.say(found))
    for part in failed:
        print(f"PART FAILED: {part}")
    wrong = verdict(table.rows)
    return int(bool(wrong or failed or any(found.fault for found in checked)))
