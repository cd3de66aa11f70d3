"""From a folder of good parts to a model: ``glance-fast train``."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from glance_fast.calibration import caution, promise
from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import digest_of, write_text
from glance_fast.data.images import read_image
from glance_fast.data.roi import Masks
from glance_fast.data.tile_cache import MOST_TILES, TileCache, images_for
from glance_fast.device import has_bf16, pick_device
from glance_fast.errors import ImageError, UserError
from glance_fast.model import Glance, Scale
from glance_fast.nets.builtin import builtin_local_net, builtin_teacher, start_global_net
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import MaskedNet
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.run import BEGUN, CHECKPOINT, CONFIG, LOG, NORMAL, check_memory, save_model
from glance_fast.training.calibrate import MOST_IMAGES, calibrate, digests, room
from glance_fast.training.copies import Copies
from glance_fast.training.finetune import finetune_stage, whiten
from glance_fast.training.loop import Log, Stage, digest_of_images, remember, run_stage
from glance_fast.training.masked import global_stage
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.surround import features_of, surround_stage
from glance_fast.training.symmetry import Symmetry, find_symmetry
from glance_fast.training.tiles import calibrate_photographs

LEAST_IMAGES = 8
# What a training must be gone on with, as messages call it.
NAMES = {
    "images": "other images",
    "sha256": "other images",
    "config": "other settings",
    "local_nets": "other Local-Nets",
    "teacher": "another teacher",
    "roi": "another region of interest, or none",
}
# Images that are looked through for copies: where so many show the same, there is nothing to learn.
COMPARED = 100
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
    layout: str | None = None,
    roi: Masks | None = None,
    workers: Workers = ALONE,
) -> Glance:
    """Train a model on photographs of good parts and write it to a run folder.

    Stages with a checkpoint in ``run/checkpoint`` go on from there, to the result that an uninterrupted
    training has.

    Parameters
    ----------
    paths : sequence of Path
        Images. Those that cannot be read are reported and left out.
    run : Path
        Folder for ``model.safetensors``, ``config.toml``, ``calibration.json``, ``normal.safetensors`` and
        ``log.csv``.
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
    layout : str, optional
        How the data set is laid out that they are from, to say so.
    roi : Masks, optional
        The region of interest, one for all images, at the settings' image size; the model keeps it. Net
        "surround" is trained on the patches that belong to it, a masked net on holes anywhere; Local-Net is
        fine-tuned on whole images.
    workers : Workers
        Processes that share the work, each with the same arguments but for ``device``: call this in each. The
        first one writes the run folder.

    Returns
    -------
    Glance
        Calibrated, in evaluation mode.

    Raises
    ------
    UserError
        Too few images can be read, images of this size take more than ``memory_mib``, the training in ``run``
        was begun with other images, settings or nets, a checkpoint does not fit, the device is not available,
        an image is of another shape than ``roi`` or, with ``aspect = "letterbox"``, than the others, a
        process sees other images than the first, or the disk is full.
    """
    device, config = pick_device(device), of_their_shape(config, paths)
    if config.batch < workers.count:
        raise UserError(
            f"{workers.count} processes for batches of {config.batch} images: start fewer, or set a larger "
            "`batch`"
        )
    bf16 = not workers.any(not has_bf16(device))
    model = untrained(config, len(paths) if config.tile is None else MOST_TILES, device, memory_mib)
    with reporter.task("reading images", len(paths)) as advance:
        cache = images_for(paths, config, advance)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        check_images(cache, roi=roi)
        check_shapes(cache, config)
        if said := depth_of(cache):
            reporter.say(said)
        if roi is not None:
            model.inside = torch.from_numpy(_inside(roi, cache)).to(device)
        train, held_out = split(cache.groups, config)
        found_as = f"{layout}: " if layout else ""
        kind = "images" if config.tile is None else f"tiles of {config.tile} pixels"
        reporter.say(
            f"{found_as}{len(train)} {kind} to train on, {len(held_out)} held out; "
            f"{config.image_size[0]}x{config.image_size[1]} pixels, "
            f"{'bfloat16' if bf16 else 'float32'} on {device}"
        )
        own = {student.local.patch: student for student in map(Student.load, local_nets)}
        _remember(run, cache, config, own, teacher, roi, workers)
        students = {p: own.get(p) or builtin_local_net(p) for p in config.patches}
        locals_ = {patch: student.local.to(device) for patch, student in students.items()}
        symmetry = _symmetry(config, locals_[config.patches[0]], cache, train, held_out, reporter)
        inside = None if model.inside is None else model.inside.cpu().numpy()
        copies = Copies(cache, train, held_out, config, symmetry, reporter, inside, workers)
        steps = [config.finetune_steps_of(index) for index in range(len(config.patches))]
        targets = None
        if any(steps):
            targets = copies.targets((teacher or builtin_teacher()).to(device), bf16)
        log = Log(run / LOG)

        def train_stage(stage: Stage) -> None:
            run_stage(stage, run / CHECKPOINT, log, reporter.step, config.checkpoint_minutes, workers)

        for index, (scale, patch) in enumerate(zip(model.scales, config.patches, strict=True)):
            local = locals_[patch]
            if targets is not None and steps[index]:
                name = f"local-{patch}"
                stage = finetune_stage(name, local, targets, steps[index], config.seed, bf16, workers=workers)
                train_stage(stage)
                whiten(local, copies.trained)
            scale.local.load_state_dict(local.state_dict())
            scale.local.requires_grad_(False)
            train_stage(_global_stage(scale, index, copies, bf16))

        used = room(model, len(cache))
        if used < min(len(cache), MOST_IMAGES):
            limit = model.memory_limit >> 20
            reporter.say(f"calibrating on {used} of {len(cache)} images: {limit} MiB hold no more")
        with reporter.task("calibrating", None) as advance:
            everything = np.arange(len(cache))
            # What is seen by tiles, or in a region of interest, is not updated by others.
            keep = run / NORMAL if config.tile is None and roi is None else None
            higher = calibrate(model, cache, everything, advance, held_out, keep=keep, workers=workers)
        if isinstance(cache, TileCache):
            calibrate_photographs(model, cache, reporter)
        reporter.say(promise(model.calibration))
        if said := caution(higher, len(held_out)):
            reporter.say(said)
        if workers.first:
            save_model(model, run)
            shutil.rmtree(run / CHECKPOINT)
        # To the last bit.
        model.load_state_dict(workers.of_first(model.state_dict()))
    return model


def _global_stage(scale: Scale, index: int, copies: Copies, bf16: bool) -> Stage:
    """The stage that trains Global-Net and the distortion head of a scale, whose Local-Net is trained."""
    config, reporter, workers = copies.config, copies.reporter, copies.workers
    net, patch = scale.global_net, config.patches[index]
    if isinstance(net, MaskedNet):
        if config.pretrained and not start_global_net(net) and index == 0:
            reporter.say("Global-Net is not of the built-in shape: no built-in weights to start from")
        images = copies.cache, copies.train, copies.held_out
        stage = global_stage(scale, index, config, *images, copies.symmetry, bf16, workers)
    else:
        trained = copies.trained
        with reporter.task(f"features of patches of {patch}", None) as advance:
            features = features_of(scale, trained, config.seed, bf16, advance, workers)
            others = features_of(scale, copies.still, config.seed, bf16, workers=workers)
        stage = surround_stage(f"global-{patch}", scale, features, others, config, bf16, workers)
    stage.advice = f"lower the learning rate (`learning_rate={config.learning_rate / 10:g}`)"
    return stage


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


def of_their_shape(config: Config, paths: Iterable[Path]) -> Config:
    """Settings with an image size of the photographs' shape, where these are to keep their aspect.

    The shape is that of the first that can be read; ``check_shapes`` looks whether the others have it.

    Raises
    ------
    UserError
        It leaves too few patches, or is not square and ``symmetry`` has quarter turns.
    """
    if config.aspect == "stretch":
        return config
    for path in paths:
        try:
            size = config.size_for(read_image(path).shape[:2])
        except ImageError:
            continue  # it is reported when all are read
        return dataclasses.replace(config, image_size=size)
    return config


def check_shapes(cache: ImageCache, config: Config) -> None:
    """Refuse photographs that would take only a part of an image size, where they are to keep their aspect.

    What is normal is told place by place, and every photograph has to have all places.

    Raises
    ------
    UserError
        There is one.
    """
    if config.aspect == "stretch":
        return
    rows, cols = config.image_size
    for path, shape in zip(cache.paths, cache.shapes, strict=True):
        try:
            alike = config.size_for(shape) == config.image_size
        except UserError:
            alike = False
        if not alike:
            raise UserError(
                f"{path}: is {shape[1]}x{shape[0]}, another shape than the {cols}x{rows} of the model; with "
                "aspect = letterbox, it is trained and calibrated on photographs of one shape: crop it, or "
                "use aspect = stretch"
            )


def check_images(cache: ImageCache, place: str = "", roi: Masks | None = None) -> None:
    """Refuse images that are too few to train on, or of which too few differ.

    Parameters
    ----------
    cache : ImageCache
        The images.
    place : str
        Where they lie, to begin the message with.
    roi : Masks, optional
        Refuse images of another shape than its mask, too.

    Raises
    ------
    UserError
        They are.
    """
    usable = f"{place}{len(cache)} usable images"
    if len(cache) < LEAST_IMAGES:
        raise UserError(f"{usable}; at least {LEAST_IMAGES} are needed to train")
    different = len(set(digests(cache, range(min(len(cache), COMPARED)))))
    if different < LEAST_IMAGES:
        raise UserError(
            f"{usable}, but only {different} different ones among them; at least {LEAST_IMAGES} are needed "
            "to train"
        )
    if roi is not None:
        _inside(roi, cache)


def depth_of(cache: ImageCache) -> str:
    """What to say of photographs of more than 8 bits; nothing where there are none."""
    if cache.white is None:
        return ""
    bits = cache.white.bit_length()
    said = f"more than 8 bits: values from 0 to {cache.white} ({bits} bits) are used"
    if few := cache.unlike.shallow:
        said += f"; {few} of {len(cache)} have 8 bits, of which 255 is taken for {cache.white}"
    return said


def _inside(roi: Masks, cache: ImageCache) -> np.ndarray:
    """The region of interest, bool [H, W] at the image size; every image must be of its shape."""
    inside, *_ = (roi.of(p, Path(p.name), shape) for p, shape in zip(cache.paths, cache.shapes, strict=True))
    return inside


def split(groups: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on and of those held out, drawn by the seed.

    Parameters
    ----------
    groups : ndarray of int
        [N]: of which photograph each image is (``ImageCache.groups``). No photograph is in both, but of fewer
        than ``LEAST_IMAGES`` photographs single tiles are held out.
    config : Config
        Its ``seed``, and ``validation``: the share of the photographs to hold out, two at least.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < LEAST_IMAGES:
        group = np.arange(len(groups))
    count = int(group.max()) + 1
    order = np.random.default_rng(config.seed).permutation(count)
    apart = np.isin(group, order[: max(2, round(count * config.validation))])
    return np.flatnonzero(~apart), np.flatnonzero(apart)


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
    run: Path,
    cache: ImageCache,
    config: Config,
    own: dict[int, Student],
    teacher: Teacher | None,
    roi: Masks | None,
    workers: Workers,
) -> None:
    """Write what the training is begun with, or refuse to go on with anything else.

    The first process alone writes; the others must have what it has.
    """
    given = {
        "images": len(cache),
        "sha256": digest_of_images(cache),
        "config": config.to_toml(),
        # None: built-in ones.
        "local_nets": {str(patch): digest_of(net.local.state_dict()) for patch, net in own.items()} or None,
        "teacher": digest_of(teacher.state_dict()) if teacher else None,
        "roi": roi.provenance if roi else None,
    }
    for key, value in workers.of_first(given).items():
        if workers.any(value != given[key]):
            raise UserError(f"one process has {NAMES[key]} than another; give all of them the same")
    if workers.first:
        if not (run / BEGUN).is_file():
            # One that was stopped earlier than here left no more than this file, and is not gone on with.
            write_text(run / CONFIG, config.to_toml())
        remember(run / BEGUN, given, NAMES, run)
