"""Write the tables of ``benchmarks/costs/ANALYSIS.md``: operations, bytes, floors, predictions, measurements.

    python -m benchmarks.costs.machine     # on the CPU in question
    python -m benchmarks.costs.analysis

Everything is computed from the geometry of the nets (``benchmarks.costs.counts``), the cards' rates below and
``benchmarks/results``. What a GPU was measured to take stands beside its prediction once
``python -m benchmarks.gpu`` has left a ``gpu.csv`` there.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.costs import counts
from benchmarks.costs.counts import Work, total
from benchmarks.costs.predict import (
    BATCH,
    FLOAT,
    H100,
    H200,
    HALF,
    LAUNCH,
    SIZE,
    Card,
    layer_windows,
    parts,
    passes,
    plain_seconds,
    predict_conv,
    predict_image,
    predict_routes,
    predict_window,
    score_seconds,
)
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.convolutions import conv_name
from benchmarks.gpu.convolutions import layers as conv_layers
from benchmarks.gpu.scene import Case, Scene, on_gpu
from benchmarks.tables import ROOT
from benchmarks.tables import replace as replace_marked
from glance_fast.geometry import PatchGrid

RESULTS = ROOT / "benchmarks/results"
QUIET = 0.05  # share of the processors that others may have
ABOVE = 1.05  # of a floor's speed: more is no noise
HIDDEN = 128  # units of the distortion head
SCALES = ((32, 8), (64, 16))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def micro(seconds: float) -> str:
    """Microseconds with three digits."""
    return f"{seconds * 1e6:.3g}" if seconds < 1e-3 else f"{seconds * 1e6:.0f}"


def rates(machine: dict) -> str:
    """Table ``rates``."""
    rows = [
        [c.name, f"{c.matrix / 1e12:.0f}, {c.matrix_seen / 1e12:.0f}", f"{c.plain / 1e12:.0f}",
         f"{c.memory / 1e12:.3g}, {c.memory_seen / 1e12:.2g}", f"{c.matrix_seen / c.memory_seen:.0f}"]
        for c in (H200, H100)
    ]  # fmt: skip
    own, bf16, copy = machine["machine"], machine["bf16"], machine["copy"]
    rows.append(
        [f"{own['processor']}, {own['threads']} threads", f"{bf16 / 1e12:.3f}",
         f"{machine['fp32'] / 1e12:.3f}", f"{copy / 1e12:.3f}", f"{bf16 / copy:.0f}"]
    )  # fmt: skip
    head = ["device", "bf16, TFLOP/s", "fp32, TFLOP/s", "memory, TB/s", "bf16 operations a byte at the ridge"]
    return f"{markdown(head, rows)}\n\n{quiet(machine)}"


def totals() -> str:
    """Table ``totals``: one image at each scale."""
    rows = []
    for patch, stride in SCALES:
        count = len(PatchGrid(SIZE, SIZE, patch, stride))
        found, all_passes = parts(patch, stride), passes(patch, stride)
        every = total(list(found.values()))
        for name, work in [
            (f"{count} passes, patch by patch", all_passes),
            *found.items(),
            ("dense, everything", every),
        ]:
            floor = work.floor(H200.matrix_seen, H200.memory_seen)
            rows.append(
                [f"{patch} at {stride}", name, f"{work.operations / 1e9:.2f}", f"{work.bytes / 1e6:.1f}",
                 f"{work.intensity:.0f}", micro(floor), work.bound(H200.matrix_seen, H200.memory_seen)]
            )  # fmt: skip
        less = (
            all_passes.operations / (found["windows"] + found["Global-Net on the unmasked image"]).operations
        )
        rows[-1][1] += f" ({less:.1f} times fewer operations in Global-Net)"
    head = ["patch", "work of one image", "GFLOP", "MB", "FLOP/B", "H200 floor, µs", "bound by"]
    return markdown(head, rows)


def layers(patch: int, stride: int) -> str:
    """Table ``layers``: the dense engine, layer by layer, BATCH images at a time."""
    rows = []
    for w in layer_windows(patch, stride):
        work, found = counts.window_forward(w, BATCH, HALF), predict_window(w, BATCH, H200)
        floor = work.floor(H200.matrix_seen, H200.memory_seen)
        rows.append(
            [w.conv.name, f"{w.conv.out[0]}x{w.conv.out[1]}", f"{w.largest[0]}x{w.largest[1]}",
             f"{w.of_map:.0%}", f"{work.operations / BATCH / 1e9:.2f}",
             f"{2 * counts.rectangles(w) * w.conv.weights * BATCH / work.operations:.2f}",
             f"{work.bytes / BATCH / 1e6:.1f}", f"{work.intensity:.0f}", micro(floor / BATCH),
             micro(found.seconds / BATCH), found.bound]
        )  # fmt: skip
    head = ["layer", "map", "window", "of the map", "GFLOP", "computed / needed", "MB", "FLOP/B", "floor, µs",
            "predicted, µs", "predicted bound"]  # fmt: skip
    return markdown(head, rows)


def prediction_of(case: Case, scene: Scene, card: Card) -> float:
    """Predicted seconds of our single-kernel version of a case."""
    windows = {w.conv.name: w for w in layer_windows(scene.patch, scene.stride)}
    element = getattr(torch, case.dtype).itemsize
    if case.operator == "window_conv2d":
        return predict_window(windows[case.shape.split()[0]], scene.windowed, card, element).seconds
    if case.operator.startswith("partial_conv2d"):
        conv = next(
            w.conv
            for w in windows.values()
            if conv_name(w.conv, scene.maps) == case.shape.removesuffix(", masks")
        )
        once = predict_conv(conv, scene.maps, card, element)
        # tf32 goes at half the rate.
        once = replace(once, matrix=once.matrix * (2 if element == FLOAT else 1))
        # dx and dw are products of as many operations, dw with a second launch that sums its shares.
        return once.seconds if "backward" not in case.operator else 2 * once.seconds + LAUNCH
    if case.operator == "score_patches":
        return score_seconds(scene.images, len(scene.grid), HIDDEN, card)
    return plain_seconds(case.work, card)


def kernels() -> str:
    """Table ``kernels``: what ``benchmarks.gpu.suite`` times, with its prediction."""
    scene = replace(on_gpu(), device=torch.device("cpu"), compiled=False)
    rows, seen = [], measured()
    for case in all_cases(scene):
        floors = [
            case.work.floor(c.matrix_seen if case.matrix else c.plain, c.memory_seen) for c in (H200, H100)
        ]
        bound = case.work.bound(H200.matrix_seen if case.matrix else H200.plain, H200.memory_seen)
        rows.append(
            [case.operator, case.shape, case.dtype, f"{case.work.operations / 1e9:.2f}",
             f"{case.work.bytes / 1e6:.1f}", bound, *map(micro, floors),
             micro(prediction_of(case, scene, H200)), seen.get((case.operator, case.shape, case.dtype), "-")]
        )  # fmt: skip
    head = ["operator", "shape", "type", "GFLOP", "MB", "bound by", "H200 floor, µs", "H100 floor, µs",
            "H200 predicted, µs", "measured, µs"]  # fmt: skip
    return markdown(head, rows)


def routes() -> str:
    """Table ``routes``: a layer over whole maps in bfloat16, by every way."""
    scene, rows = on_gpu(), []
    for conv, _ in conv_layers(scene):
        found = predict_routes(conv, scene.maps, H200)
        best = min(found.one_kernel, found.library)
        rows.append(
            [conv_name(conv, scene.maps), micro(found.eager), micro(found.compiled), micro(found.one_kernel),
             micro(found.library), f"{found.eager / best:.1f}", f"{found.compiled / best:.2f}"]
        )  # fmt: skip
    head = ["layer", "definition, eager", "compiled", "ours, one kernel", "ours, library and epilogue",
            "eager / our faster", "compiled / our faster"]  # fmt: skip
    return markdown(head, rows)


def measured(folder: Path = RESULTS) -> dict[tuple[str, str, str], str]:
    """Our fastest version of each case on a GPU, where one was measured."""
    best: dict[tuple[str, str, str], float] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["where"] == "gpu" and row["version"].startswith("ours") and row["ms"] != "nan":
                    key = row["operator"], row["shape"], row["dtype"]
                    best[key] = min(best.get(key, float("inf")), float(row["ms"]) * 1e-3)
    return {key: micro(seconds) for key, seconds in best.items()}


def images(card: Card) -> str:
    """Table ``images``: predicted time of an image, by part."""
    found = {scale: predict_image(*scale, card) for scale in SCALES}
    rows = [[name, *(micro(found[scale][name]) for scale in SCALES)] for name in found[SCALES[0]]]
    sums = [sum(found[scale].values()) for scale in SCALES]
    rows.append(["together", *map(micro, sums)])
    rows.append(["images a second", *(f"{1 / s:.0f}" for s in sums)])
    for label, rate in (("needed", 1), ("of the measured matrix rate", card.matrix_seen)):
        shares = []
        for scale, seconds in zip(SCALES, sums, strict=True):
            operations = total(list(parts(*scale).values())).operations
            shares.append(
                f"{operations / seconds / rate:.0%}" if rate > 1 else f"{operations / 1e9:.1f} GFLOP"
            )
        rows.append([label, *shares])
    return markdown(["µs an image", *(f"patch {p} at {s}" for p, s in SCALES)], rows)


def cpu(machine: dict) -> str:
    """Table ``cpu``: measured against this CPU's floor."""
    rows = []
    for row in machine["times"]:
        rate = machine["bf16" if row["dtype"] == "bfloat16" else "fp32"]
        work = Work(row["operations"], row["bytes"])
        floor = work.floor(rate, machine["copy"])
        rows.append(
            [row["operator"], row["shape"], row["dtype"], f"{work.operations / 1e9:.2f}",
             f"{floor * 1e3:.2f}", f"{row['seconds'] * 1e3:.2f}", f"{share(machine, row):.0%}",
             work.bound(rate, machine["copy"])]
        )  # fmt: skip
    head = [
        "operator",
        "shape",
        "type",
        "GFLOP",
        "floor, ms",
        "measured, ms",
        "of the floor's speed",
        "bound by",
    ]
    return f"{markdown(head, rows)}\n\n{quiet(machine)}"


