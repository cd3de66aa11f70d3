"""What normal looks like in scores: moments and thresholds.

Every normal image is scored by a whitening that has not seen it, so that all of them count for both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glance_fast.calibration import Calibration, Moments, ScaleStatistics, with_thresholds
from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16
from glance_fast.engines.memory import MIB
from glance_fast.errors import UserError
from glance_fast.maps import HeadMaps, blend_heads, combine
from glance_fast.model import Glance
from glance_fast.training.explained import Explained
from glance_fast.training.normal import Normal, write_normal
from glance_fast.training.parallel import ALONE, Workers
from glance_fast.training.whitening import Features, NormalScores, residuals_of, row_bytes, whiten

# Enough for a covariance of 128 numbers per grid position; more images would cost time alone.
MOST_IMAGES = 400
# Images without which a calibration is not begun, where there are as many.
LEAST_IMAGES = 40
# What the map of a patch size counts by at least, beside that of the size that is explained best.
LEAST_WEIGHT = 0.5


@torch.inference_mode()
def calibrate(
    model: Glance,
    cache: ImageCache,
    indices: Sequence[int] | np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    held_out: Sequence[int] | np.ndarray = (),
    weights: Sequence[float] | None = None,
    keep: Path | None = None,
    workers: Workers = ALONE,
) -> float:
    """Estimate whitening, moments and thresholds on normal images, as many of them as ``room`` says.

    Parameters
    ----------
    model : Glance
        Changed in place: ``residual_mean``, ``whitening`` and ``calibration``.
    cache : ImageCache
        Normal images.
    indices : sequence of int
        Those to use.
    progress : callable, optional
        Called with (images done, images in all).
    held_out : sequence of int
        Those that no net was trained on: they tell what each of several patch sizes counts by in the map
        (``weights_of``). Without any, all count the same.
    weights : sequence of float, optional
        What each patch size counts by, where that is known already.
    keep : Path, optional
        File to keep the residuals in (``glance_fast.training.normal``), so that photographs can join them.
    workers : Workers
        Who shares the work.

    Returns
    -------
    float
        How much higher held-out images score than those that the nets were trained on, in deviations of the
        scores; 0 where there are not both.

    Raises
    ------
    UserError
        Memory does not suffice, or the file cannot be written.
    """
    most = room(model, len(indices))
    chosen = np.random.default_rng(model.config.seed).permutation(np.asarray(indices))[:most]
    names = digests(cache, indices)
    name_of = dict(zip(map(int, indices), names, strict=True))
    # An order of their own: those that join them later are where they would have been from the beginning.
    chosen = np.array(sorted(chosen, key=name_of.__getitem__))
    if weights is None and len(held_out) and len(model.scales) > 1 and model.config.blend == "calibrated":
        weights = weights_of(r2_of_scales(features_of(model, cache, held_out, workers=workers)))
    with _leaving(model, _residual_bytes(model, len(chosen))):
        residuals = residuals_of(model, features_of(model, cache, chosen, progress, workers))
        if keep and workers.first:
            aspects = torch.tensor([aspect_of(cache, index) for index in chosen], dtype=torch.float64)
            kept = tuple(name_of[int(index)] for index in chosen)
            write_normal(keep, model, Normal(kept, aspects, residuals))
        scores = whiten(model, residuals)
        del residuals
    aspect = float(np.median([aspect_of(cache, index) for index in range(len(cache))]))
    height, width = np.median(np.array(cache.shapes), axis=0)
    model.calibration = dataclasses.replace(
        calibration_of(model, scores, weights=weights),
        aspect=aspect,
        shape=(int(height), int(width)),
        trained_on=names,
        white=cache.white,
    )
    found, new = np.array(model.calibration.scores), np.isin(chosen, held_out)
    if new.all() or not new.any():
        return 0.0
    return float((found[new].mean() - found[~new].mean()) / max(found.std(), 1e-12))


def room(model: Glance, images: int) -> int:
    """How many images a calibration takes: ``MOST_IMAGES``, or as many as the model's ``memory_mib`` holds.

    Parameters
    ----------
    model : Glance
    images : int
        How many there are.

    Raises
    ------
    UserError
        Not even ``LEAST_IMAGES`` would fit, or an image cannot be scored.
    """
    # An image that cannot even be scored is refused in the words of scoring.
    model.memory_share()
    wanted = min(images, MOST_IMAGES)
    least = min(wanted, LEAST_IMAGES)
    if not _fits(model, least):
        height, width = model.config.image_size
        raise UserError(
            f"image_size {height}x{width}: {model.memory_limit // MIB} MiB beside the model are too few to "
            f"calibrate on {least} images; allow more (`memory_mib`), or train with a smaller "
            "image_size"
        )
    return bisect_left(range(wanted + 1), True, lo=least, key=lambda n: not _fits(model, n)) - 1


@contextmanager
def holding(model: Glance, images: int) -> Iterator[None]:
    """Let scoring have what the residuals of so many images leave of the model's memory.

    Raises
    ------
    UserError
        They do not fit.
    """
    if not _fits(model, images):
        raise UserError(
            f"{model.memory_limit // MIB} MiB beside the model are too few for {images} photographs; allow "
            "more (`memory_mib`)"
        )
    with _leaving(model, _residual_bytes(model, images)):
        yield


def aspect_of(cache: ImageCache, index: int) -> float:
    """Width over height of an image as it was photographed."""
    height, width = cache.shapes[index]
    return width / height


def _fits(model: Glance, images: int) -> bool:
    """Whether memory suffices to calibrate on so many images."""
    with _leaving(model, _residual_bytes(model, images)):
        # A band is a row at least, and one on each side of it.
        rows = max(row_bytes(s.grid, images, s.local.features) for s in model.scales)
        if 3 * rows > model.memory_limit:
            return False
        try:
            model.memory_share()
        except UserError:
            return False
        return True


def _residual_bytes(model: Glance, images: int) -> int:
    """Of z_l - z_g of every patch of so many images, in half precision."""
    return images * sum(len(s.grid) * s.local.features * 2 for s in model.scales)


@contextmanager
def _leaving(model: Glance, taken: int) -> Iterator[None]:
    """Let scoring have what ``taken`` bytes leave of the model's memory."""
    before = model.memory_mib
    # 0 would stand for the default.
    model.memory_mib = max((model.memory_limit - taken) // MIB, 1)
    try:
        yield
    finally:
        model.memory_mib = before


@torch.inference_mode()
def recalibrate(
    model: Glance,
    cache: ImageCache,
    indices: Sequence[int] | np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Moments and thresholds anew, from normal images that the model's whitening has not seen.

    Parameters
    ----------
    model : Glance
        Changed in place: ``calibration``.
    cache, indices, progress
        As for ``calibrate``.
    """
    before = model.calibration
    parts: list[list[NormalScores]] = []
    for chunk in features_of(model, cache, indices, progress):
        scored = model.scores_of(chunk, [ScaleStatistics()] * len(chunk))
        parts.append([NormalScores(s.inconsistency.cpu(), s.distortion.cpu()) for s in scored])
    scores = [NormalScores(*map(torch.cat, zip(*scale, strict=True))) for scale in zip(*parts, strict=True)]
    shares, weights = zip(*((s.lambda_s, s.weight) for s in before.scales), strict=True)
    model.calibration = dataclasses.replace(
        calibration_of(model, scores, shares, weights),
        aspect=before.aspect,
        shape=before.shape,
        trained_on=before.trained_on,
    )


def features_of(
    model: Glance,
    cache: ImageCache,
    indices: Sequence[int] | np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> Iterator[Features]:
    """Features of normal images, a chunk at a time."""
    # Rounding is noise far below what normal images differ by.
    precision = "bf16" if has_bf16(model.device) else "fp32"
    together = model.at_once(precision) * workers.count

    def features(images: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(chain.from_iterable(model.features(images, precision=precision)))

    for start in range(0, len(indices), together):
        images = cache.batch(indices[start : start + together])
        found = workers.divided(features, images)
        yield list(zip(found[::2], found[1::2], strict=True))
        if progress:
            progress(start + len(images), len(indices))


def r2_of_scales(features: Iterable[Features]) -> list[float]:
    """Share of the variance of z_l that z_g explains, R², of every scale."""
    found: defaultdict[int, Explained] = defaultdict(Explained)
    for chunk in features:
        for scale, pair in enumerate(chunk):
            found[scale].add(*pair)
    return [scale.r2 for scale in found.values()]


def weights_of(shares: Sequence[float]) -> list[float]:
    """What the maps of the scales count by, from the R² of each: in proportion to the best.

    Where the surroundings of large patches tell nothing of them, as in a texture without order, large patches
    only blur what small ones see.
    """
    best = max(shares)
    if best <= 0:
        return [1.0] * len(shares)
    return [min(max(share / best, LEAST_WEIGHT), 1.0) for share in shares]


def digests(cache: ImageCache, indices: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """Short names of images, also of those beyond ``MOST_IMAGES``: the nets have seen them all."""
    return tuple(digest(cache.batch([index])[0]) for index in indices)


def digest(image: np.ndarray) -> str:
    """A short name of a prepared image's pixels."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:16]


class RunningMoments:
    """Moments of more values than are held at a time."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Take all entries of a tensor in."""
        values = values.double()
        self.count += values.numel()
        self.total += float(values.sum())
        self.squares += float(values.square().sum())

    def moments(self) -> Moments:
        """Of all that was taken in."""
        mean = self.total / self.count
        return Moments(mean, max(self.squares / self.count - mean**2, 1e-12) ** 0.5)


@torch.inference_mode()
def calibration_of(
    model: Glance,
    scores: list[NormalScores],
    shares: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> Calibration:
    """Moments and thresholds from the patch scores of normal images.

    Parameters
    ----------
    model : Glance
    scores : list of NormalScores
        One a scale.
    shares : sequence of float, optional
        λ_s of every scale; the settings' if not given.
    weights : sequence of float, optional
        What every scale counts by in the map; all the same if not given.
    """
    config = model.config
    shares = shares or [config.lambda_s] * len(model.scales)
    weights = weights or [1.0] * len(model.scales)
    if config.blend == "paper":
        statistics = [ScaleStatistics(lambda_s=share) for share in shares]
    else:
        statistics = _statistics(model, scores, shares)
        statistics = [dataclasses.replace(s, weight=w) for s, w in zip(statistics, weights, strict=True)]
    calibration = Calibration(
        tuple(statistics),
        false_alarms=config.false_alarms,
        distances=model.calibration.distances,
        largest_peaks=model.calibration.largest_peaks,
        white=model.calibration.white,
    )
    scored, highest = [], []
    for maps in _maps(model, scores):
        blended, score = combine(maps, config, calibration)
        scored.append(score)
        highest.append(blended.amax((1, 2)))
    image, pixel = torch.cat(scored).numpy(), torch.cat(highest).numpy()
    if config.blend == "calibrated":
        of_images = Moments.of(image)
        calibration = dataclasses.replace(calibration, image=of_images)
        image = (image - of_images.mean) / of_images.std
    return with_thresholds(
        dataclasses.replace(calibration, scores=tuple(map(float, image)), peaks=tuple(map(float, pixel))),
        config.false_alarms,
    )


def _statistics(model: Glance, scores: list[NormalScores], shares: Sequence[float]) -> list[ScaleStatistics]:
    """Moments of every scale's patch scores, maps, peaks and blends."""
    # Of each scale a pair: inconsistency, distortion.
    of_maps = [(RunningMoments(), RunningMoments()) for _ in scores]
    peaks: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in scores]
    for maps in _maps(model, scores):
        for head_maps, running, highest in zip(maps, of_maps, peaks, strict=True):
            for values, moments, found in zip(head_maps, running, highest, strict=True):
                moments.add(values)
                found.append(values.amax((1, 2)))
    statistics = []
    for scale, running, highest, share in zip(scores, of_maps, peaks, shares, strict=True):
        statistics.append(
            ScaleStatistics(
                inconsistency=Moments.of(scale.inconsistency),
                distortion=Moments.of(scale.distortion),
                inconsistency_map=running[0].moments(),
                distortion_map=running[1].moments(),
                inconsistency_peak=Moments.of(torch.cat(highest[0])),
                distortion_peak=Moments.of(torch.cat(highest[1])),
                lambda_s=share,
            )
        )
    blends = [RunningMoments() for _ in scores]
    for maps in _maps(model, scores):
        for head_maps, heads, moments in zip(maps, statistics, blends, strict=True):
            moments.add(blend_heads(head_maps, heads))
    return [dataclasses.replace(s, map=m.moments()) for s, m in zip(statistics, blends, strict=True)]


def _maps(model: Glance, scores: list[NormalScores]) -> Iterator[list[HeadMaps]]:
    """Maps of both heads, a few images at a time: of all of them together they may not fit."""
    step = model.at_once()
    for start in range(0, len(scores[0].inconsistency), step):
        part = [NormalScores(*(t[start : start + step].to(model.device) for t in s)) for s in scores]
        maps = [HeadMaps(*(m.cpu() for m in maps)) for maps in model.head_maps(part)]
        if model.inside is not None:
            # Pixels outside the region count nowhere: of the others, maps of one row.
            inside = model.inside.cpu()
            maps = [HeadMaps(*(m[:, inside][:, None] for m in both)) for both in maps]
        yield maps
