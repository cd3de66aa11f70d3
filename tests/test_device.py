"""Which device a process takes, and how many threads."""

import inspect
import os
import subprocess
import sys

import pytest
import torch

import glance_fast
from glance_fast import UserError
from glance_fast.device import device_of_process, pick_device, use_threads
from glance_fast.jobs.demo import run_demo
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.recalibrate import calibrate_run
from glance_fast.training.distill import distill_global_start, distill_local
from glance_fast.training.fit import fit


@pytest.fixture
def two_devices(monkeypatch):
    """A machine that seems to have two CUDA devices; gives those that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    return current


ENTRIES = (
    glance_fast.load,
    glance_fast.fit,
    fit,
    distill_local,
    distill_global_start,
    run_demo,
    calibrate_run,
    score_folder,
)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.__module__}.{entry.__name__}")
def test_one_rule_for_devices(entry):
    assert inspect.signature(entry).parameters["device"].default == "auto"


def test_auto_takes_cuda_where_there_is_one(two_devices, monkeypatch):
    assert pick_device() == pick_device("cuda") == torch.device("cuda") and not two_devices
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:1", torch.device("cuda", 1)])
def test_a_device_with_a_number_becomes_the_current_one(two_devices, name):
    assert pick_device(name) == torch.device("cuda:1") and two_devices == ["cuda:1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("tpu9", "no such device; use auto, cpu or cuda"), ("meta", "not supported; use auto, cpu or cuda")],
)
def test_devices_that_there_are_not(name, words):
    with pytest.raises(UserError, match=f"^device {name}: {words}"):
        pick_device(name)


def test_nothing_is_no_device():
    with pytest.raises(UserError, match=r"^device None: no such device; use auto, cpu or cuda$"):
        pick_device(None)


@pytest.mark.parametrize("name", ["cuda:2", torch.device("cuda", 7)])
def test_a_device_beyond_the_last_one(two_devices, name):
    with pytest.raises(
        UserError, match=f"^device {name}: this machine's CUDA devices number 2, the last is cuda:1$"
    ):
        pick_device(name)
    assert not two_devices


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_device(two_devices, name):
    assert [device_of_process(name, rank, 2) for rank in (0, 1)] == ["cuda:0", "cuda:1"] == two_devices


def test_a_device_that_is_named_is_for_all(two_devices):
    assert [device_of_process("cuda:1", rank, 3) for rank in (0, 2)] == ["cuda:1"] * 2 == two_devices
    assert device_of_process("cpu", 5, 8) == "cpu" and len(two_devices) == 2


def test_fewer_devices_than_processes(two_devices):
    with pytest.raises(
        UserError, match=r"^device auto: 3 processes, .* number 2; give torchrun --nproc-per-node 2"
    ):
        device_of_process("auto", 0, 3)
    assert not two_devices


def test_without_cuda_all_take_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_process("auto", 1, 2) == "auto"
    with pytest.raises(UserError, match="finds no CUDA device"):
        device_of_process("cuda", 1, 2)


# Numba starts its pool of threads once in a process, so that each case needs one of its own.
THREADS = """
import numba, numpy, torch
from glance_fast.device import use_threads

@numba.njit(parallel=True)
def add(values):
    for i in numba.prange(len(values)):
        values[i] += 1

told = use_threads({})
before = torch.get_num_threads(), numba.get_num_threads()
add(numpy.zeros(100))
print(told, *before, torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize(
    ("asked", "variable", "expected"),
    [(1, None, 1), (1, "2", 1), (None, "1", 1), (None, "2", 2), (2, "1", 2)],
)
def test_pytorch_and_numba_keep_to_one_number_of_threads(asked, variable, expected):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    # As on a machine with two processors, whatever this one has.
    environment |= {"NUMBA_NUM_THREADS": "2"} | ({"OMP_NUM_THREADS": variable} if variable else {})
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(asked)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.split() == [str(expected)] * 5, done.stderr


def test_threads_are_no_more_than_processors(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("numba.set_num_threads", lambda count: None)
    assert [use_threads(count) for count in (1000, 3, None)] == told == [4, 3, 1]
