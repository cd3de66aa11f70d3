"""``glance-fast serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from glance_fast.cli.console import say, tell_precision
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Memory,
    Precision,
    PrecisionOption,
    Quiet,
    Run,
    Threads,
)


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for other machines too.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that may wait; more are refused with 429.")
    ] = 64,
    max_mib: Annotated[
        int,
        typer.Option("--max-mib", min=1, metavar="N", help="MiB of a request; more is refused with 413."),
    ] = 32,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    quiet: Quiet = False,
) -> None:
    """Answer over HTTP: an image in, its score and the regions found out.

    POST /score takes the image as the body, or as field image of a form, and
    gives JSON: score, above and anomalous as score-dir has them, height,
    width, and regions above the model's threshold of pixels, each with box,
    area, peak and centroid. With ?map=png or ?map=tiff the map comes along,
    in base64. GET /health and GET /metrics are for those who watch over it.

    An image that cannot be read gives 422 and one line that says why. There
    is no password and no encryption: put a server that has them before it
    where others than you can reach it.

    [dim]glance-fast serve run --port 8000
    curl --data-binary @new.png localhost:8000/score[/dim]
    """
    from glance_fast.run import load
    from glance_fast.serving.server import serve as answer

    model = load(run, device, precision.value, memory)
    tell_precision(model, precision.value)
    answer(
        model,
        host=host,
        port=port,
        queue=queue,
        max_mib=max_mib,
        engine=engine.value,
        threads=threads,
        say=say,
    )
