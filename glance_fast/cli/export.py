"""``glance-fast export``."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, count, tell, tell_json
from glance_fast.cli.options import Json, Quiet, Run, Threads


class Format(StrEnum):
    """Of the file."""

    onnx = "onnx"
    torch_export = "torch-export"


def export(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File to write: model.onnx, or model.pt2.")
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="NAME",
            help="onnx, for ONNX Runtime and others; torch-export, for PyTorch without this package.",
        ),
    ] = Format.onnx,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FOLDER",
            help="Photographs that the file is checked on, up to 16; without it, three that come with "
            "scikit-image.",
        ),
    ] = None,
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as one file for other programs.

    The file takes images, uint8 [B, H, W, 3] in RGB of any size, and resizes
    them as training did. It gives maps [B, h, w] at the model's image size,
    scores [B] and anomalous [B], whether a score lies above the threshold.
    Of a model that was trained on images of more than 8 bits, it takes
    uint16 with the values of such files.
    What it knows of itself is JSON in its metadata, under glance_fast.

    It is run before it is kept: where its maps or scores are not the
    model's, there is no file. Masked nets (pyramid, paper) cannot be
    exported. ONNX needs pip install 'glance-fast\\[export]'.

    [dim]glance-fast export run --out model.onnx --check photos/new[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.export import export_run
    from glance_fast.progress import Reporter

    used = use_threads(threads)
    with Reporter(console) as reporter, reporter.task("exporting", None):
        found = export_run(run, out, format.value, check, overwrite)
    if as_json:
        tell_json(asdict(found))
        return
    runtime = "ONNX Runtime" if format is Format.onnx else "torch.export"
    tell(
        f"{found.file}: {found.bytes / (1 << 20):.1f} MiB; on {count(found.images, 'photograph')} maps "
        f"differ from the model's by at most {found.map_difference:.1e} of their spread"
    )
    tell(
        f"an image: {found.seconds * 1e3:.1f} ms with {runtime}, {found.model_seconds * 1e3:.1f} ms with "
        f"glance-fast (fp32, {count(used, 'thread')})"
    )
