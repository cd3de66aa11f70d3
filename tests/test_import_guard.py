"""The folder ``kernels/`` answers to one name only: another would load every operator twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glance_fast.kernels

ROOT = Path(glance_fast.kernels.__file__).resolve().parents[1]


def run(code):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "statement",
    ["import kernels", "import kernels.partial_conv", "from kernels.patch_score import score_patches"],
)
def test_another_name_is_refused_with_a_hint(statement):
    done = run(statement)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: ")
    assert "import glance_fast.kernels" in last and "pip install -e ." in last and "'kernels'" in last


def test_the_right_name_works_from_the_same_place():
    done = run("import sys, glance_fast.kernels; assert 'kernels' not in sys.modules; print('fine')")
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


def test_a_cpu_needs_no_triton(run_folder):
    done = run(
        "import sys; sys.modules['triton'] = None\n"
        "import numpy as np, torch, glance_fast\n"
        f"model = glance_fast.load({str(run_folder)!r}, 'cpu')\n"
        "image = np.zeros((64, 64, 3), np.uint8)\n"
        "assert np.isfinite(model.score([image]).maps).all()\n"
        "print('fine')"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr
