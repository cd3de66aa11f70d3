"""Patch scores as they are defined: Eq. 11, 12 and 13, one batch of features at a time.

s_IAD = |W (z_l - z_g - m)|² / D          (W = I, m = 0 is Eq. 11 as it stands)
s_DAD = 1 - C(z_l, z_g)                    (Eq. 12)
s     = λ_s (s_IAD - a)/b + (1 - λ_s) (s_DAD - c)/d     (a = c = 0, b = d = 1 is Eq. 13)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DistortionWeights(NamedTuple):
    """Weights of C: a perceptron of two hidden layers over z_l, z_g and (z_l - z_g)².

    The first layer is split by its three inputs, each [hidden, D].
    """

    local: Tensor
    global_: Tensor
    square: Tensor
    first_bias: Tensor  # [hidden]
    second: Tensor  # [hidden, hidden]
    second_bias: Tensor  # [hidden]
    last: Tensor  # [hidden]
    last_bias: Tensor  # []


class PatchScores(NamedTuple):
    """Scores of patches, each float [B, P]."""

    blended: Tensor
    inconsistency: Tensor
    distortion: Tensor


def score_patches_reference(
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
    whitened = residual if mean is None else residual - mean
    if whitening is not None:
        whitening = whitening.to(residual.dtype)
        if whitening.dim() == 2:
            whitened = whitened @ whitening.mT
        else:
            whitened = torch.einsum("pij,bpj->bpi", whitening, whitened)
    inconsistency = whitened.square().mean(-1)

    w = distortion
    hidden = local @ w.local.mT + global_ @ w.global_.mT + residual.square() @ w.square.mT + w.first_bias
    hidden = (hidden.relu() @ w.second.mT + w.second_bias).relu()
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    score = torch.sigmoid(-(hidden @ w.last + w.last_bias))

    (a, b), (c, d) = inconsistency_scale, distortion_scale
    blended = lambda_s * (inconsistency - a) / b + (1 - lambda_s) * (score - c) / d
    return PatchScores(blended, inconsistency, score)
