"""What is chosen before a kernel runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from benchmarks.gpu import launches
from glance_fast.kernels import WindowedMap, dispatch, partial_conv2d, window_conv2d
from glance_fast.kernels.dispatch import tf32_allowed
from glance_fast.kernels.partial_conv import operator


@pytest.fixture
def conv():
    """Torch's setting for convolutions, as it was afterwards."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "allowed"), [("ieee", False), ("tf32", True)])
def test_either_of_torchs_settings_is_read(conv, precision, allowed):
    conv.fp32_precision = precision
    assert tf32_allowed() == allowed
    conv.fp32_precision = "tf32"
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert tf32_allowed() == allowed


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Which with several devices need not be the current one."""
    current, launched = [], {}

    class DeviceOf:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            current.append(self.tensor)

        def __exit__(self, *_):
            current.pop()

    def launch(kernel, *_, **__):
        launched.setdefault(kernel.__name__, []).append(bool(current))

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    for kind in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kind, "run", launch)
    for run in launches.CASES.values():
        run()
    sources = (p.read_text() for p in Path(dispatch.__file__).parent.glob("*/gpu*.py"))
    kernels = {name for s in sources for name in re.findall(r"^def (\w+_kernel)\(", s, re.MULTILINE)}
    assert set(launched) == kernels and not current
    assert [name for name, found in launched.items() if not all(found)] == []


# What values are to blame for


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU, were the tensors there: to read a number, and to bring one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name in ("aten._local_scalar_dense.default", "aten.lift_fresh.default", "aten.nonzero.default"):
            raise AssertionError(f"{name} waits for the device")
        if name == "glance_fast.partial_conv2d.default":
            # What is within an operator is seen, too.
            with self:
                return operator.forward(*args)
        return function(*args, **(kwargs or {}))


WINDOWS = {
    "base": torch.ones(2, 16, 8, 8),
    "base_raw": torch.ones(2, 4, 6, 6),
    "base_out": torch.ones(2, 4, 6, 6),
    "weight": torch.ones(4, 16, 3, 3),
    "bias": None,
    "holes": torch.zeros(3, 4).long(),
    "images": torch.zeros(3).long(),
    "origins": torch.zeros(3, 2).long(),
    "size": (2, 2),
    "window": torch.ones(3, 16, 2, 2),
    "window_origins": torch.zeros(3, 2).long(),
    "residual": WindowedMap(torch.ones(2, 4, 6, 6), torch.ones(3, 4, 2, 2), torch.zeros(3, 2).long()),
    "backend": "triton",
}
HOLES = torch.tensor([[[0, 0, 2, 2], [4, 4, 8, 8]]] * 2)
LAYER = {"x": torch.ones(2, 3, 8, 8), "weight": torch.ones(4, 3, 3, 3)}
CALLS = {
    "holes": (partial_conv2d, {**LAYER, "mask": HOLES, "backend": "triton"}),
    "holes-reference": (partial_conv2d, {**LAYER, "mask": HOLES, "backend": "reference"}),
    "mask": (partial_conv2d, {**LAYER, "mask": torch.ones(2, 1, 8, 8), "backend": "triton"}),
    "windows": (window_conv2d, WINDOWS),
}
calls = pytest.mark.parametrize(("function", "inputs"), CALLS.values(), ids=CALLS)


def moved(value, device):
    if isinstance(value, WindowedMap):
        return WindowedMap(*(v.to(device) for v in value[:3]))
    return value.to(device) if isinstance(value, torch.Tensor) else value


@calls
def test_nothing_is_waited_for_but_by_refuse(function, inputs, device, monkeypatch):
    faults = []
    for module in ("partial_conv", "partial_conv.reference", "window_conv"):
        target = f"glance_fast.kernels.{module}.refuse"
        monkeypatch.setattr(target, lambda fault, message: faults.append(fault))
    inputs = {name: moved(value, device) for name, value in inputs.items()}
    with NoWaiting():
        function(**inputs)
    assert faults and not any(faults) and all(f.shape == () and f.dtype == torch.bool for f in faults)


def test_refuse_raises_on_a_cpu_and_waits_for_no_gpu(monkeypatch):
    with pytest.raises(ValueError, match="x: is wrong"):
        dispatch.refuse(torch.tensor(True), "x: is wrong")
    dispatch.refuse(torch.tensor(False), "x: is wrong")
    asked, ask = [], torch._assert_async

    def note(*arguments):
        asked.append(arguments)
        ask(*arguments)

    monkeypatch.setattr(torch, "_assert_async", note)
    # A tensor of a GPU that need not be there; whoever waits for its value gets an error.
    with FakeTensorMode():
        fault = torch.zeros((), dtype=torch.bool, device="cuda")
        with pytest.raises(RuntimeError):
            bool(fault)
        dispatch.refuse(fault, "x: is wrong")
    assert len(asked) == 1 and asked[0][1] == "x: is wrong"


@calls
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; the two tests before say what a CPU can")
def test_a_gpu_is_not_waited_for(function, inputs, device):
    inputs = {name: moved(value, device) for name, value in inputs.items()}
    function(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
