"""``glance-fast explain``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glance_fast.cli.console import complain, console, count, say, tell, tell_json
from glance_fast.cli.group import SOME_IMAGES_FAILED
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Json,
    Memory,
    Out,
    Overwrite,
    Precision,
    PrecisionOption,
    Quiet,
    Run,
    Threads,
)

if TYPE_CHECKING:
    from glance_fast.jobs.explain import Explanation


def explain(
    run: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")],
    out: Out,
    good: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Photographs of good parts, such as those it was trained on: what should be there is "
            "looked for among them.",
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Places to show of each image.")] = 3,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what is wrong on an image, and what should be there.

    Writes a picture for each image: its worst places, each beside the normal
    patch that is nearest to what the surrounding lets expect, and a word by
    which of the two heads spoke. A patch that looks whole but does not
    belong there is misplaced, or something is missing; one that no normal
    photograph has is damaged. Both figures count deviations from normal.

    Exit code 3 says that some images could not be read.

    [dim]glance-fast explain run bad.png --good photos/good --out why[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.explain import explain_images
    from glance_fast.progress import Reporter

    use_threads(threads)
    if good is None:
        say(
            "what should be there is not looked for: give photographs of good parts, such as those of the "
            "training, with --good"
        )
    with Reporter(console) as reporter:
        found = explain_images(
            run,
            images,
            out,
            good=good,
            worst=worst,
            engine=engine.value,
            precision=precision.value,
            overwrite=overwrite,
            device=device,
            memory_mib=memory,
            reporter=reporter,
        )
    if as_json:
        tell_json({"images": [asdict(one) for one in found]})
    else:
        for one in found:
            for line in _lines(one):
                tell(line)
    if failed := [one for one in found if one.error]:
        for one in failed:
            complain(f"{one.path}: {one.error}")
        complain(f"{count(len(failed), 'image')} could not be explained")
        raise typer.Exit(SOME_IMAGES_FAILED)


def _lines(one: Explanation) -> list[str]:
    """What is said of an image, if it could be read."""
    if one.error:
        return []
    call = {True: ", anomalous", False: ", called good", None: ""}[one.anomalous]
    lines = [f"{one.path}: score {one.score:.3g}{call}; {one.picture}"]
    for number, place in enumerate(one.places, start=1):
        box, weak = place["box"], "" if place["above"] else " (below the threshold)"
        lines.append(
            f"  {number}. {place['word']}, rows {box['top']} to {box['bottom']}, columns {box['left']} to "
            f"{box['right']}: score {place['score']:.3g}{weak}; "
            f"inconsistency {place['inconsistency']:.1f}, distortion {place['distortion']:.1f}"
        )
        if place["nearest"]:
            patch = place["nearest"]["patch"]
            lines.append(
                f"     should be as in {place['nearest']['path']}, rows {patch['top']} to {patch['bottom']}, "
                f"columns {patch['left']} to {patch['right']}"
            )
    return lines
