"""What normal looks like in scores: whitening of the residual, moments and thresholds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.config import Config
from glance_fast.data.folders import ImageCache
from glance_fast.hardware import has_bf16
from glance_fast.model import Glance
from glance_fast.scoring.maps import HeadMaps, blend_heads, combine
from glance_fast.scoring.statistics import Calibration, Moments, ScaleStatistics, upper_threshold

# Enough for a covariance of 128 numbers per grid position; more images would cost time alone.
WHITENING_IMAGES = 300
# Added to eigenvalues of the global covariance, as a share of their mean.
RIDGE = 1e-3
# The distortion head keeps a tenth of the blend: small defects are its own. This and the rule of `share_of`
# are a guess from few categories: fitted to defects planted on held-out photographs, but looked for because
# an earlier blend fell short on the test images of transistors turned at random.
MOST_SHARE = 0.9


class ResidualMoments:
    """Running sums of z_l - z_g: for every grid position, and over all of them.

    Parameters
    ----------
    patches, features : int
        P and D.
    """

    def __init__(self, patches: int, features: int) -> None:
        self.count = 0
        self.total = torch.zeros(patches, features)
        self.products = torch.zeros(patches, features, features)

    def add(self, residual: Tensor) -> None:
        """Take residuals [B, P, D] in."""
        by_patch = residual.transpose(0, 1).contiguous()
        self.count += len(residual)
        self.total += by_patch.sum(1)
        self.products.baddbmm_(by_patch.mT, by_patch)

    def whitening(self, rows: int, cols: int, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Mean [P, D] and whitening [P, D, D] of every grid position.

        In the space that one covariance over all positions whitens: half a position's own covariance and
        half the mean over its 3x3 neighbourhood, each about its own mean, then shrunk towards the
        identity by ``shrinkage``.
        """
        mean = self.total / self.count
        features = mean.shape[1]
        middle = mean.double().mean(0)
        covariance = self.products.double().mean(0) / self.count - torch.outer(middle, middle)
        values, vectors = torch.linalg.eigh(covariance)
        # Photographs that are all the same leave no variance at all.
        values = values.clamp_min(1e-12)
        whiten = ((vectors * (values + RIDGE * values.mean()).rsqrt()) @ vectors.T).float()

        own = self.products / self.count - mean[:, :, None] * mean[:, None, :]
        own = whiten @ own @ whiten
        around = own.reshape(rows, cols, -1).permute(2, 0, 1)[:, None]
        # Only neighbours that exist count.
        around = F.avg_pool2d(around, 3, 1, 1, count_include_pad=False)
        around = around[:, 0].permute(1, 2, 0).reshape(-1, features, features)
        mixed = (1 - shrinkage) * (own + around) / 2 + shrinkage * torch.eye(features)
        factor = torch.linalg.cholesky(mixed)
        return mean, torch.linalg.solve_triangular(factor, whiten.expand_as(factor), upper=False)


class Regression:
    """Running sums of how well z_g tells z_l."""

    def __init__(self) -> None:
        self.count, self.error = 0, 0.0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, local: Tensor, global_: Tensor) -> None:
        """Take features [B, P, D] in."""
        flat = local.double().flatten(0, 1)
        self.count += len(flat)
        self.error += float((flat - global_.flatten(0, 1)).square().sum())
        self.total = self.total + flat.sum(0)
        self.squares = self.squares + flat.square().sum(0)

    @property
    def r2(self) -> float:
        """Share of the variance of z_l, about one mean over all patches, that z_g explains."""
        variance = self.squares - self.total.square() / self.count
        return 1 - self.error / max(float(variance.sum()), 1e-12)


class NormalScores(NamedTuple):
    """What one scale gives on held-out normal images.

    Attributes
    ----------
    inconsistency, distortion : ndarray
        The two patch scores, [B, P].
    maps : HeadMaps
        Their maps.
    r2 : float
        Share of the variance of z_l that z_g explains.
    """

    inconsistency: np.ndarray
    distortion: np.ndarray
    maps: HeadMaps
    r2: float


