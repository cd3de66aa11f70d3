"""Which device a process takes."""

import pytest
import torch

from glance_fast import UserError
from glance_fast.hardware import device_of_process


@pytest.fixture
def two_devices(monkeypatch):
    """A machine that seems to have two CUDA devices; gives those that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    return current


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_device(two_devices, name):
    assert [device_of_process(name, rank, 2) for rank in (0, 1)] == ["cuda:0", "cuda:1"] == two_devices


def test_a_device_that_is_named_is_for_all(two_devices):
    assert [device_of_process("cuda:1", rank, 3) for rank in (0, 2)] == ["cuda:1"] * 2 == two_devices
    assert device_of_process("cpu", 5, 8) == "cpu" and len(two_devices) == 2


def test_fewer_devices_than_processes(two_devices):
    with pytest.raises(
        UserError, match=r"^--device auto: 3 processes, .* number 2; give torchrun --nproc-per-node 2"
    ):
        device_of_process("auto", 0, 3)
    assert not two_devices


def test_without_cuda_all_take_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_process("auto", 1, 2) == "auto"
    with pytest.raises(UserError, match="finds no CUDA device"):
        device_of_process("cuda", 1, 2)
