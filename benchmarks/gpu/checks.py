"""Whether every operator is right on a device where a user's own calls take it, not the benchmark's.

Small problems, each against the definition in float64: as they are; from inputs that lie oddly in memory,
every second number of a row, off the alignment of wide loads; under ``torch.compile``; and on a device that
is not the current one, where there are two.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.scene import name_of, normal
from benchmarks.gpu.timing import FAULTS, TOLERANCE, Deadline, OutOfTimeError, error, poisoned
from glance_fast.kernels import (
    idw_map,
    partial_conv2d,
    score_patches,
    surround_conv2d,
    window_conv2d,
    window_sample,
)
from glance_fast.kernels.patch_score import DistortionWeights

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Problem:
    """A call of an operator.

    Attributes
    ----------
    operator : str
        Its name.
    draw : callable
        Float32 inputs from a generator, on its device.
    run : callable
        The call: the inputs, and ``backend``.
    dtypes : tuple of torch.dtype
        That the operator computes in.
    graph : bool
        Whether it is an operator of torch, which ``torch.compile`` takes into one graph.
    """

    operator: str
    draw: Callable[[torch.Generator], tuple[Tensor, ...]]
    run: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)
    graph: bool = False


@dataclass(frozen=True)
class Check:
    """What came of a call.

    Attributes
    ----------
    operator, dtype, how, device : str
        Which call, in which type, in which way, and where.
    error : float
        ||out - exact|| / ||exact||.
    fault : str
        Empty where it is right.
    """

    operator: str
    dtype: str
    how: str
    device: str
    error: float = float("nan")
    fault: str = ""


def problems() -> Iterator[Problem]:
    """One of each operator, backward too; shapes that fit no block."""
    holes = torch.tensor([[3, 4, 11, 12], [0, 0, 0, 0], [9, 0, 17, 5]])

    def draw_conv(g: torch.Generator) -> tuple[Tensor, ...]:
        return normal(g, 3, 16, 19, 21), normal(g, 24, 16, 3, 3) / 12, normal(g, 24)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return partial_conv2d(x, weight, bias, holes.to(x.device), stride=2, padding=1, backend=backend)[0]

    def gradients(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        return torch.autograd.grad(conv(*leaves, backend).float().square().sum(), leaves)

    yield Problem("partial_conv2d", draw_conv, conv, graph=True)
    yield Problem("partial_conv2d backward", draw_conv, gradients)

    def draw_ring(g: torch.Generator) -> tuple[Tensor, ...]:
        return normal(g, 2, 24, 13, 12), normal(g, 40, 24, 7 * 7 - 3 * 3) / 30, normal(g, 40)

    def ring(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return surround_conv2d(x, weight, bias, kernel=7, hole=3, relu=True, backend=backend)

    yield Problem("surround_conv2d", draw_ring, ring, graph=True)

    places = torch.tensor([[0, 0], [5, 7], [9, 10]])

    def draw_windows(g: torch.Generator) -> tuple[Tensor, ...]:
        base, window = normal(g, 2, 16, 19, 21), normal(g, 3, 16, 6, 6)
        return base, normal(g, 2, 24, 19, 21), normal(g, 24, 16, 3, 3) / 12, normal(g, 24), window

    def windows(
        base: Tensor, out: Tensor, weight: Tensor, bias: Tensor, window: Tensor, backend: str
    ) -> Tensor:
        # As the engine makes it: in float32 at least.
        wide = torch.promote_types(base.dtype, torch.float32)
        raw = F.conv2d(base.to(wide), weight.to(wide), None, 1, 1)
        here, images = places.to(base.device), torch.tensor([1, 0, 1], device=base.device)
        return window_conv2d(
            base, raw, out, weight, bias, holes.to(base.device), images, here, (8, 8), padding=1,
            window=window, window_origins=here, relu=True, backend=backend,
        )  # fmt: skip

    yield Problem("window_conv2d", draw_windows, windows)

    def draw_reading(g: torch.Generator) -> tuple[Tensor, ...]:
        return normal(g, 2, 24, 19, 21), normal(g, 3, 24, 6, 6)

    def reading(base: Tensor, window: Tensor, backend: str) -> Tensor:
        here, images = places.to(base.device), torch.tensor([1, 0, 1], device=base.device)
        cells = torch.linspace(-2, 23, 30, device=base.device).view(3, 5, 2)
        return window_sample(base, images, cells, window=window, window_origins=here, backend=backend)

    yield Problem("window_sample", draw_reading, reading)

    patches, features, hidden = 21, 128, 64

    def draw_scores(g: torch.Generator) -> tuple[Tensor, ...]:
        first = (normal(g, hidden, features) / 20 for _ in range(3))
        second = normal(g, hidden, hidden) / 8, normal(g, hidden)
        perceptron = *first, normal(g, hidden), *second, normal(g, hidden) / 8, normal(g, 1)[0]
        pair = normal(g, 2, patches, features), normal(g, 2, patches, features)
        return *pair, normal(g, patches, features, features) * features**-0.5, *perceptron

    def scores(local: Tensor, global_: Tensor, whitening: Tensor, *perceptron: Tensor, backend: str) -> Any:
        weights = DistortionWeights(*perceptron)
        return tuple(score_patches(local, global_, weights, whitening=whitening, backend=backend))

    yield Problem("score_patches", draw_scores, scores, (torch.float32,))

    rows, cols = np.arange(5) * 8 + 15.5, np.arange(7) * 8 + 15.5

    def draw_map(g: torch.Generator) -> tuple[Tensor, ...]:
        return (normal(g, 2, 5, 7),)

    def interpolated(values: Tensor, backend: str) -> Tensor:
        return idw_map(values, rows, cols, 63, 80, neighbours=9, backend=backend)

    yield Problem("idw_map", draw_map, interpolated, (torch.float32,))


def odd(x: Tensor) -> Tensor:
    """The same numbers, every second one of a buffer that begins off any alignment."""
    buffer = torch.full((2 * x.numel() + 1,), torch.nan, dtype=x.dtype, device=x.device)
    strides = tuple(2 * s for s in torch.empty(x.shape, device="meta").stride())
    return buffer.as_strided(x.shape, strides, 1).copy_(x)


def ways(
    problem: Problem, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[Callable[..., Any], torch.device]]:
    """Calls of a problem by name, and where its inputs are to lie."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"

    def compiled(*inputs: Tensor, backend_: str) -> Any:
        torch.compiler.reset()
        call = torch.compile(
            lambda *given: problem.run(*given, backend=backend_), backend=backend, fullgraph=problem.graph
        )
        return call(*inputs)

    def oddly(*inputs: Tensor, backend_: str) -> Any:
        return problem.run(*map(odd, inputs), backend=backend_)

    found = {
        "as it is": (lambda *i, backend_: problem.run(*i, backend=backend_), device),
        "odd layout": (oddly, device),
    }
    # In one type, because it takes seconds. On a CPU what is no operator of torch is Numba's, which no
    # compiler of torch looks into.
    if dtype == problem.dtypes[0] and (problem.graph or device.type == "cuda"):
        found["compiled"] = compiled, device
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        found["not on the current device"] = (found["as it is"][0], torch.device("cuda", 1))
    return found