@torch.inference_mode()
def calibrate(
    model: Glance,
    cache: ImageCache,
    train: np.ndarray,
    held_out: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Estimate whitening on training images, and moments and thresholds on held-out ones.

    Parameters
    ----------
    model : Glance
        Changed in place: ``residual_mean``, ``whitening`` and ``calibration``.
    cache : ImageCache
        Normal images.
    train, held_out : ndarray of int
        Indices of the images that whitening comes from, and of those that all else comes from.
    progress : callable, optional
        Called with (images done, images in all).
    """
    config = model.config
    # Rounding is noise far below what normal images differ by.
    precision = "bf16" if has_bf16(model.device) else "fp32"
    fit = np.random.default_rng(config.seed).permutation(train)[:WHITENING_IMAGES]
    fit = fit if config.blend == "calibrated" else fit[:0]
    total = len(fit) + len(held_out)

    def features(indices: np.ndarray, done: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        for start in range(0, len(indices), model.at_once):
            part = indices[start : start + model.at_once]
            yield model.features(cache.batch(part), precision=precision)
            if progress:
                progress(done + start + len(part), total)

    if len(fit):
        whiten(model, features(fit, 0))
    scores = normal_scores(model, features(held_out, len(fit)))
    aspect = float(np.median([width / height for height, width in cache.shapes]))
    model.calibration = dataclasses.replace(calibration_of(scores, config), aspect=aspect)


def whiten(model: Glance, features: Iterable[list[tuple[Tensor, Tensor]]]) -> None:
    """Set ``residual_mean`` and ``whitening`` of every scale from features (z_l, z_g) of normal images."""
    sums = [ResidualMoments(len(s.grid), s.local.features) for s in model.scales]
    for chunk in features:
        for moments, (local, global_) in zip(sums, chunk, strict=True):
            moments.add((local - global_).cpu())
    for scale, moments in zip(model.scales, sums, strict=True):
        mean, whitening = moments.whitening(scale.grid.rows, scale.grid.cols, model.config.shrinkage)
        scale.residual_mean.copy_(mean)
        scale.whitening.copy_(whitening)


def normal_scores(model: Glance, features: Iterable[list[tuple[Tensor, Tensor]]]) -> list[NormalScores]:
    """Scores and maps of held-out normal images, one set a scale."""
    chunks: list[list[NormalScores]] = []
    regressions = [Regression() for _ in model.scales]
    for chunk in features:
        scores = [s.patch_scores(*f, ScaleStatistics()) for s, f in zip(model.scales, chunk, strict=True)]
        for regression, (local, global_) in zip(regressions, chunk, strict=True):
            regression.add(local.cpu(), global_.cpu())
        chunks.append(
            [
                NormalScores(
                    s.inconsistency.cpu().numpy(),
                    s.distortion.cpu().numpy(),
                    HeadMaps(*(m.cpu() for m in maps)),
                    math.nan,
                )
                for s, maps in zip(scores, model.head_maps(scores), strict=True)
            ]
        )
    return [
        NormalScores(
            np.concatenate([part.inconsistency for part in scale]),
            np.concatenate([part.distortion for part in scale]),
            HeadMaps(*(torch.cat(m) for m in zip(*(part.maps for part in scale), strict=True))),
            regression.r2,
        )
        for scale, regression in zip(zip(*chunks, strict=True), regressions, strict=True)
    ]


def share_of(r2: float) -> float:
    """λ_s for a scale whose Global-Net explains ``r2`` of Local-Net's features.

    Where the surrounding says little of the patch (textures), the distortion head is as good or better; where
    it says much (objects), defects of structure are what that head was not trained for, and it hides them.
    """
    return min(MOST_SHARE, 0.5 + max(r2, 0.0))


def calibration_of(scores: list[NormalScores], config: Config) -> Calibration:
    """Moments and thresholds from the scores of held-out normal images."""
    statistics = []
    for scale in scores:
        if config.blend == "paper":
            statistics.append(ScaleStatistics(lambda_s=config.lambda_s))
            continue
        heads = ScaleStatistics(
            inconsistency=Moments.of(scale.inconsistency),
            distortion=Moments.of(scale.distortion),
            inconsistency_map=Moments.of(scale.maps.inconsistency),
            distortion_map=Moments.of(scale.maps.distortion),
            inconsistency_peak=Moments.of(scale.maps.inconsistency.amax((1, 2))),
            distortion_peak=Moments.of(scale.maps.distortion.amax((1, 2))),
            lambda_s=config.lambda_s if config.lambda_s is not None else share_of(scale.r2),
        )
        blend = blend_heads(scale.maps, heads)
        statistics.append(dataclasses.replace(heads, map=Moments.of(blend)))
    calibration = Calibration(tuple(statistics), quantile=config.quantile)
    blended, image = combine([scale.maps for scale in scores], config, calibration)
    return dataclasses.replace(
        calibration,
        threshold=upper_threshold(image.numpy(), config.quantile),
        pixel_threshold=upper_threshold(blended.amax((1, 2)).numpy(), config.quantile),
        scores=tuple(map(float, image)),
    )
