"""``glance-fast calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, tell, tell_json
from glance_fast.cli.options import Device, Json, Memory, Quiet, Run, Threads


def calibrate(
    run: Run,
    good: Annotated[
        Path | None,
        typer.Argument(
            metavar="GOOD",
            help="Folder of photographs of good parts that the model was not trained on; without it, the "
            "scores that the run keeps serve.",
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of good parts that may be called anomalous, e.g. 0.001; the run's own if not given.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set the threshold anew, without training anew.

    With photographs of good parts as they are now, say after the camera or
    the light has changed a little; or for more or fewer false alarms. Says
    what the threshold promises: for 1 in 1000, 999 photographs are needed.

    Changes calibration.json of the run folder, and nothing else. Images that
    cannot be read, and those that the model was trained on, are left out; at
    least 8 others are needed.

    [dim]glance-fast calibrate run photos/more-good
    glance-fast calibrate run --false-alarms 0.001[/dim]
    """
    from glance_fast.calibration import promise
    from glance_fast.device import use_threads
    from glance_fast.jobs.recalibrate import calibrate_run
    from glance_fast.progress import Reporter

    use_threads(threads)
    with Reporter(console) as reporter:
        calibration = calibrate_run(
            run, good, false_alarms, device=device, memory_mib=memory, reporter=reporter
        )
    if as_json:
        tell_json(
            {
                "threshold": calibration.threshold,
                "pixel_threshold": calibration.pixel_threshold,
                "false_alarms": calibration.false_alarms,
                "photographs": len(calibration.scores),
                "promise": promise(calibration),
            }
        )
    else:
        tell(promise(calibration))
