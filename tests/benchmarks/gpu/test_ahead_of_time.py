"""Every Triton kernel compiled for GPUs that are not here, as the default net launches it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime import driver

from benchmarks.gpu import ahead_of_time

ROOT = Path(__file__).parents[3]
# Of a block, bytes; as in the vendors' tables.
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_120": 99, "gfx942": 64}
SHARED = {target: kibibytes * 1024 for target, kibibytes in SHARED.items()}
# sm_89 has the matrix instructions and the shared memory of sm_86, and compiling takes its time.
COMPILED = [target for target in SHARED if target != "sm_89"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What the script finds, in processes of its own: here kernels are defined for the interpreter."""
    folder = tmp_path_factory.mktemp("ahead")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # A process a target, because the compilers take a core each.
    running = {}
    for target in COMPILED:
        command = [sys.executable, "-m", "benchmarks.gpu.ahead_of_time", "--target", target]
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
        for file in (ROOT / "kernels").glob("*/gpu*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert len(kernels) >= 5
    for target in COMPILED:
        assert {r["kernel"] for r in compiled if r["target"] == target} == kernels


def test_nothing_spills(compiled):
    assert all(r["registers"] > 0 for r in compiled if r["target"] != "gfx942")
    assert [r for r in compiled if r["spills"]] == []


def test_shared_memory_suffices(compiled):
    assert [r for r in compiled if r["shared"] > SHARED[r["target"]]] == []


def test_more_shared_memory_than_the_card_has_is_a_failure(monkeypatch, capsys):
    launch = ahead_of_time.Compiled("a launch", "a_kernel", "sm_86", "float32", 4, 3, {}, 99 * 1024)
    fitting = dataclasses.replace(launch, case="another launch")
    large = dataclasses.replace(launch, shared=launch.shared + 1)
    assert ahead_of_time.too_large([fitting]) == []
    monkeypatch.setattr(ahead_of_time, "compile_all", lambda *_: [fitting, large])
    monkeypatch.setattr(ahead_of_time, "cases", lambda: {"a launch": None})
    monkeypatch.setattr(sys, "argv", ["ahead_of_time"])
    with pytest.raises(SystemExit) as end:
        ahead_of_time.main()
    assert end.value.code == (
        "sm_86, a launch: a_kernel takes 99 KiB of shared memory, and a block may have 99"
    )


def test_a_device_is_back_in_its_place_afterwards(monkeypatch):
    known = []
    monkeypatch.setattr(driver, "set_active", known.append)
    monkeypatch.setattr(driver, "reset_active", lambda: known.append("the device"))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with ahead_of_time.compiling("sm_89"):
            device = known[-1].get_current_device()
            assert known[-1].utils.get_device_properties(device) == {"max_shared_mem": SHARED["sm_89"]}
        assert (known[-1] == "the device") == there


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
