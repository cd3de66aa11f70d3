"""The command line: train, score-dir, evaluate, distill, demo."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from glance_fast.errors import UserError, elsewhere

# Results go to stdout, progress and errors to stderr.
out_console, console = Console(), Console(stderr=True)

# Exit codes beside 0; 2, wrong arguments, is Typer's.
FAILED, SOME_IMAGES_FAILED, STOPPED = 1, 3, 130
# Commands that go on where they were stopped.
RESUMABLE = ("train", "score-dir", "distill")


class Commands(TyperGroup):
    """The commands; whatever a user or the machine can cause ends in one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            line = f"{error}{_after_full_disk(error.__cause__, ctx.invoked_subcommand)}"
        except KeyboardInterrupt:
            goes_on = ctx.invoked_subcommand in RESUMABLE
            _say("glance-fast: stopped" + ("; the same command with --resume goes on" if goes_on else ""))
            raise typer.Exit(STOPPED) from None
        except MemoryError:
            line = "out of memory; use a smaller image_size, batch or cache_mib"
        except BrokenPipeError:
            raise  # the reader of our output has gone: Typer ends quietly
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            advice = elsewhere(error) + _after_full_disk(error, ctx.invoked_subcommand)
            line = f"{where}{error.strerror or error}{advice}"
        except RuntimeError as error:
            # PyTorch's own errors for it are no MemoryError, on the CPU not even a class of their own.
            if not any(text in str(error) for text in ("out of memory", "can't allocate memory")):
                raise
            line = "out of memory; use a smaller image_size, batch or cache_mib"
        _say(f"glance-fast: {line}")
        raise typer.Exit(FAILED)


app = typer.Typer(
    name="glance-fast",
    cls=Commands,
    help="""Learn what good parts look like from photographs of them, then show
where others differ.

[dim]glance-fast train photos/good --out run
glance-fast score-dir run photos/new --out scores --overlays[/dim]""",
    epilog="Exit codes: 0 done; 1 failed, and the last line says why; 2 wrong arguments; "
    "3 some images could not be scored; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        help="auto, dense: the paper's numbers. patchwise: the same by the paper's procedure, slowly. "
        "grouped: nearly the same, a little sooner.",
    ),
]
PrecisionOption = Annotated[
    Precision, typer.Option(metavar="NAME", help="auto, fp32, or bf16 (faster where the machine has it).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted one stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier one wrote there.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from glance_fast import __version__

        out_console.print(f"glance-fast {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    # No docstring: it would take the place of the help above.
    pass


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder of photographs of good parts, or an MVTec category (train/good)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder to write.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file of settings; RUN/config.toml is one.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting, e.g. image_size=384 or 'patch=\\[32,64]'; repeatable.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of everything random.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Training steps of Global-Net, for each patch size."),
    ] = None,
    local_net: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Local-Net from glance-fast distill, in place of the built-in one; repeatable.",
        ),
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="ResNet-18 (.safetensors) to fine-tune Local-Net by, in place of the built-in assistant.",
        ),
    ] = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn what good parts look like.

    Writes a run folder: model.safetensors, config.toml, calibration.json,
    log.csv. Images that cannot be read are named and left out; at least 8
    are needed, a few hundred are better.

    Ctrl-C leaves a checkpoint; the same command with --resume goes on to
    the very result that an uninterrupted training has.

    [dim]glance-fast train photos/good --out run
    glance-fast train photos/good --out run --set image_size=384 --steps 5000[/dim]
    """
    from glance_fast.config import Config, checked_names, load_config, parse_setting
    from glance_fast.data.files import write_text
    from glance_fast.data.folders import normal_images
    from glance_fast.hardware import pick_device
    from glance_fast.nets.student import Student
    from glance_fast.nets.teacher import load_teacher
    from glance_fast.training.fit import LEAST_IMAGES, fit
    from glance_fast.training.progress import Reporter

    _one_of(resume, overwrite)
    _apart(out, data)
    # Until the model is written, config.toml is what tells of a training.
    finished = (out / "model.safetensors").exists()
    begun = (out / "config.toml").is_file() and not finished
    if resume and finished:
        raise UserError(f"{out}: this training is finished; --overwrite trains anew")
    if resume and not begun:
        raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
    if begun and not (resume or overwrite):
        raise UserError(
            f"{out}: an unfinished training is there; --resume goes on with it, --overwrite begins anew"
        )
    before = load_config(out / "config.toml") if resume else {}
    given = load_config(config) if config else {}
    given |= checked_names(dict(parse_setting(text) for text in settings or []), "--set")
    given |= {k: v for k, v in (("seed", seed), ("steps", steps)) if v is not None}
    resolved = Config(**(before | given))
    if resume and resolved != Config(**before):
        raise UserError(
            f"{out}: --resume goes on with the settings in config.toml; --overwrite begins with others"
        )
    # All that can be known to be wrong is found before an old run is replaced.
    chosen = pick_device(device)
    teacher = load_teacher(teacher_weights) if teacher_weights else None
    for path in local_net or ():
        patch = Student.load(path).local.patch
        if patch not in resolved.patches:
            used = " and ".join(map(str, resolved.patches))
            raise UserError(f"{path}: made for patches of {patch} pixels; this model uses {used}")
    paths = normal_images(data)
    if len(paths) < LEAST_IMAGES:
        raise UserError(f"{data}: {_count(len(paths), 'image')}; at least {LEAST_IMAGES} are needed to train")
    ours = ("model.safetensors", "config.toml", "calibration.json", "log.csv", "checkpoint")
    wanted = given.get("image_size", resolved.image_size)
    started = time.monotonic()
    with _output(out, ours, overwrite, resume), Reporter(console) as reporter:
        if not resume:
            write_text(out / "config.toml", resolved.to_toml())
        if wanted not in (resolved.image_size, list(resolved.image_size), resolved.image_size[0]):
            reporter.say(
                f"image_size {wanted} rounded to {resolved.image_size[0]}x{resolved.image_size[1]}, "
                "which patches and strides cover whole"
            )
        try:
            fit(
                paths,
                out,
                resolved,
                reporter=reporter,
                device=chosen,
                local_nets=local_net or (),
                teacher=teacher,
            )
        except UserError:
            if not (out / "checkpoint").is_dir():
                # Nothing was begun: the same command, with better images, needs no --overwrite.
                (out / "config.toml").unlink(missing_ok=True)
            raise
    _tell(f"{out}: trained in {time.monotonic() - started:.0f} s")


@app.command("score-dir")
def score_dir(
    run: Run,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of photographs, searched with its subfolders.")
    ],
    out: Out,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write pictures of the maps over the images.")
    ] = False,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Score only what scores.csv lacks, and what failed.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score photographs: a map of every pixel and one number each.

    Writes scores.csv (path, score, anomalous, error), maps/*.tiff (float32,
    each image's own size), run.json and, if asked, overlays/*.png.

    Exit code 3 says that some images could not be scored; column error of
    scores.csv says why. Stopped, it goes on with --resume, and so it does
    when photographs were added.

    [dim]glance-fast score-dir run photos/new --out scores --overlays[/dim]
    """
    from glance_fast.checkpoint import load
    from glance_fast.scoring.directory import find_images, score_directory
    from glance_fast.training.progress import Reporter

    _one_of(resume, overwrite)
    _apart(out, run, images)
    find_images(images, out)
    if resume and not any((out / name).is_file() for name in ("scores.csv", "run.json")):
        raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
    model = load(run, device)
    ours = ("scores.csv", "run.json", "maps", "overlays")
    with (
        _output(out, ours, overwrite, resume),
        Reporter(console) as reporter,
        reporter.task("scoring", None) as advance,
    ):
        summary = score_directory(
            model,
            images,
            out,
            engine=engine.value,
            precision=precision.value,
            overlays=overlays,
            resume=resume,
            progress=advance,
        )
    for remark in summary.remarks:
        _say(remark)
    _tell(f"{_count(summary.scored, 'image')} scored, {summary.anomalous} anomalous: {out / 'scores.csv'}")
    if summary.errors:
        failed = _count(summary.errors, "image")
        _say(f"{failed} could not be scored; column error of {out / 'scores.csv'} says why")
        raise typer.Exit(SOME_IMAGES_FAILED)


