"""The server: it listens, answers until it is stopped, and then answers what waits."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from glance_fast.errors import UserError
from glance_fast.model import Glance

if TYPE_CHECKING:
    import uvicorn

# Seconds in which what waits is answered when the server is stopped.
GRACE = 30
# Connections that may wait to be taken.
BACKLOG = 1024


def serve(
    model: Glance,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    queue: int = 64,
    max_mib: int = 32,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; what waits then is answered first.

    Parameters
    ----------
    model : Glance
        Trained. Nothing else may score with it meanwhile.
    host : str
        Address to listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for all that reach it.
    port : int
        0 takes one that is free.
    queue : int
        Images received or waiting at a time; what comes beyond is refused with 429.
    max_mib : int
        MiB of a request; a larger one is refused with 413.
    engine, precision : str
        As for ``Glance.score``.
    threads : int, optional
        As for ``use_threads``.
    say : callable, optional
        Told, in a line, where it listens.

    Raises
    ------
    UserError
        fastapi or uvicorn is missing, the address cannot be listened on, or the model has no such engine.
    KeyboardInterrupt
        It was stopped, where SIGINT and SIGTERM raise that.
    """
    with server_of(
        model,
        host=host,
        port=port,
        queue=queue,
        max_mib=max_mib,
        engine=engine,
        precision=precision,
        threads=threads,
    ) as (server, listener):
        address = f"[{host}]" if ":" in host else host
        if say:
            say(f"listening on http://{address}:{listener.getsockname()[1]}; Ctrl-C ends it")
        server.run(sockets=[listener])


@contextlib.contextmanager
def server_of(
    model: Glance,
    *,
    host: str,
    port: int,
    queue: int,
    max_mib: int,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server that has not begun, and what it is to listen on; parameters as for ``serve``."""
    try:
        import uvicorn

        from glance_fast.serving.app import Limits, Service, build_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise UserError("serving needs fastapi and uvicorn: pip install 'glance-fast[serve]'") from error
    from glance_fast.serving.batcher import Batcher
    from glance_fast.serving.metrics import Metrics

    model.check(engine, precision)
    listener = listen(host, port)
    metrics = Metrics()
    with listener, contextlib.closing(Batcher(model, engine, precision, threads, metrics.batch)) as batcher:
        # What is compiled on first use is not for the first client to wait for.
        blank = np.zeros((*model.config.image_size, 3), np.uint16 if model.calibration.white else np.uint8)
        batcher.submit(blank).result()
        service = Service(model, batcher, metrics, Limits(queue, max_mib << 20))
        config = uvicorn.Config(
            build_app(service),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
        )
        with contextlib.closing(service):
            yield uvicorn.Server(config), listener


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises
    ------
    UserError
        There is no such address here, or another program listens on it.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Again, so that it knows its protocol: asyncio sends at once only where that is TCP. Else an answer's
        # second part waits for the client to say that it has the first, 40 ms.
        return socket.socket(fileno=listener.detach())
    except (OSError, UnicodeError) as error:
        # Python adds the address, which is named already.
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise UserError(
            f"{host}:{port}: cannot be listened on: {reason}; choose another `host` or `port`"
        ) from error
