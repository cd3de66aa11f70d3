"""Run what is missing on the test beds, and print the table.

    python -m benchmarks.accuracy                        the table of what there is
    python -m benchmarks.accuracy transistor fabric      ours by every preset, PatchCore and PaDiM
    python -m benchmarks.accuracy cookie --only ours --seeds 3
    python -m benchmarks.accuracy cookie --set patch=32 --set stride=8 --label one-size
    python -m benchmarks.accuracy grass brick --alarms   what the baselines' thresholds find, if set as ours

Milliseconds an image are measured with ``--time``, on seed 0, with two threads: on a machine that does
nothing else. What has a row in the results is not run again without ``--again``; that, too, uses the models
trained before, which lie in ``--work``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.alarms import shares
from benchmarks.accuracy.beds import BEDS, Bed, load, prepare
from benchmarks.accuracy.measure import figures, resnet, time_one
from benchmarks.accuracy.results import ANCHOR, RESULTS, keep, keep_shares, read, select, table
from glance_fast.cli.options import parse_setting
from glance_fast.experiments.baselines import PaDiM, PatchCore

BASELINES = {"patchcore": ("PatchCore", PatchCore), "padim": ("PaDiM", PaDiM)}
# "ours" is the default, the next two are presets.
METHODS = ("ours", "pyramid", "paper", *BASELINES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.set) != bool(options.label):
        parser.error("--set and --label belong together")
    if options.label and set(options.only or ["ours"]) != {"ours"}:
        parser.error("--set is about ours alone")
    if options.label in {*METHODS, "default", *(settings for settings, _ in BASELINES.values())}:
        parser.error(f"--label: {options.label!r} is taken")
    for name in options.beds:
        if options.alarms:
            images = load(prepare(BEDS[name], options.work), BEDS[name].size)
            for settings, method in BASELINES.values():
                found = shares(partial(method, resnet()), images)
                keep_shares(options.results, name, settings, options.first_seed, found)
            continue
        for settings, run in _runs(BEDS[name], options):
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                timed = options.time and seed == 0
                found = select(read(options.results), data=name, settings=settings, seed=seed)
                missing = not found or (timed and all(row["ms"] is None for row in found))
                if missing or options.again:
                    keep(options.results, BEDS[name], settings, seed, *run(seed, timed))
    print(table(read(options.results)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("beds", nargs="*", type=_bed, metavar="BED", help=", ".join(BEDS))
    parser.add_argument("--only", action="append", choices=METHODS, help="these methods; all if not given")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="so many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of ours")
    parser.add_argument("--label", help="the name of --set's settings in the results")
    parser.add_argument("--time", action="store_true", help="milliseconds an image, too")
    parser.add_argument(
        "--alarms", action="store_true", help="only: found and false alarms of baselines that have a row"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what has a row already")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="built beds, trained models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def _bed(name: str) -> str:
    if name not in BEDS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BEDS)}")
    return name


# From a seed, and whether to take the time, to cost and scores as ``keep`` has them.
Run = Callable[[int, bool], tuple[dict[str, Any], dict[str, dict[str, Any]]]]


def _runs(bed: Bed, options: argparse.Namespace) -> list[tuple[str, Run]]:
    """What is to be run on a bed: the name of the settings, and how."""
    if options.label:
        return [(options.label, _ours(bed, options, options.label, dict(map(parse_setting, options.set))))]
    runs: list[tuple[str, Run]] = []
    for method in options.only or METHODS:
        if method in BASELINES:
            settings, model = BASELINES[method]
            runs.append((settings, _baseline(bed, options, model)))
        else:
            settings = "default" if method == "ours" else method
            runs.append((settings, _ours(bed, options, settings, None)))
    return runs


def _ours(bed: Bed, options: argparse.Namespace, label: str, settings: dict[str, Any] | None) -> Run:
    def run(seed: int, timed: bool):
        # Imported late: the baselines need none of it.
        from benchmarks.accuracy import ours

        chosen = ours.FAMILIES[label] if settings is None else settings
        folder = options.work / "runs" / f"{bed.name}-{label}-{seed}"
        return ours.measure(bed, prepare(bed, options.work), folder, chosen, seed, timed)

    return run


def _baseline(bed: Bed, options: argparse.Namespace, method: type[PatchCore] | type[PaDiM]) -> Run:
    def run(seed: int, timed: bool):
        images = load(prepare(bed, options.work), bed.size)
        started = time.monotonic()
        model = method(resnet(), seed).fit(images.normal)
        cost = {"seconds": time.monotonic() - started, "threads": torch.get_num_threads()}
        maps = model.maps(images.test)
        found: dict[str, Any] = figures(maps, maps.max((1, 2)), images.masks, images.labels)
        if timed:
            found["ms"] = time_one(model.maps, images.test[0])
        return cost, {ANCHOR: found}

    return run


if __name__ == "__main__":
    main()
