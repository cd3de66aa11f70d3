"""Threads, memory and precision of the command line."""

import json
import os
import shutil

import numba
import pytest
import torch
from commands import one_line, score_dir


@pytest.fixture
def threads():
    """Numbers of threads of PyTorch and Numba, put back afterwards."""
    before = torch.get_num_threads(), numba.get_num_threads()
    yield lambda: (torch.get_num_threads(), numba.get_num_threads())
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def test_one_setting_for_all_threads(cli, run_folder, photos, tmp_path, threads):
    assert score_dir(cli, run_folder, photos, tmp_path / "out", "--threads", "1")[0] == 0
    assert threads() == (1, 1)
    code, _, err = score_dir(cli, run_folder, photos, tmp_path / "none", "--threads", "0")
    assert code == 2 and "--threads" in err and not (tmp_path / "none").exists()


def test_waiting_threads_give_their_processor_up_soon(cli, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "7", "who has set it knows why"


def test_memory_that_does_not_suffice(cli, run_folder, photos, tmp_path, monkeypatch):
    # A model this small would fit into a whole one.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 16)
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--memory-mib", "1"))
    assert line.startswith("image_size 64x64: scoring takes ") and "--memory-mib" in line
    code, said, _ = score_dir(cli, run_folder, photos, tmp_path / "out", "--memory-mib", "100", "--overwrite")
    assert code == 0 and "2 images scored" in said


def test_bf16_where_it_would_be_slower_is_fp32_and_said(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: False)
    code, _, err = score_dir(cli, run_folder, photos, tmp_path / "out", "--precision", "bf16")
    assert code == 0 and "no bf16 instructions on this machine" in err and "scoring in fp32" in err
    assert json.loads((tmp_path / "out/run.json").read_text())["precision"] == "fp32"


def test_images_too_large_to_be_calibrated_are_refused_before_training(cli, photos, tmp_path):
    for i in range(2, 8):
        shutil.copy(photos / "0.png", photos / f"{i}.png")
    command = ("train", photos, "--out", tmp_path / "run", "--device", "cpu")
    line = one_line(cli(*command, "--memory-mib", "20"))
    assert line.startswith("image_size 256x256: scoring takes") and not (tmp_path / "run").exists()
