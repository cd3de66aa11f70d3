"""What this machine is, the rates that its floors are computed from, and what each kernel takes on it.

    python -m benchmarks.costs.machine

Measures on a CPU the rate of large convolutions (oneDNN, channels-last) in float32 and bfloat16, of a copy
that no cache holds, and every operator at the default net's shapes. All are the best of several runs, because
other work can only make them slower; the rates are measured again and again between the operators, for a
shared machine's speed changes. Written to ``benchmarks/results/machine.json``, with the share of the
processors' time that others took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.costs.counts import Conv, Work, forward, global_layers, local_layers, total
from benchmarks.tables import ROOT

RESULTS = ROOT / "benchmarks/results/machine.json"
PACKAGES = ("torch", "triton", "numba", "numpy", "scipy")
# Wide, and larger than the caches, or as the nets have them: the library's best is one of these.
LARGE = {(256, 64): 8, (512, 16): 16, (64, 32): 64}  # channels and side of the map: batch
COPY = 1 << 28  # numbers of 4 bytes: 1 GiB
REPEATS = 9
AGAIN = 8  # operators between two measurements of the rates


def describe() -> dict[str, str | int]:
    """Device, processor, threads, and versions of what does the work."""
    found: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def processor() -> str:
    """The processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@torch.inference_mode()
def convolution_rate(dtype: torch.dtype, shapes: dict[tuple[int, int], int] = LARGE) -> float:
    """Operations a second of the fastest of a few 3x3 convolutions on the CPU, channels-last."""
    rates = []
    for (channels, side), batch in shapes.items():
        conv = Conv("", channels, channels, 3, 1, 1, (side, side))
        last = {"dtype": dtype, "memory_format": torch.channels_last}
        x = torch.randn(batch, channels, side, side).to(**last)
        weight = torch.randn(channels, channels, 3, 3).to(**last)
        seconds = best(lambda x=x, weight=weight: F.conv2d(x, weight, None, 1, 1), REPEATS)
        rates.append(forward(conv, batch, x.element_size()).operations / seconds)
    return max(rates)


@torch.inference_mode()
def copy_bandwidth(numbers: int = COPY) -> float:
    """Bytes a second of a copy, read and written."""
    source, target = torch.rand(numbers), torch.empty(numbers)
    return 2 * source.nbytes / best(lambda: target.copy_(source), REPEATS)


@torch.inference_mode()
def operator_times() -> Iterator[dict]:
    """Our version of every operator: what it is, operations and bytes, and seconds."""
    from benchmarks.gpu.cases import all_cases
    from benchmarks.gpu.convolutions import window_cases
    from benchmarks.gpu.scene import on_cpu

    generator = torch.Generator().manual_seed(0)
    for case in chain(all_cases(on_cpu()), window_cases(on_cpu(), torch.bfloat16)):
        if "ours" in case.versions and "backward" not in case.operator:
            inputs = case.draw(generator)
            seconds = best(lambda case=case, inputs=inputs: case.versions["ours"](inputs), REPEATS)
            yield entry(case.operator, case.shape, case.dtype, case.work, seconds)


@torch.inference_mode()
def network_times(size: int = 256, patch: int = 32, stride: int = 8, batch: int = 8) -> Iterator[dict]:
    """One pass of Local-Net, and one of Global-Net over masked images, as the paper's procedure makes."""
    from glance_fast.geometry import PatchGrid
    from glance_fast.nets.local_net import LocalNet
    from glance_fast.nets.masked import MaskedNet

    local, global_ = LocalNet(patch), MaskedNet(patch).eval()
    x = torch.randn(batch, 3, size, size)
    holes = torch.from_numpy(PatchGrid(size, size, patch, stride).holes)[:batch, None]
    convs = {
        "Local-Net": local_layers(local, (size, size), stride),
        "Global-Net, whole maps": global_layers(global_, (size, size)),
    }
    passes = {"Local-Net": lambda x: local(x, stride), "Global-Net, whole maps": lambda x: global_(x, holes)}
    for net in (local, global_):
        net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    for name, layers in convs.items():
        for dtype in (torch.float32, torch.bfloat16):
            work = total(forward(conv, batch, dtype.itemsize) for conv in layers)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                seconds = best(lambda run=passes[name]: run(x), REPEATS)
            kind = str(dtype).removeprefix("torch.")
            yield entry(name, f"{batch} images of {size}x{size}", kind, work, seconds)


def entry(operator: str, shape: str, dtype: str, work: Work, seconds: float) -> dict:
    """A row of the results."""
    counted = {"operations": work.operations, "bytes": work.bytes}
    return {"operator": operator, "shape": shape, "dtype": dtype, **counted, "seconds": seconds}


class Rates:
    """The machine's rates, in operations and bytes a second: the best of all times they were measured."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}

    def measure(self) -> None:
        """Measure them once more."""
        found = {
            "fp32": convolution_rate(torch.float32),
            "bf16": convolution_rate(torch.bfloat16),
            "copy": copy_bandwidth(),
        }
        self.best = {name: max(rate, self.best.get(name, 0.0)) for name, rate in found.items()}


def processor_time() -> tuple[float, float, float]:
    """Seconds that all processors have had, were busy (stolen by other machines too), and worked for us."""
    path, own = Path("/proc/stat"), os.times()
    ours = own.user + own.system
    if not path.is_file():
        return 1.0, ours, ours
    ticks = [int(n) / os.sysconf("SC_CLK_TCK") for n in path.read_text("ascii").split("\n")[0].split()[1:9]]
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4], ours


def measure() -> dict:
    """The machine and its rates, the times, and the share of the processors that others had."""
    before, rates, times = processor_time(), Rates(), []
    for index, row in enumerate(chain(network_times(), operator_times())):
        if index % AGAIN == 0:
            rates.measure()
        times.append(row)
        print(row, flush=True)
    rates.measure()
    elapsed, busy, ours = (b - a for a, b in zip(before, processor_time(), strict=True))
    others = max(0.0, busy - ours) / elapsed if elapsed else 0.0
    return {"machine": describe(), **rates.best, "others": others, "times": times}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    found = measure()
    rates = f"fp32 {found['fp32'] / 1e9:.0f} GFLOP/s, bf16 {found['bf16'] / 1e9:.0f} GFLOP/s"
    print(f"{rates}, copy {found['copy'] / 1e9:.1f} GB/s, others had {found['others']:.0%} of the processors")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
