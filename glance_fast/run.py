"""A run folder: ``model.safetensors``, ``config.toml``, ``calibration.json``. No pickle is ever read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from glance_fast.calibration import Calibration
from glance_fast.config import Config, load_config
from glance_fast.data.files import digest_of, read_tensors, write_tensors, write_text
from glance_fast.device import pick_device
from glance_fast.errors import UserError, excerpt
from glance_fast.model import PRECISIONS, Glance

MODEL, CONFIG, CALIBRATION = "model.safetensors", "config.toml", "calibration.json"
LOG, CHECKPOINT = "log.csv", "checkpoint"
# What normal photographs left (``glance_fast.training.normal``): an update alone reads it.
NORMAL = "normal.safetensors"
# Files as they were before the last update, and those that one was about to replace when it was stopped.
FORMER, REPLACING = "former", "replacing"
# What a training was begun with: where it is missing, there is nothing to go on with.
BEGUN = f"{CHECKPOINT}/images.json"
# Their names in a ``state_dict``; the second is there where the model has a region of interest.
CALIBRATION_STATE, REGION = "_extra_state", "inside"
# In the notes of the weights; another one where their meaning changes.
FORMAT = 1


def save_model(model: Glance, run: Path) -> None:
    """Write a model to a run folder, the weights last: a folder that has them is complete."""
    write_text(run / CONFIG, model.config.to_toml())
    save_calibration(model, run)
    write_tensors(run / MODEL, weights(model), {"format": FORMAT})


def save_calibration(model: Glance, run: Path) -> None:
    """Write a model's ``calibration.json``, which names the weights that it was measured with."""
    model.calibration = dataclasses.replace(model.calibration, weights=digest_of(weights(model)))
    write_text(run / CALIBRATION, model.calibration.to_json())


def weights(model: Glance) -> dict[str, Tensor]:
    """The model's ``state_dict`` without the calibration, which has a file of its own."""
    return {name: value for name, value in model.state_dict().items() if name != CALIBRATION_STATE}


def is_run(folder: Path) -> bool:
    """Whether a folder holds a model, or a training that was broken off."""
    return (folder / MODEL).exists() or is_unfinished(folder)


def is_unfinished(run: Path) -> bool:
    """Whether a training was broken off there, after it had begun."""
    return (run / BEGUN).is_file() and not (run / MODEL).exists()


def settings_of(run: Path) -> Config:
    """What ``config.toml`` says.

    Raises
    ------
    UserError
        It cannot be read, or a setting in it is refused.
    """
    values = load_config(run / CONFIG)
    try:
        return Config(**values)
    except UserError as error:
        raise UserError(f"{run / CONFIG}: {error}") from error


def of_whole_photographs(model: Glance, run: Path) -> Glance:
    """The model, if it has no region of interest.

    Raises
    ------
    UserError
        It has one, where all patches are asked for.
    """
    if model.inside is not None:
        raise UserError(f"{run}: was trained with a region of interest; this needs a model without one")
    return model


def check_memory(memory_mib: int | None) -> None:
    """Refuse what is no number of MiB.

    Raises
    ------
    UserError
        It is less than 1.
    """
    if memory_mib is not None and memory_mib < 1:
        raise UserError(f"memory_mib: at least 1 is needed, got {memory_mib}")


def load(
    run: str | Path,
    device: str | torch.device = "auto",
    precision: str = "auto",
    memory_mib: int | None = None,
) -> Glance:
    """Read a trained model.

    Parameters
    ----------
    run : path
        A folder that ``glance-fast train`` wrote.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    precision : {"auto", "fp32", "bf16"}
        In which it scores unless told otherwise; "auto" is fp32.
    memory_mib : int, optional
        That scoring may take beside the model; 2048 on a CPU and 8192 on a GPU if not given.

    Returns
    -------
    Glance
        In evaluation mode.

    Raises
    ------
    UserError
        The folder is none, or holds no finished training, or a file in it is damaged.
    """
    run = Path(run)
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}")
    check_memory(memory_mib)
    chosen = pick_device(device)
    if not run.is_dir():
        what = "is a file" if run.exists() else "no such folder"
        raise UserError(f"{run}: {what}; a run folder is what glance-fast train wrote")
    if not (run / MODEL).is_file():
        hint = (
            "training is unfinished: go on with glance-fast train --resume"
            if is_unfinished(run)
            else "not a run folder of glance-fast train"
        )
        raise UserError(f"{run}: no {MODEL} in it; {hint}")
    for name in (CONFIG, CALIBRATION):
        if not (run / name).is_file():
            raise UserError(f"{run / name}: missing; the run folder is incomplete, train again")
    config = settings_of(run)
    try:
        text = (run / CALIBRATION).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{run / CALIBRATION}: cannot be read: {error.strerror or error}") from error
    calibration = Calibration.from_json(text, len(config.patches), str(run / CALIBRATION))
    tensors, notes = read_tensors(run / MODEL, "train again")
    if notes.get("format") != FORMAT:
        raise UserError(f"{run / MODEL}: not a model of this version of glance-fast; train again")
    _check_sizes(run, config, tensors)
    model = Glance(config)
    if REGION in tensors:
        model.inside = torch.zeros(config.image_size, dtype=torch.bool)
    wanted = weights(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors or name not in wanted or tensors[name].shape != wanted[name].shape:
            raise _no_fit(run, name)
        if tensors[name].dtype != wanted[name].dtype:
            raise UserError(f"{run / MODEL}: damaged ({name} has another type); train again")
    if REGION in tensors and not tensors[REGION].any():
        raise UserError(f"{run / MODEL}: damaged (its region of interest is empty); train again")
    if calibration.weights and calibration.weights != digest_of(tensors):
        if (run / REPLACING).is_dir():
            raise UserError(
                f"{run}: an update was stopped while it replaced files; glance-fast update --undo restores "
                "what was before it"
            )
        raise UserError(
            f"{run / CALIBRATION}: was measured with other weights than those in {MODEL} beside it; put the "
            "file of the same training there, or train again"
        )
    model.calibration = calibration
    model.load_state_dict(tensors | {CALIBRATION_STATE: model.get_extra_state()})
    model.precision, model.memory_mib = precision, memory_mib
    return model.to(chosen).eval()


def _check_sizes(run: Path, config: Config, tensors: dict[str, Tensor]) -> None:
    """Refuse settings of a larger model than the file holds, before one is made that takes all memory."""
    for scale, grid in enumerate(config.grids):
        first, width = ("stem", config.widths[0]) if config.masked else ("value", config.width)
        sizes = {f"scales.{scale}.global_net.{first}.weight": width}
        if config.blend == "calibrated":
            sizes[f"scales.{scale}.residual_mean"] = len(grid)
        for name, size in sizes.items():
            if name not in tensors or tensors[name].shape[:1] != (size,):
                raise _no_fit(run, name)


def _no_fit(run: Path, name: str) -> UserError:
    return UserError(f"{run / MODEL}: does not fit {CONFIG} beside it ({excerpt(name)}); train again")
