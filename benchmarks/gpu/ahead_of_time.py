"""What the compiler makes of every Triton kernel, on a machine with no GPU.

python -m benchmarks.gpu.ahead_of_time [--json FILE]

The launchers run as they would on a device, on the shapes of the default net, but each launch compiles
and launches nothing: block sizes, types and alignment are those of the real launch. Read from the
machine code: registers, spills, shared memory, matrix instructions; the occupancy follows. Launchers see
the target's limit of shared memory, and a launch beyond it is a failure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
REGISTERS = 65536  # of a multiprocessor, and the next: threads and blocks
THREADS = {"sm_80": 2048, "sm_86": 1536, "sm_89": 1536, "sm_90": 2048, "sm_120": 1536}
BLOCKS = {"sm_80": 32, "sm_86": 16, "sm_89": 24, "sm_90": 32, "sm_120": 24}
# Bytes of shared memory: one block may have, one multiprocessor has; a block costs 1 KiB more.
SHARED = {
    "sm_80": (166912, 167936),
    "sm_86": (101376, 102400),
    "sm_89": (101376, 102400),
    "sm_90": (232448, 233472),
    "sm_120": (101376, 102400),
    "gfx942": (65536, 65536),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
LABEL = re.compile(r"^(\.L\w+):")
BRANCH = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")
KINDS = {
    "matrix": ("HGMMA", "HMMA", "QGMMA", "IMMA", "DMMA"),
    "float": ("FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "HADD2", "MUFU", "FSEL", "FSETP", "FMNMX"),
    "global": ("LDG", "STG", "LDGSTS", "ATOMG", "RED", "UBLKCP", "UTMALDG"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "local": ("LDL", "STL"),
    "convert": ("F2F", "F2FP", "I2F", "F2I", "I2FP"),
}


class NoDevice:
    """What Triton asks of a driver before it compiles; there is nothing to launch on."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @property
    def utils(self) -> NoDevice:
        """The part of a driver that knows the device's properties."""
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What launchers ask for."""
        return {"max_shared_mem": SHARED[list(TARGETS)[device]][0]}

    def get_current_device(self) -> int:
        """A single imagined device for each target, because Triton caches kernels by device."""
        return list(TARGETS.values()).index(self.target)

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The target to compile for."""
        return self.target


@dataclass
class Compiled:
    """What one launch compiles to.

    Attributes
    ----------
    registers, spills : int
        A thread's registers, and bytes of local memory it has in their place.
    shared : int
        Bytes of shared memory a block.
    occupancy : float
        Share of the multiprocessor's threads that can be resident.
    limit : str
        What keeps the occupancy from 1.
    instructions : dict
        Machine instructions by kind, and each matrix instruction by name; of the code, not of a run.
    loop : tuple of int
        Instructions of the innermost loop over matrix products, and how many of these are products; 0, 0
        where there is none.
    """

    case: str
    kernel: str
    target: str
    dtype: str
    warps: int
    stages: int
    constants: dict[str, Any]
    shared: int
    registers: int = 0
    spills: int = 0
    occupancy: float = 0.0
    limit: str = ""
    instructions: dict[str, int] = field(default_factory=dict)
    loop: tuple[int, int] = (0, 0)


@contextmanager
def compiling(target: str) -> Iterator[list]:
    """Make every launch compile for ``target`` instead; yields the list of (kernel, types, compiled)."""
    run, found = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, args, options, kernel))
        return kernel

    driver.set_active(NoDevice(TARGETS[target]))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run
        if torch.cuda.is_available():
            # What is launched next has a device.
            driver.reset_active()


