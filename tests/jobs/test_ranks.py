"""Processes of torchrun, in scripts that have process groups of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import time
from torch import distributed
from glance_fast.jobs.ranks import ranks
if "own" in sys.argv:
    distributed.init_process_group("gloo")
for _ in range(2):
    with ranks() as here:
        here.wait()
        # The others are back before the first has left.
        time.sleep(0 if here.rank else 1)
assert distributed.is_initialized() == ("own" in sys.argv)
if "own" in sys.argv:
    distributed.barrier()
    distributed.destroy_process_group()
print(here.rank, here.count)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "none"])
def test_a_process_group_of_the_callers_own_is_kept(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in ("0", "1"):
        # What torchrun says to them.
        environment = {
            **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, kind],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out for out, _ in said] == ["0 2\n", "1 2\n"], said