def check(problem: Problem, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Iterator[Check]:
    """A problem in one type, in every way.

    Parameters
    ----------
    problem : Problem
    dtype : torch.dtype
    device : torch.device
        The current one.
    seed : int
        Of the inputs.
    """
    drawn = tuple(t.to(dtype) for t in problem.draw(torch.Generator().manual_seed(seed)))
    exact = problem.run(*(t.double() for t in drawn), backend="reference")
    for how, (call, place) in ways(problem, dtype, device).items():
        at = problem.operator, name_of(dtype), how, str(place)
        try:
            inputs = tuple(t.to(place) for t in drawn)
            # The compiler would trace the poison.
            with nullcontext() if how == "compiled" else poisoned():
                found = call(*inputs, backend_="auto")
            parts = found if isinstance(found, tuple) else (found,)
            wrong = error(tuple(t.cpu() for t in parts), exact if isinstance(exact, tuple) else (exact,))
        except FAULTS as fault:
            yield Check(*at, fault=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0][:200]}")
            continue
        limit = TOLERANCE[name_of(dtype)]
        yield Check(*at, wrong, "" if wrong <= limit else f"WRONG: error above {limit:g}")


def run_checks(device: torch.device, deadline: Deadline, path: Path, seed: int = 0) -> list[Check]:
    """All problems in all types and ways, written to a CSV as they come.

    Parameters
    ----------
    device : torch.device
        The current one; a CPU without a GPU.
    deadline : Deadline
        What it leaves undone is said.
    path : Path
        The CSV.
    seed : int
        Of the inputs.
    """
    done: list[Check] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(f.name for f in fields(Check))
        try:
            for problem in problems():
                for dtype in problem.dtypes:
                    deadline.check()
                    for found in check(problem, dtype, device, seed):
                        done.append(found)
                        table.writerow(asdict(found).values())
                        file.flush()
                        if found.fault:
                            print(say(found), flush=True)
        except OutOfTimeError:
            print("SKIPPED: out of time: the rest of the checks", flush=True)
    wrong = sum(bool(c.fault) for c in done)
    print(f"checks: {len(done) - wrong} of {len(done)} calls are right", flush=True)
    return done


def say(found: Check) -> str:
    """A line for a check that failed."""
    return f"{found.operator}, {found.dtype}, {found.how}, on {found.device}: {found.fault}"
