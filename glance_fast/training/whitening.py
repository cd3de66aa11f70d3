"""Whitening of what Local-Net and Global-Net differ by on normal images, a matrix for every position.

Every normal image is scored by a whitening that has not seen it (cross-conformal prediction).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.engines.memory import MIB
from glance_fast.geometry import PatchGrid
from glance_fast.model import Glance
from glance_fast.training.normal import Residuals

# Parts of the normal images, each scored by a whitening fitted to the others.
FOLDS = 5
# Added to eigenvalues of the global covariance, as a share of their mean.
RIDGE = 1e-3
# Rows of the grid whose covariances are held at a time: so many, or fewer where they would take more.
BAND, BAND_BYTES = 8, 512 * MIB

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
    band = max(1, min(BAND, limit // row_bytes(grid, count, features) - 2))
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


def row_bytes(grid: PatchGrid, images: int, features: int) -> int:
    """What ``whitenings`` holds of a row of the grid: two copies of residuals, and ten matrices a place."""
    return grid.cols * features * 4 * (2 * images + 10 * features)
