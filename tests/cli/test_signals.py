"""Signals while PyTorch is imported, which takes seconds."""

import signal
import subprocess
import sys

import pytest

# Whatever is raised while PyTorch is imported may end in its C++, which aborts.
TORCH = """
import os, sys, time
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(9)
except BaseException:
    os._exit(1)
"""
COMMAND = "import sys; sys.path.insert(0, {!r}); from glance_fast.cli.signals import stop_on_signals; "
COMMAND += "stop_on_signals(); import torch"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ended"])
def test_nothing_is_raised_while_pytorch_is_imported(tmp_path, number):
    (tmp_path / "torch.py").write_text(TORCH)
    process = subprocess.run(
        [sys.executable, "-c", COMMAND.format(str(tmp_path)), str(int(number))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (130, "glance-fast: stopped\n")
