"""From a folder of good parts to a model: ``glance-fast train``."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glance_fast.calibration import promise
from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import write_text
from glance_fast.device import has_bf16, pick_device
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.nets.builtin import builtin_local_net, builtin_teacher, start_global_net
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import MaskedNet
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.run import BEGUN, CHECKPOINT, CONFIG, LOG, check_memory, save_model
from glance_fast.training.calibrate import MOST_IMAGES, calibrate, room
from glance_fast.training.finetune import MOST, Targets, finetune_stage, whiten
from glance_fast.training.loop import Log, digest_of_images, digest_of_net, remember, run_stage
from glance_fast.training.masked import global_stage
from glance_fast.training.surround import features_of, surround_stage
from glance_fast.training.symmetry import Symmetry, find_symmetry
from glance_fast.training.variants import Variants, make_variants, number_of_variants

LEAST_IMAGES = 8
# What a training must be gone on with, as messages call it.
NAMES = {
    "images": "other images",
    "sha256": "other images",
    "config": "other settings",
    "local_nets": "other Local-Nets",
    "teacher": "another teacher",
}
# Images from which the symmetry of the category is found.
SYMMETRY_IMAGES = 100


def fit(
    paths: Sequence[Path],
    run: Path,
    config: Config,
    *,
    reporter: Reporter,
    device: str | torch.device = "auto",
    local_nets: Sequence[Path] = (),
    teacher: Teacher | None = None,
    memory_mib: int | None = None,
) -> Glance:
    """Train a model on photographs of good parts and write it to a run folder.

    Stages with a checkpoint in ``run/checkpoint`` go on from there, to the result that an uninterrupted
    training has.

    Parameters
    ----------
    paths : sequence of Path
        Images. Those that cannot be read are reported and left out.
    run : Path
        Folder for ``model.safetensors``, ``config.toml``, ``calibration.json`` and ``log.csv``.
    config : Config
        Settings.
    reporter : Reporter
        Shows progress.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    local_nets : sequence of Path
        Local-Nets from ``glance-fast distill`` in place of the built-in ones.
    teacher : Teacher, optional
        What Local-Net is fine-tuned by; the built-in one if not given.
    memory_mib : int, optional
        That calibration may take beside the model, as for ``load``.

    Returns
    -------
    Glance
        Calibrated, in evaluation mode.

    Raises
    ------
    UserError
        Too few images can be read, images of this size take more than ``memory_mib``, the training in ``run``
        was begun with other images, settings or nets, a checkpoint does not fit, the device is not available,
        or the disk is full.
    """
    device = pick_device(device)
    bf16 = has_bf16(device)
    model = untrained(config, len(paths), device, memory_mib)
    with reporter.task("reading images", len(paths)) as advance:
        cache = ImageCache(paths, config.image_size, config.cache_mib << 20, progress=advance)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        if len(cache) < LEAST_IMAGES:
            raise UserError(f"{len(cache)} usable images: at least {LEAST_IMAGES} are needed to train")
        train, held_out = split(len(cache), config)
        reporter.say(
            f"{len(train)} images to train on, {len(held_out)} held out; "
            f"{config.image_size[0]}x{config.image_size[1]} pixels, "
            f"{'bfloat16' if bf16 else 'float32'} on {device}"
        )
        checkpoints = run / CHECKPOINT
        own = {student.local.patch: student for student in map(Student.load, local_nets)}
        _remember(run, cache, config, own, teacher)
        log = Log(run / LOG)
        students = {p: own.get(p) or builtin_local_net(p) for p in config.patches}
        locals_ = {patch: student.local.to(device) for patch, student in students.items()}
        symmetry = _symmetry(config, locals_[config.patches[0]], cache, train, held_out, reporter)

        # A masked net that is not fine-tuned needs no copies.
        @functools.cache
        def variants() -> Variants:
            count = number_of_variants(len(train), config)
            if count < len(train):
                limit = config.cache_mib
                reporter.say(
                    f"{count} augmented copies of {len(train)} images: cache_mib = {limit} holds no more"
                )
            with reporter.task("augmenting", count) as advance:
                return make_variants(cache, train, count, config, symmetry, "variants", advance)

        @functools.cache
        def held_out_variants() -> Variants:
            """The held-out images as they are, and stained."""
            still = dataclasses.replace(config, shift=0, brightness=0.0)
            return make_variants(cache, held_out, len(held_out), still, Symmetry(False, False), "held out")

        targets = None
        steps = [config.finetune_steps_of(index) for index in range(len(config.patches))]
        if any(steps):
            teacher = (teacher or builtin_teacher()).to(device)
            # Stained copies show what the category does not: they may be turned, too, whatever it allows.
            square = config.image_size[0] == config.image_size[1]
            anyhow = Symmetry(turns=square, mirrors=True)
            count = min(len(variants()), MOST)
            turned = make_variants(cache, train, count, config, anyhow, "turned variants")
            with reporter.task("asking the teacher", None) as advance:
                limit = config.cache_mib << 19
                targets = Targets(teacher, variants().clean, turned.stained, limit, bf16, advance)

        for index, scale in enumerate(model.scales):
            patch = config.patches[index]
            local = locals_[patch]
            if targets is not None and steps[index]:
                stage = finetune_stage(f"local-{patch}", local, targets, steps[index], config.seed, bf16)
                run_stage(stage, checkpoints, log, reporter.step, config.checkpoint_minutes)
                whiten(local, variants())
            scale.local.load_state_dict(local.state_dict())
            scale.local.requires_grad_(False)
            net = scale.global_net
            if isinstance(net, MaskedNet):
                if config.pretrained and not start_global_net(net) and index == 0:
                    reporter.say("Global-Net is not of the built-in shape: no built-in weights to start from")
                stage = global_stage(scale, index, config, cache, train, held_out, symmetry, bf16)
            else:
                made = variants()
                with reporter.task(f"features of patches of {patch}", None) as advance:
                    features = features_of(scale, made, config.seed, bf16, advance)
                    others = features_of(scale, held_out_variants(), config.seed, bf16)
                stage = surround_stage(f"global-{patch}", scale, features, others, config, bf16)
            stage.advice = f"lower the learning rate (`learning_rate={config.learning_rate / 10:g}`)"
            run_stage(stage, checkpoints, log, reporter.step, config.checkpoint_minutes)

        used = room(model, len(cache))
        if used < min(len(cache), MOST_IMAGES):
            limit = model.memory_limit >> 20
            reporter.say(f"calibrating on {used} of {len(cache)} images: {limit} MiB hold no more")
        with reporter.task("calibrating", None) as advance:
            calibrate(model, cache, np.arange(len(cache)), advance, held_out)
        reporter.say(promise(model.calibration))
        save_model(model, run)
        shutil.rmtree(checkpoints)
    return model


def untrained(config: Config, images: int, device: torch.device, memory_mib: int | None = None) -> Glance:
    """A model to train, if memory holds what its calibration takes.

    Parameters
    ----------
    config : Config
        Settings; the seed is that of its weights.
    images : int
        How many it is to be trained on.
    device : torch.device
        Where it is to be.
    memory_mib : int, optional
        That calibration may take beside it, as for ``load``.

    Raises
    ------
    UserError
        Memory does not suffice, which is better known before hours of training than after.
    """
    check_memory(memory_mib)
    model = Glance(config, config.seed).to(device)
    model.memory_mib = memory_mib
    room(model, images)
    return model


def split(count: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on and of those held out, drawn by the seed."""
    order = np.random.default_rng(config.seed).permutation(count)
    held_out = max(2, round(count * config.validation))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _symmetry(
    config: Config,
    local: LocalNet,
    cache: ImageCache,
    train: np.ndarray,
    held_out: np.ndarray,
    reporter: Reporter,
) -> Symmetry:
    """The symmetry that the settings name, or that the images have."""
    if config.symmetry != "auto":
        return Symmetry(config.symmetry in ("turns", "all"), config.symmetry in ("mirrors", "all"))
    sample = torch.from_numpy(cache.batch(train[:SYMMETRY_IMAGES]))
    others = torch.from_numpy(cache.batch(held_out[:SYMMETRY_IMAGES]))
    symmetry, said = find_symmetry(local, config.grids[0], sample, others)
    reporter.say(said)
    return symmetry


def _remember(
    run: Path, cache: ImageCache, config: Config, own: dict[int, Student], teacher: Teacher | None
) -> None:
    """Write what the training is begun with, or refuse to resume with anything else."""
    if not (run / BEGUN).is_file():
        # One that was stopped earlier than here left no more than this file, and is not gone on with.
        write_text(run / CONFIG, config.to_toml())
    given = {
        "images": len(cache),
        "sha256": digest_of_images(cache),
        "config": config.to_toml(),
        # None: built-in ones.
        "local_nets": {str(patch): digest_of_net(net.local) for patch, net in own.items()} or None,
        "teacher": digest_of_net(teacher) if teacher else None,
    }
    remember(run / BEGUN, given, NAMES, run)
