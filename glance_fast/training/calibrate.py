"""What normal looks like in scores: whitening of the residual, moments and thresholds.

Every normal image is scored by a whitening that has not seen it (cross-conformal prediction), so that all of
them count for the moments and for the threshold.
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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.calibration import Calibration, Moments, ScaleStatistics, with_thresholds
from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16
from glance_fast.engines.memory import MIB
from glance_fast.errors import UserError
from glance_fast.geometry import PatchGrid
from glance_fast.maps import HeadMaps, blend_heads, combine
from glance_fast.model import Glance
from glance_fast.training.explained import Explained
from glance_fast.training.normal import Normal, Residuals, write_normal
from glance_fast.training.parallel import ALONE, Workers

# Enough for a covariance of 128 numbers per grid position; more images would cost time alone.
MOST_IMAGES = 400
# Parts of the normal images, each scored by a whitening fitted to the others.
FOLDS = 5
# Added to eigenvalues of the global covariance, as a share of their mean.
RIDGE = 1e-3
# Rows of the grid whose covariances are held at a time: so many, or fewer where they would take more.
BAND, BAND_BYTES = 8, 512 * MIB
# Images without which a calibration is not begun, where there are as many.
LEAST_IMAGES = 40
# What the map of a patch size counts by at least, beside that of the size that is explained best.
LEAST_WEIGHT = 0.5

Features = list[tuple[Tensor, Tensor]]


class NormalScores(NamedTuple):
    """What one scale says of normal images.

    Attributes
    ----------
    inconsistency, distortion : Tensor
        The two patch scores, float32 [N, P], on the CPU.
    """

    inconsistency: Tensor
    distortion: Tensor


class GlobalWhitening(NamedTuple):
    """Mean [D] of residuals over all positions, and what whitens them, [D, D]."""

    mean: Tensor
    matrix: Tensor


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
        rows = max(_row_bytes(s.grid, images, s.local.features) for s in model.scales)
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


def _row_bytes(grid: PatchGrid, images: int, features: int) -> int:
    """What ``whitenings`` holds of a row of the grid: two copies of residuals, and ten matrices a place."""
    return grid.cols * features * 4 * (2 * images + 10 * features)


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


@torch.inference_mode()
def fit_whitening(model: Glance, features: Iterable[Features]) -> list[NormalScores]:
    """Set the whitening of every scale from features (z_l, z_g) of normal images, and score them.

    Where the blend is the paper's there is no whitening, and they are scored as any other image.

    Parameters
    ----------
    model : Glance
        Changed in place: ``residual_mean`` and ``whitening``.
    features : iterable of Features
        As ``features_of`` gives them, a chunk at a time.

    Returns
    -------
    list of NormalScores
        One a scale; with a whitening, each image's by one that has not seen it.
    """
    return whiten(model, residuals_of(model, features))


@torch.inference_mode()
def residuals_of(model: Glance, features: Iterable[Features]) -> list[Residuals]:
    """What every scale finds in images, from their features as for ``fit_whitening``."""
    residuals: list[list[Tensor]] = [[] for _ in model.scales]
    distortions: list[list[Tensor]] = [[] for _ in model.scales]
    for chunk in features:
        for index, (scale, (local, global_)) in enumerate(zip(model.scales, chunk, strict=True)):
            # Half precision holds what whitening resolves, and halves what all images take.
            residuals[index].append((local - global_).half().cpu())
            distortions[index].append(torch.sigmoid(-scale.distortion(local, global_)).cpu())
    found = []
    for parts, distortion in zip(residuals, distortions, strict=True):
        found.append(Residuals(torch.cat(parts), torch.cat(distortion)))
        parts.clear()
    return found


@torch.inference_mode()
def whiten(model: Glance, normal: Sequence[Residuals]) -> list[NormalScores]:
    """As ``fit_whitening``, from the residuals of normal images."""
    scores, limit = [], min(BAND_BYTES, model.memory_limit)
    places = [None] * len(model.scales) if model.roi is None else [p.cpu() for p in model.roi.places]
    for scale, (residual, distortion), some in zip(model.scales, normal, places, strict=True):
        if scale.whitening is None or scale.residual_mean is None:
            inconsistency = residual.float().square().mean(2)
        else:
            shrinkage = model.config.shrinkage
            inconsistency = cross_fitted(residual, scale.grid, shrinkage, model.config.seed, limit, some)
            if some is not None:
                # Of patches outside the region nothing is known: the mean over all inside stands for them.
                over_all = whitening_of_all(residual)
                scale.residual_mean[:] = over_all.mean.to(model.device)
                scale.whitening[:] = over_all.matrix.half().to(model.device)
            for rows, mean, whitening in whitenings(residual, scale.grid, shrinkage, None, limit, some):
                here = rows if some is None else some[rows]
                scale.residual_mean[here] = mean.to(model.device)
                scale.whitening[here] = whitening.half().to(model.device)
        scores.append(NormalScores(inconsistency, distortion))
    return scores


def cross_fitted(
    residual: Tensor,
    grid: PatchGrid,
    shrinkage: float,
    seed: int,
    limit: int = BAND_BYTES,
    patches: Tensor | None = None,
) -> Tensor:
    """s_IAD of residuals [N, P, D], each image's by a whitening fitted to the others: float32 [N, P]."""
    count = len(residual)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    folds = min(FOLDS, count)
    out = torch.empty(residual.shape[:2])
    for fold in range(folds):
        inside = torch.zeros(count, dtype=torch.bool)
        inside[order[fold::folds]] = True
        for rows, mean, whitening in whitenings(residual, grid, shrinkage, ~inside, limit, patches):
            apart = (residual[:, rows][inside].float() - mean).transpose(0, 1)
            out[inside, rows] = torch.bmm(apart, whitening.mT).square().mean(2).T
    return out