@app.command()
def evaluate(
    run: Run,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="An MVTec category: test/<defect>/ and ground_truth/<defect>/."),
    ],
    out: Out,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure a model on photographs whose defects are known.

    Writes metrics.json (PRO, pixel and image AUROC, overall and for each
    defect), curves.png, report.html, scores.csv, and the maps in the layout
    that MVTec's own evaluation reads.

    [dim]glance-fast evaluate run mvtec/transistor --out report[/dim]
    """
    from glance_fast.checkpoint import load
    from glance_fast.evaluation import evaluate as evaluation
    from glance_fast.training.progress import Reporter

    _apart(out, run, data)
    evaluation.find_samples(data, out)
    model = load(run, device)
    ours = ("metrics.json", "scores.csv", "curves.png", "report.html", "maps")
    with (
        _output(out, ours, overwrite),
        Reporter(console) as reporter,
        reporter.task("evaluating", None) as advance,
    ):
        metrics = evaluation.evaluate(
            model, data, out, engine=engine.value, precision=precision.value, progress=advance
        )
    _print_metrics({data.resolve().name: metrics})
    _tell(f"report: {out / 'report.html'}")


class StudentKind(StrEnum):
    """What ``distill`` makes."""

    local32 = "local-32"
    local64 = "local-64"
    assistant = "assistant"
    global_ = "global"


@app.command()
def distill(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of photographs of anything.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write (.safetensors).")],
    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="ResNet-18 as .safetensors: torchvision's state dictionary, or with BatchNorm folded. "
            "Needed for all but global.",
        ),
    ] = None,
    student: Annotated[
        StudentKind,
        typer.Option(
            metavar="NAME",
            help="local-32, local-64: a Local-Net for that patch size; assistant: what fine-tunes them; "
            "global: where Global-Net starts from.",
        ),
    ] = StudentKind.local32,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Training steps.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of everything random.")] = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make the built-in weights anew, from photographs and a ResNet-18.

    The package ships with all of them. A Local-Net of your own goes to
    train --local-net; assistant and global replace the package's files.

    [dim]glance-fast distill photos --teacher-weights resnet18.safetensors \\
        --out local-32.safetensors[/dim]
    """
    from glance_fast.data.folders import list_images
    from glance_fast.nets.teacher import load_teacher
    from glance_fast.training.distill import distill as run
    from glance_fast.training.progress import Reporter

    _one_of(resume, overwrite)
    work = out.with_name(out.name + ".checkpoint") if out.name else out
    if out.is_dir():
        raise UserError(f"{out}: is a folder; --out names a file, such as {out / 'local-32.safetensors'}")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; --overwrite replaces it")
    if work.exists() and not (resume or overwrite):
        raise UserError(
            f"{work}: an unfinished one is there; --resume goes on with it, --overwrite begins anew"
        )
    if resume and not work.exists():
        raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
    if teacher_weights is None and student is not StudentKind.global_:
        raise UserError(
            f"--student {student.value} needs --teacher-weights FILE, a ResNet-18 as .safetensors"
        )
    if teacher_weights is not None and student is StudentKind.global_:
        raise UserError("--student global learns from the built-in Local-Nets; leave --teacher-weights away")
    teacher = load_teacher(teacher_weights) if teacher_weights else None
    paths = list_images(images)
    if overwrite and work.exists():
        shutil.rmtree(work)
    with Reporter(console) as reporter:
        figures = run(paths, out, work, teacher, student.value, steps=steps, seed=seed, reporter=reporter)
    _tell(f"{out}: {figures}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "glance-fast-demo"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Train, score, evaluate and report on built-in photographs, in minutes.

    Grass, gravel and brick with planted defects; report.html shows images,
    truth, maps and overlays. Needs no network and no data of yours.

    [dim]glance-fast demo --out demo[/dim]
    """
    from glance_fast.evaluation.demo import run_demo
    from glance_fast.training.progress import Reporter

    ours = ("data", "runs", "results", "report.html", "metrics.json")
    started = time.monotonic()
    with _output(out, ours, overwrite), Reporter(console) as reporter:
        results = run_demo(out, reporter)
    _print_metrics(results)
    _tell(f"{time.monotonic() - started:.0f} s; report: {out / 'report.html'}")


def _print_metrics(results: dict[str, dict]) -> None:
    table = Table("", "PRO", "pixel AUROC", "image AUROC")
    for name, metrics in results.items():
        for label, row in ((name, metrics), *((f"  {d}", m) for d, m in metrics.get("defects", {}).items())):
            values = (row.get(key) for key in ("pro", "pixel_auroc", "image_auroc"))
            # A folder's name may look like markup.
            table.add_row(escape(label), *("-" if v is None else f"{v:.3f}" for v in values))
    out_console.print(table)


def _one_of(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")


def _apart(out: Path, *inputs: Path) -> None:
    """Refuse an output folder that holds an input: --overwrite could delete it."""
    for path in inputs:
        if path.resolve() == out.resolve():
            raise UserError(f"--out {out}: is the folder that is read; choose another")
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: holds {path}, which is read; choose another")


@contextlib.contextmanager
def _output(out: Path, ours: tuple[str, ...], overwrite: bool, resume: bool = False) -> Iterator[None]:
    """Work in an output folder, and leave none behind where nothing came of it.

    It is new, empty, or, with --overwrite, freed of what we wrote there before; with --resume it stays as it
    is, but for what a killed process left half written.
    """
    from glance_fast.data.files import remove_stale

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out names a folder")
    if not resume and out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UserError(
                f"{out}: is not empty; --overwrite replaces what is in it, or choose another --out"
            )
        strangers = sorted(p.name for p in out.iterdir() if p.name not in ours and not p.name.startswith("."))
        if strangers:
            raise UserError(
                f"{out}: holds {strangers[0]!r}, which this command did not write; "
                "move it away or choose another --out"
            )
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
        if not os.access(out, os.W_OK | os.X_OK):
            raise UserError(f"{out}: cannot be written to; change its permissions or choose another --out")
        for path in (out / name for name in ours) if overwrite else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        remove_stale(out, ours)
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty: something came of it
                folder.rmdir()


def _after_full_disk(cause: BaseException | None, command: str | None) -> str:
    """What to do after an error, if a full disk caused it."""
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    option = "--resume goes on" if command in RESUMABLE else "--overwrite begins anew"
    return f"; make room there, then the same command with {option}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _say(line: str) -> None:
    # Not print: a path may look like markup or like an emoji.
    console.out(line, highlight=False)


def _tell(line: str) -> None:
    out_console.out(line, highlight=False)


def main() -> None:
    """Run the command line."""
    # Files over the limit are refused by name; Pillow's own warning would say it twice.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for stream in (sys.stdout, sys.stderr):
        # A path may hold what the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="glance-fast")