def tool(name: str, *arguments: str) -> str:
    """Output of a tool that Triton brings along."""
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def read_cubin(cubin: bytes) -> tuple[int, int, str]:
    """Registers a thread, bytes of local memory a thread, and the code of a CUDA binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        code = tool("nvdisasm", "-c", file.name)
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return figures["REG"], figures["STACK"] + figures["LOCAL"], code


def matrix_loop(code: str) -> tuple[int, int]:
    """Instructions of the shortest loop that has matrix products, and how many of these are products."""
    labels: dict[str, int] = {}
    found, opcodes = [], []
    for line in code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif opcode := OPCODE.match(line):
            opcodes.append(opcode[1])
            branch = BRANCH.search(line)
            if branch and branch[1] in labels:
                body = opcodes[labels[branch[1]] :]
                if products := sum(o in KINDS["matrix"] for o in body):
                    found.append((len(body), products))
    return min(found, default=(0, 0))


def occupancy(target: str, warps: int, registers: int, shared: int) -> tuple[float, str]:
    """Share of a multiprocessor's threads resident at a time, and what limits it."""
    # Registers are handed out to a warp in steps of 256.
    a_warp = -(-registers * 32 // 256) * 256
    blocks = {
        "registers": REGISTERS // (a_warp * warps),
        "shared memory": SHARED[target][1] // (shared + 1024),
        "threads": THREADS[target] // (32 * warps),
        "blocks": BLOCKS[target],
    }
    limit = min(blocks, key=lambda name: blocks[name])
    return blocks[limit] * warps * 32 / THREADS[target], limit


def describe(case: str, target: str, kernel: str, args: tuple, options: dict, compiled: Any) -> Compiled:
    """Read a compiled kernel."""
    types = [str(a.dtype).removeprefix("torch.") for a in args if hasattr(a, "dtype")]
    constants = {k: v for k, v in options.items() if k.isupper()}
    meta = compiled.metadata
    result = Compiled(
        case, kernel, target, types[0], meta.num_warps, meta.num_stages, constants, int(meta.shared)
    )
    if "cubin" in compiled.asm:
        result.registers, result.spills, code = read_cubin(compiled.asm["cubin"])
        opcodes, result.loop = Counter(OPCODE.findall(code)), matrix_loop(code)
        result.occupancy, result.limit = occupancy(target, meta.num_warps, result.registers, result.shared)
        kinds = {kind: sum(opcodes[name] for name in names) for kind, names in KINDS.items()}
        matrix = {name: opcodes[name] for name in KINDS["matrix"] if opcodes[name]}
        result.instructions = {"all": opcodes.total(), **kinds, **matrix}
    return result


def compile_all(cases: dict[str, Callable[[], Any]], targets: list[str]) -> list[Compiled]:
    """Every launch of every case, for every target; the same launch is reported once."""
    results = []
    for target in targets:
        seen = set()
        for name, case in cases.items():
            with compiling(target) as launches:
                case()
            for kernel, args, options, compiled in launches:
                if compiled.hash not in seen:
                    seen.add(compiled.hash)
                    results.append(describe(name, target, kernel, args, options, compiled))
    return results


def too_large(results: list[Compiled]) -> list[str]:
    """Launches that a target refuses, in words: a block of theirs has more shared memory than it may."""
    return [
        f"{r.target}, {r.case}: {r.kernel} takes {r.shared / 1024:.0f} KiB of shared memory, and a block may "
        f"have {SHARED[r.target][0] / 1024:.0f}"
        for r in results
        if r.shared > SHARED[r.target][0]
    ]


def cases() -> dict[str, Callable[[], Any]]:
    """The launches of the default net, by name."""
    from benchmarks.gpu import launches

    return launches.CASES


def table(results: list[Compiled]) -> str:
    """A Markdown table."""
    lines = [
        "| target | launch | kernel | types | warps, stages | registers | spilled, B | shared, KiB "
        "| occupancy | limited by | instructions: all, matrix, float, global, shared "
        "| of the loop: all, matrix |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        counts = (str(r.instructions.get(k, "")) for k in ("all", "matrix", "float", "global", "shared"))
        cells = [
            r.target,
            r.case,
            f"`{r.kernel}`",
            r.dtype,
            f"{r.warps}, {r.stages}",
            str(r.registers or ""),
            str(r.spills) if r.registers else "",
            f"{r.shared / 1024:.0f}",
            f"{r.occupancy:.0%}" if r.registers else "",
            r.limit,
            ", ".join(counts),
            "{}, {}".format(*r.loop) if r.loop[0] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Compile, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--case", help="only launches whose name contains this")
    options = parser.parse_args()
    chosen = {name: case for name, case in cases().items() if (options.case or "") in name}
    if not chosen:
        sys.exit(f"no launch is named like {options.case!r}; there are: {', '.join(cases())}")
    results = compile_all(chosen, options.target or list(TARGETS))
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1), encoding="utf-8")
    if refused := too_large(results):
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()
