"""Find the fastest configuration of every Triton kernel on the GPU at hand, and which route ``auto`` takes.

    python -m benchmarks.gpu.tune            # writes kernels/tuned/<Device-Name>.json
    python -m benchmarks.gpu.tune --dry      # without a GPU: what would be timed

The operators run at the default net's shapes (``benchmarks.gpu.cases``). Each kernel asks for its
configuration: what it asks for names the entry, and what it would take by itself is where the search
starts. Candidates are compiled ahead of time, side by side; those that spill, or need more shared memory
than a block may have, are not timed. The others are, nearest first, as many as the budget allows. The best
one is checked against float64, and kept if it is faster by more than noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.errors import TritonError

from benchmarks.gpu import ahead_of_time
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.scene import OURS, Case, Scene, on_gpu
from benchmarks.gpu.timing import TOLERANCE, Deadline, error, measure, sets_for
from glance_fast.kernels import dispatch

BUDGET = 480.0  # seconds
# Values to try, whatever the kernel would take; other blocks are halved and doubled.
MENU = {"BLOCK_M": (64, 128, 256), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
LEAST = 16  # of a block, for tensor cores
MOST_TILE = 256 * 128  # numbers of a tile's sum: more spill
FASTER = 0.97  # of the time before, or it is noise
# The entry of who is faster at it, by operator, and a kernel that asks for the shape.
ROUTES = {
    "partial_conv2d": ("partial_conv_fwd_route", "partial_conv_fwd_kernel"),
    "partial_conv2d backward": ("partial_conv_bwd_route", "partial_conv_bwd_dx_kernel"),
}
UNTUNED = ("holes_after_kernel",)  # a few integers

PIECE = 8  # candidates that a process compiles at a time

Configuration = dict[str, int]
Question = tuple[str, str, str]  # key of a case, version, kernel


@dataclass
class Chooser:
    """Stands in for ``dispatch.configuration``: notes what is asked for, and answers as told.

    Attributes
    ----------
    forced : dict
        Answers by kernel.
    asked : dict
        What each (kernel, shape) would have taken by itself.
    """

    forced: dict[str, Configuration] = field(default_factory=dict)
    asked: dict[tuple[str, str], Configuration] = field(default_factory=dict)

    def __call__(
        self, tensor: torch.Tensor, kernel: str, shape: str, otherwise: Configuration
    ) -> dict[str, Any]:
        self.asked[kernel, shape] = dict(otherwise)
        return {"enable_fp_fusion": True, **self.forced.get(kernel, otherwise)}


@contextmanager
def choosing(anywhere: bool = False) -> Iterator[Chooser]:
    """Every launcher asks the chooser; ``anywhere``: launchers also take tensors of a CPU."""
    chooser, before = Chooser(), []
    stand_ins = {"configuration": (dispatch.configuration, chooser)}
    if anywhere:
        stand_ins["choose_backend"] = (dispatch.choose_backend, lambda backend, device: backend)
    import_launchers()
    for module in [m for name, m in sys.modules.items() if name.startswith("glance_fast.kernels.")]:
        for name, (old, new) in stand_ins.items():
            if getattr(module, name, None) is old and module is not dispatch:
                before.append((module, name, old))
                setattr(module, name, new)
    try:
        yield chooser
    finally:
        for module, name, old in before:
            setattr(module, name, old)


def import_launchers() -> None:
    """Import every operator's ``gpu.py``."""
    for path in sorted(Path(dispatch.__file__).parent.glob("*/gpu.py")):
        __import__(f"glance_fast.kernels.{path.parent.name}.gpu")


def candidates(otherwise: Configuration) -> list[Configuration]:
    """Configurations to try, those with the fewest differences from ``otherwise`` first."""
    choices = {name: values(name, value) for name, value in otherwise.items()}
    found = [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]
    found = [c for c in found if c.get("BLOCK_M", 1) * c.get("BLOCK_N", 1) <= MOST_TILE]
    return sorted(found, key=partial(differences, otherwise))


def differences(one: Configuration, other: Configuration) -> int:
    """In how many settings two configurations differ."""
    return sum(one[name] != other[name] for name in one)


