"""What is chosen before a kernel runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from benchmarks import launches
from glance_fast.kernels import dispatch
from glance_fast.kernels.dispatch import tf32_allowed


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
    sources = (p.read_text() for p in Path(dispatch.__file__).parent.glob("*/gpu.py"))
    kernels = {name for s in sources for name in re.findall(r"^def (\w+_kernel)\(", s, re.MULTILINE)}
    assert set(launched) == kernels and not current
    assert [name for name, found in launched.items() if not all(found)] == []