def whitenings(
    residual: Tensor,
    grid: PatchGrid,
    shrinkage: float,
    used: Tensor | None = None,
    limit: int = BAND_BYTES,
    patches: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Mean and whitening of every grid position, a band of rows at a time.

    In the space that one covariance over all positions whitens: half a position's own covariance and half the
    mean over its 3x3 neighbourhood, each about its own mean, then shrunk towards the identity.

    Parameters
    ----------
    residual : Tensor
        z_l - z_g of normal images, [N, P, D].
    grid : PatchGrid
        P positions.
    shrinkage : float
        Share of the identity.
    used : Tensor, optional
        Bool [N], the images to take; all if not given. They are never copied together.
    limit : int
        Bytes to hold at a time; one row of the grid is held at least, with one on each side of it.
    patches : Tensor, optional
        Int64 [P'], ascending: the positions that ``residual`` [N, P', D] has, where these are not all. No
        other counts as a neighbour.

    Yields
    ------
    places : slice
        Of the P positions, or of the P'.
    mean : Tensor
        Float32 [p, D].
    whitening : Tensor
        Float32 [p, D, D].
    """
    used = torch.ones(len(residual), dtype=torch.bool) if used is None else used
    count, features = int(used.sum()), residual.shape[2]
    over_all = whitening_of_all(residual, used)
    identity = torch.eye(features)
    known = torch.arange(len(grid)) if patches is None else patches
    band = max(1, min(BAND, limit // _row_bytes(grid, count, features) - 2))
    for top in range(0, grid.rows, band):
        bottom = min(top + band, grid.rows)
        # A row more on each side: covariances are averaged over neighbours.
        first, last = max(top - 1, 0), min(bottom + 1, grid.rows)
        ends = torch.tensor([first, top, bottom, last]) * grid.cols
        begin, start, stop, end = torch.searchsorted(known, ends).tolist()
        if start == stop:
            continue
        here = residual[:, begin:end][used].float().transpose(0, 1)
        mean = here.mean(1, keepdim=True)
        apart = (here - mean) @ over_all.matrix
        own = torch.bmm(apart.mT, apart) / count
        around = _neighbourhoods(own, known[begin:end] - first * grid.cols, last - first, grid.cols)
        kept = slice(start - begin, stop - begin)
        mixed = (1 - shrinkage) * (own[kept] + around[kept]) / 2 + shrinkage * identity
        factor = torch.linalg.cholesky(mixed)
        matrix = over_all.matrix.expand_as(factor)
        yield slice(start, stop), mean[kept, 0], torch.linalg.solve_triangular(factor, matrix, upper=False)


def _neighbourhoods(own: Tensor, places: Tensor, rows: int, cols: int) -> Tensor:
    """Means of [n, D, D], at places int64 [n] of some rows of the grid, over 3x3 places among these."""
    if len(places) == rows * cols:
        around = own.unflatten(0, (rows, cols)).flatten(2).permute(2, 0, 1)[:, None]
        # Only neighbours that exist count.
        around = F.avg_pool2d(around, 3, 1, 1, count_include_pad=False)[:, 0]
        return around.permute(1, 2, 0).reshape(own.shape)
    # The last column counts the neighbours.
    whole = own.new_zeros(rows * cols, own[0].numel() + 1)
    whole[places] = F.pad(own.flatten(1), (0, 1), value=1)
    sums = F.avg_pool2d(whole.T.unflatten(1, (rows, cols))[:, None], 3, 1, 1, divisor_override=1)
    sums = sums[:, 0].flatten(1).T[places]
    return (sums[:, :-1] / sums[:, -1:]).reshape(own.shape)


def whitening_of_all(residual: Tensor, used: Tensor | None = None) -> GlobalWhitening:
    """One whitening over all images (or those that bool [N] names) and positions of residuals [N, P, D]."""
    used = torch.ones(len(residual), dtype=torch.bool) if used is None else used
    count = int(used.sum()) * residual.shape[1]
    total = torch.zeros(residual.shape[2], dtype=torch.float64)
    products = torch.zeros(residual.shape[2], residual.shape[2], dtype=torch.float64)
    for index in used.nonzero()[:, 0].tolist():
        part = residual[index].float()
        total += part.sum(0)
        products += part.T @ part
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    # Photographs that are all the same leave no variance at all.
    values = values.clamp_min(1e-12)
    matrix = (vectors * (values + RIDGE * values.mean()).rsqrt()) @ vectors.T
    return GlobalWhitening(mean.float(), matrix.float())


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
