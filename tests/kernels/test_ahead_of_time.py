"""Every Triton kernel compiled for GPUs that are not here, as the default net launches it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of a block, bytes; as in the vendors' tables.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
# Cards of little shared memory, and whose launches are compiled for them.
SMALL = {"sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_120": 99 * 1024}
FITTING = "surround_conv"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What the script finds, in processes of its own: here kernels are defined for the interpreter."""
    folder = tmp_path_factory.mktemp("ahead")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # A process a target, because the compilers take a core each.
    running = {}
    for target in SHARED | SMALL:
        command = [sys.executable, "-m", "benchmarks.ahead_of_time", "--target", target]
        command += ["--case", FITTING] if target in SMALL else []
        command += ["--json", str(folder / f"{target}.json")]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running[target] = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    found = []
    for target, process in running.items():
        _, said = process.communicate()
        assert process.returncode == 0, said
        found += json.loads((folder / f"{target}.json").read_text())
    return found


def test_every_kernel_is_compiled_for_every_target(compiled):
    kernels = {
        name
        for file in (ROOT / "kernels").glob("*/gpu.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert len(kernels) >= 5
    for target in SHARED:
        assert {r["kernel"] for r in compiled if r["target"] == target} == kernels


def test_some_kernels_are_compiled_for_small_cards(compiled):
    named = re.compile(rf"^{FITTING}_.*_kernel$")
    every = {r["kernel"] for r in compiled if named.match(r["kernel"])}
    assert len(every) >= 4
    for target in SMALL:
        assert {r["kernel"] for r in compiled if r["target"] == target} == every


def test_nothing_spills(compiled):
    assert all(r["registers"] > 0 for r in compiled if r["target"] != "gfx942")
    assert [r for r in compiled if r["spills"]] == []


def test_shared_memory_suffices(compiled):
    assert [r for r in compiled if r["shared"] > (SHARED | SMALL)[r["target"]]] == []


def test_matrix_products_of_16_bits_use_warp_groups_on_sm_90(compiled):
    # What multiplies matrices is seen on sm_80, where every shape has an instruction.
    products = {
        (r["case"], r["kernel"], r["dtype"])
        for r in compiled
        if r["target"] == "sm_80" and r["instructions"]["matrix"] and r["dtype"] in ("bfloat16", "float16")
    }
    assert len(products) >= 5
    with_groups = {
        (r["case"], r["kernel"], r["dtype"])
        for r in compiled
        if r["target"] == "sm_90" and r["instructions"].get("HGMMA")
    }
    assert products - with_groups == set()
