"""Options that several commands share."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from glance_fast.cli.console import be_quiet
from glance_fast.errors import UserError


class Engine(StrEnum):
    """How Global-Net runs."""

    auto = "auto"
    dense = "dense"
    patchwise = "patchwise"
    grouped = "grouped"


class Precision(StrEnum):
    """Number format of the networks."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write: a new one.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of glance-fast train.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
EngineOption = Annotated[
    Engine,
    typer.Option(
        metavar="NAME",
        help="For masked nets (net = pyramid or paper); others have auto alone. auto, dense: the scores of a "
        "pass per patch of the same model. patchwise: such passes themselves, slowly. grouped: nearly the "
        "same; glance-fast bench says whether it is faster.",
    ),
]
PrecisionOption = Annotated[
    Precision, typer.Option(metavar="NAME", help="auto, fp32, or bf16 (faster where the machine has it).")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processor threads, of PyTorch and of Numba alike; if not given, OMP_NUM_THREADS or all.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory-mib",
        min=1,
        metavar="N",
        help="MiB that scoring may take beside the model, in each process; 2048, on a GPU 8192.",
    ),
]
RoiOption = Annotated[
    Path | None,
    typer.Option(
        "--roi",
        metavar="MASK",
        help="Region of interest, white in an image of 0 and 255: one for all photographs, or a folder with "
        "one a photograph, called like it. In place of the one that the model was trained with.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
# Its callback does all: no command looks at it.
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=be_quiet, help="Say nothing but errors and the result."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted one stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier one wrote there.")]


class Preset(StrEnum):
    """Whole models by name."""

    surround = "surround"
    pyramid = "pyramid"
    paper = "paper"


PresetOption = Annotated[
    Preset | None,
    typer.Option(
        metavar="NAME",
        help="surround: the defaults; pyramid: a masked net; paper: the paper as literally as it can be "
        "had. --config and --set come after it.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings; RUN/config.toml is one."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, e.g. image_size=384 or 'patch=\\[32,64]'; repeatable.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, metavar="N", help="Of everything random.")]


def given_settings(
    preset: Preset | None, config: Path | None, settings: list[str] | None, **others: Any
) -> dict[str, Any]:
    """What these options say; a later one outweighs an earlier, and ``others`` that are None say nothing."""
    from glance_fast.config import PRESETS, checked_names, load_config

    given = dict(PRESETS[preset]) if preset else {}
    given |= load_config(config) if config else {}
    given |= checked_names(dict(parse_setting(text) for text in settings or []), "--set")
    return given | {k: v for k, v in others.items() if v is not None}


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``; the value is read as TOML, or as a string."""
    from glance_fast.config import checked_names, parsed_toml

    key, found, value = text.partition("=")
    if not found:
        raise UserError(f"--set {text}: expected key=value")
    try:
        parsed = parsed_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return next(iter(checked_names({key.strip(): parsed}, "--set"))), parsed


def parse_tile(text: str | None) -> int | str | None:
    """What ``--tile`` says: a number of pixels, or auto."""
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--tile {text}: expected auto or a number of pixels") from None
