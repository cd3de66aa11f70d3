"""Patch scores on the CPU: every product is one large or one batched matrix product.

The reference's einsum walks patch by patch through strided features; here the patches come first, so
that each patch's whitening matrix is read once for all images, and in its stored half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.patch_score.reference import DistortionWeights, PatchScores

# Patches whose whitening matrices are widened at a time: 64 of 128x128 in float32 are 4 MiB.
CHUNK = 64


def score_patches_cpu(
    local: Tensor,
    global_: Tensor,
    mean: Tensor | None,
    whitening: Tensor | None,
    distortion: DistortionWeights,
    inconsistency_scale: tuple[float, float],
    distortion_scale: tuple[float, float],
    lambda_s: float,
) -> PatchScores:
    """Scores of features [B, P, D]; see ``score_patches``."""
    residual = local - global_
    inconsistency = _mahalanobis(residual if mean is None else residual - mean, whitening)

    w = distortion
    flat = residual.flatten(0, 1).square()
    hidden = torch.addmm(w.first_bias, flat, w.square.mT)
    hidden = hidden.addmm_(local.flatten(0, 1), w.local.mT).addmm_(global_.flatten(0, 1), w.global_.mT)
    hidden = torch.addmm(w.second_bias, hidden.relu_(), w.second.mT).relu_()
    score = torch.sigmoid(-(hidden @ w.last + w.last_bias)).view(local.shape[:2])

    (a, b), (c, d) = inconsistency_scale, distortion_scale
    blended = (lambda_s / b) * (inconsistency - a) + ((1 - lambda_s) / d) * (score - c)
    return PatchScores(blended, inconsistency, score)


def _mahalanobis(residual: Tensor, whitening: Tensor | None) -> Tensor:
    if whitening is None:
        return residual.square().mean(-1)
    if whitening.dim() == 2:
        return (residual @ whitening.to(residual.dtype).mT).square().mean(-1)
    by_patch = residual.transpose(0, 1).contiguous()  # [P, B, D]
    out = residual.new_empty(by_patch.shape[:2])
    for start in range(0, len(by_patch), CHUNK):
        part = slice(start, start + CHUNK)
        whitened = torch.bmm(by_patch[part], whitening[part].to(residual.dtype).mT)
        out[part] = whitened.square().mean(-1)
    return out.T