def stages(machine: dict, bench: dict) -> str:
    """Where the time of the dense engine goes: stages of ``glance-fast bench``, an image."""
    found, about = bench["stages"], bench["about"]
    scales = zip(about["patch"], about["stride"], strict=True)
    operations = sum(total(list(parts(*scale).values())).operations for scale in scales)
    whole = {precision: sum(seconds.values()) for precision, seconds in found.items()}
    head = ["stage", *(text for precision in found for text in (f"{precision}, ms", "share"))]
    rows = []
    for name in sorted(found["fp32"], key=lambda stage: -found["fp32"][stage]):
        each = [(found[precision][name], whole[precision]) for precision in found]
        rows.append([name, *(text for t, all_ in each for text in (f"{t * 1e3:.1f}", f"{t / all_:.0%}"))])
    ends = [(whole[p], operations / machine[p] / whole[p]) for p in found]
    rows.append(["all", *(text for t, floor in ends for text in (f"{t * 1e3:.1f}", f"floor: {floor:.0%}"))])
    return markdown(head, rows)


def quiet(machine: dict) -> str:
    """Whether the machine had nothing else to do, and its ceilings are ceilings."""
    said = f"Others had {machine['others']:.0%} of the processors' time during the run."
    above = sum(share(machine, row) > ABOVE for row in machine["times"])
    if machine["others"] > QUIET:
        said += " **These times and rates are not to be relied on.**"
    elif above:
        said += (
            f" **{above} operators ran faster than the floor allows: the machine's speed changed meanwhile.**"
        )
    return said


def share(machine: dict, row: dict) -> float:
    """A row's floor over its time."""
    rate = machine["bf16" if row["dtype"] == "bfloat16" else "fp32"]
    return Work(row["operations"], row["bytes"]).floor(rate, machine["copy"]) / row["seconds"]


def fill(text: str, machine: dict) -> str:
    """ANALYSIS.md with its tables computed anew."""
    tables = {
        "rates": rates(machine),
        "totals": totals(),
        "layers": layers(*SCALES[0]),
        "kernels": kernels(),
        "routes": routes(),
        "images": images(H200),
        "cpu": cpu(machine),
        "stages": stages(machine, json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))),
    }
    for name, content in tables.items():
        if f"<!-- {name} -->" not in text:
            raise ValueError(f"no mark <!-- {name} --> for the table of that name")
        text = replace_marked(text, name, content)
    return text


def main() -> None:
    """Rewrite the tables."""
    path = ROOT / "benchmarks/costs/ANALYSIS.md"
    machine = json.loads((RESULTS / "machine.json").read_text(encoding="utf-8"))
    path.write_text(fill(path.read_text(encoding="utf-8"), machine), encoding="utf-8")


if __name__ == "__main__":
    main()
