"""What ends a command: Ctrl-C and SIGTERM alike, wherever it was started."""

from __future__ import annotations

import signal


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM raise ``KeyboardInterrupt``.

    Python leaves SIGTERM to the system, which ends a process at once; and it leaves SIGINT ignored where a
    script started the command in the background.
    """

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