def values(name: str, value: int) -> list[int]:
    """What a setting may be: its own value and others."""
    if name in MENU:
        others = MENU[name]
    elif name == "STAGES":
        others = MENU["num_stages"]
    elif value < LEAST:
        others = ()
    else:
        others = tuple(v for v in (value // 2, 2 * value) if LEAST <= v <= 256)
    return [value, *(v for v in others if v != value)]


# ---- compiled ahead of time


@dataclass(frozen=True)
class Verdict:
    """What the compiler makes of a candidate.

    Attributes
    ----------
    fits : bool
        Whether it is worth timing.
    why : str
        Resources, or why not.
    """

    candidate: tuple[tuple[str, int], ...]
    fits: bool
    why: str


def target_of(capability: tuple[int, int]) -> str:
    """What to compile for on a device of that compute capability: itself, or the nearest below."""
    name = "sm_{}{}".format(*capability)
    if name in ahead_of_time.THREADS:
        return name
    return "sm_90" if capability >= (9, 0) else "sm_80"


def compile_scene() -> Scene:
    """The default net on a CPU, whose launches are compiled and not run; types alone count."""
    return replace(on_gpu(), device=torch.device("cpu"), maps=8, compiled=False)


def key_of(case: Case) -> str:
    """A case whatever its batch."""
    shape = case.shape.split(" batch")[0]
    return f"{case.operator} {shape.split(',')[0]} {'+' if 'residual' in case.shape else ''} {case.dtype}"


def judge(key: str, version: str, kernel: str, tried: list[Configuration], target: str) -> list[Verdict]:
    """Compile candidates of a kernel that a version launches, for the case of that key."""
    case = next(c for c in all_cases(compile_scene()) if key_of(c) == key)
    inputs = case.draw(torch.Generator().manual_seed(0))
    run = partial(case.versions[version], inputs)
    return [judge_one(run, kernel, candidate, target) for candidate in tried]


def judge_one(run: Callable[[], Any], kernel: str, candidate: Configuration, target: str) -> Verdict:
    """Compile one candidate."""
    name = tuple(candidate.items())
    try:
        with ahead_of_time.compiling(target) as launches, choosing(anywhere=True) as chooser:
            chooser.forced[kernel] = candidate
            run()
    except (TritonError, RuntimeError, ValueError) as fault:
        return Verdict(
            name, False, f"does not compile: {(str(fault) or type(fault).__name__).splitlines()[0]}"
        )
    found = [launch for launch in launches if launch[0] == kernel]
    if not found:
        return Verdict(name, False, "is not launched")
    made = ahead_of_time.describe("", target, *found[0])
    what = f"{made.registers} registers, {made.shared / 1024:.0f} KiB, occupancy {made.occupancy:.0%}"
    if made.spills:
        return Verdict(name, False, f"spills {made.spills} bytes; {what}")
    if made.shared > ahead_of_time.SHARED[target][0]:
        return Verdict(name, False, f"too much shared memory; {what}")
    return Verdict(name, True, what)


def tunable(scene: Scene) -> Iterator[Case]:
    """Cases whose times count; arbitrary masks share the entries of holes."""
    return (case for case in all_cases(scene) if "masks" not in case.shape)


def asked_by(case: Case, version: str, device: torch.device) -> dict[tuple[str, str], Configuration]:
    """What a version asks for whenever it runs, but for the first time; by kernel and shape."""
    inputs = case.draw(torch.Generator(device).manual_seed(0))
    with choosing(anywhere=device.type == "cpu") as chooser:
        case.versions[version](inputs)
        chooser.asked.clear()
        case.versions[version](inputs)
    return {asked: otherwise for asked, otherwise in chooser.asked.items() if asked[0] not in UNTUNED}


def questions(key_part: str, target: str) -> dict[Question, Configuration]:
    """What is asked for in the compile scene, and what it would be by itself."""
    found: dict[Question, Configuration] = {}
    seen: set[tuple[str, str]] = set()
    for case in tunable(compile_scene()):
        if key_part in key_of(case):
            for version in case.ours:
                with ahead_of_time.compiling(target):
                    asked = asked_by(case, version, torch.device("cpu"))
                # Layers that share a name of a shape share an entry.
                found |= {(key_of(case), version, k): o for (k, s), o in asked.items() if (k, s) not in seen}
                seen |= set(asked)
    return found


def judge_all(key_part: str, target: str, limit: int, workers: int) -> dict[Question, list[Verdict]]:
    """Verdicts on the candidates of every question, nearest first."""
    # Short pieces, so that no process is left with a long one at the end.
    pieces = [
        (question, tried[i : i + PIECE])
        for question, otherwise in questions(key_part, target).items()
        for tried in [candidates(otherwise)[:limit]]
        for i in range(0, len(tried), PIECE)
    ]
    found: dict[Question, list[Verdict]] = defaultdict(list)
    if workers == 1:
        for question, tried in pieces:
            found[question] += judge(*question, tried, target)
        return found
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [(question, pool.submit(judge, *question, tried, target)) for question, tried in pieces]
        for question, job in jobs:
            found[question] += job.result()
    return found


def list_verdicts(found: dict[Question, list[Verdict]]) -> None:
    """Print them."""
    for (key, version, kernel), verdicts in found.items():
        print(
            f"{key}: {version}, {kernel}, {sum(v.fits for v in verdicts)} of {len(verdicts)} are worth timing"
        )
        for verdict in verdicts:
            settings = ", ".join(f"{name} {value}" for name, value in verdict.candidate)
            print(f"  {'time' if verdict.fits else 'drop'}  {settings}: {verdict.why}")


# ---- timed


@dataclass
class Place:
    """A case with inputs on a device, and the version of it that launches a kernel."""

    case: Case
    version: str
    device: torch.device
    sets: list[dict]

    def seconds(self) -> float:
        """Time of a run."""
        run, graph = self.case.versions[self.version], self.version not in self.case.uncaptured
        return measure(run, [dict(s) for s in self.sets], self.device, graph).seconds

    def right(self) -> bool:
        """Whether the version agrees with float64 on the first inputs."""
        inputs = dict(self.sets[0])
        found = self.case.pick(inputs, self.case.versions[self.version](dict(inputs)))
        return error(found, self.case.exact(dict(inputs))) <= TOLERANCE[self.case.dtype]


def place_of(case: Case, version: str, device: torch.device) -> Place:
    """Draw its inputs."""
    generator = torch.Generator(device).manual_seed(0)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return Place(case, version, device, [case.draw(generator) for _ in range(sets_for(case.work, cache))])


def tune(scene: Scene, verdicts: dict[Question, list[Verdict]], deadline: Deadline) -> dict:
    """Time what fits, and what each entry of the table is then."""
    table: dict[str, dict[str, Configuration]] = defaultdict(dict)
    users: dict[tuple[str, str], list[tuple[Case, str]]] = defaultdict(list)
    starts: dict[tuple[str, str], Configuration] = {}
    for case in tunable(scene):
        for version in case.ours:
            for asked, otherwise in asked_by(case, version, scene.device).items():
                users[asked].append((case, version))
                starts[asked] = otherwise
    with choosing() as chooser:
        for index, ((kernel, shape), found) in enumerate(users.items()):
            share = deadline.left / (len(users) - index + 1)
            if share <= 0:
                print(f"SKIPPED: out of time: {kernel} {shape}", flush=True)
                continue
            judged = ((key_of(case), version, kernel) for case, version in found)
            question = next((q for q in judged if q in verdicts), None)
            if question is None:
                continue
            fitting = [dict(v.candidate) for v in verdicts[question] if v.fits]
            tried = sorted(fitting, key=partial(differences, starts[kernel, shape]))
            places = [place_of(*user, scene.device) for user in found]
            best = fastest(chooser, kernel, starts[kernel, shape], tried, places, Deadline(share))
            if best is not None:
                table[kernel][shape] = best
    return table


def fastest(
    chooser: Chooser,
    kernel: str,
    start: Configuration,
    tried: list[Configuration],
    places: list[Place],
    deadline: Deadline,
) -> Configuration | None:
    """The fastest candidate over all places, if it is right and beats the start by more than noise."""

    def seconds(candidate: Configuration) -> float:
        chooser.forced[kernel] = candidate
        return sum(place.seconds() for place in places)

    before = seconds(start)
    times: list[tuple[float, Configuration]] = []
    for candidate in tried:
        if deadline.left <= 0:
            break
        if candidate != start:
            try:
                times.append((seconds(candidate), candidate))
            except (TritonError, RuntimeError, ValueError) as fault:
                print(f"  {candidate} failed: {str(fault).splitlines()[0] if str(fault) else fault!r}")
    times.sort(key=lambda pair: pair[0])
    best = None
    for after, candidate in times:
        if after > FASTER * before:
            break
        chooser.forced[kernel] = candidate
        if all(place.right() for place in places):
            best = candidate
            break
        print(f"  {candidate} is WRONG", flush=True)
    chooser.forced.pop(kernel, None)
    after = times[0][0] if best else before
    spent = f"{before * 1e6:.1f} to {after * 1e6:.1f} µs"
    print(f"{kernel}: {len(times) + 1} of {len(tried)} timed, {spent}, {best}", flush=True)
    return best


def choose_routes(scene: Scene, table: dict, deadline: Deadline) -> None:
    """Time both routes of partial convolution with the table's configurations, and note the faster one."""
    with choosing() as chooser:
        for case in tunable(scene):
            routes = {OURS[name]: name for name in case.ours}
            if case.operator not in ROUTES or {"triton", "cudnn"} - set(routes) or deadline.left <= 0:
                continue
            entry, kernel = ROUTES[case.operator]
            chooser.asked.clear()
            place = place_of(case, routes["triton"], scene.device)
            place.seconds()
            shape = next(s for k, s in chooser.asked if k == kernel)
            if shape in table.get(entry, {}):
                continue
            chooser.forced = {name: entries[shape] for name, entries in table.items() if shape in entries}
            one, library = place.seconds(), replace(place, version=routes["cudnn"]).seconds()
            table.setdefault(entry, {})[shape] = {"triton": int(one <= library)}
            print(
                f"{case.operator} {shape}: one kernel {one * 1e6:.1f} µs, library {library * 1e6:.1f} µs",
                flush=True,
            )


def write(path: Path, table: dict) -> None:
    """Put entries into the device's file, over those that were made for the same kernels and Triton."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if before.get("made_for") != dispatch.made_for():
        before = {"made_for": dispatch.made_for(), "configurations": {}}
    for kernel, entries in table.items():
        before["configurations"].setdefault(kernel, {}).update(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(before, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Compile, and on a GPU time and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="compile candidates, time nothing, write nothing")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--limit", type=int, default=72, help="most candidates of a kernel and a shape")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16), help="compilers")
    parser.add_argument("--target", choices=tuple(ahead_of_time.THREADS), help="with --dry; default sm_90")
    parser.add_argument("--out", type=Path, help="default: kernels/tuned/<Device-Name>.json")
    options = parser.parse_args(arguments)
    # The interpreter compiles nothing. Read when a kernel is defined: no launcher is imported yet.
    os.environ.pop("TRITON_INTERPRET", None)
    if not options.dry and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing can be timed. --dry compiles the candidates and stops.")
    deadline, started = Deadline(options.budget), time.monotonic()
    target = options.target or "sm_90"
    if not options.dry:
        target = target_of(torch.cuda.get_device_capability())
    verdicts = judge_all(options.case, target, options.limit, options.workers)
    if options.dry:
        list_verdicts(verdicts)
        return
    print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
    scene = replace(on_gpu(), compiled=False)
    table = tune(scene, verdicts, deadline)
    choose_routes(scene, table, deadline)
    name = torch.cuda.get_device_name().replace(" ", "-")
    path = options.out or dispatch.TUNED / f"{name}.json"
    write(path, table)
    print(f"{path}: {sum(map(len, table.values()))} entries, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
