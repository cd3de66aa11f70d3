"""What ends a command: Ctrl-C and SIGTERM alike, wherever it was started."""

from __future__ import annotations

import os
import signal
import sys

from glance_fast.cli.group import STOPPED
from glance_fast.jobs.ranks import this_process


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM raise ``KeyboardInterrupt``.

    Python leaves SIGTERM to the system, which ends a process at once; and it leaves SIGINT ignored where a
    script started the command in the background.
    """

    def stop(number: int, frame: object) -> None:
        if _imports_torch():
            # Its C++ calls Python meanwhile, and aborts the process where that raises. Nothing has begun yet.
            if this_process().rank == 0:
                os.write(2, b"glance-fast: stopped\n")
            os._exit(STOPPED)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _imports_torch() -> bool:
    """Whether PyTorch is being imported: Python notes so beside the module."""
    return getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False)
