"""Patch scores on the CPU: large or batched matrix products, on as much at a time as the caches hold.

The patches come first where the reference's einsum walks patch by patch through strided features, so that
each patch's whitening matrix is read once for all images, and in its stored half precision: Numba widens it
in registers, because widening it into memory costs as much as the product. Buffers are filled again and
again instead of allocated: so do fresh pages.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from glance_fast.kernels.patch_score.reference import DistortionWeights, PatchScores

# Patches whose whitening matrices are widened at a time: 64 of 128x128 in float32 are 4 MiB.
CHUNK = 64
# Rows of the perceptron at a time: 1024 of 128 float32 are 512 KiB.
ROWS = 1024


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
    """Scores of features [B, P, D]; see ``score_patches``. Not differentiable."""
    with torch.no_grad():
        inconsistency = _inconsistency(local, global_, mean, whitening)
        score = _distortion(local, global_, distortion)
        (a, b), (c, d) = inconsistency_scale, distortion_scale
        blended = (lambda_s / b) * (inconsistency - a) + ((1 - lambda_s) / d) * (score - c)
    return PatchScores(blended, inconsistency, score)


def _inconsistency(local: Tensor, global_: Tensor, mean: Tensor | None, whitening: Tensor | None) -> Tensor:
    """s_IAD [B, P], Eq. 11."""
    images, patches, features = local.shape
    by_patch = whitening is not None and whitening.dim() == 3
    if (
        whitening is not None
        and by_patch
        and (whitening.dtype, local.dtype) == (torch.float16, torch.float32)
    ):
        mean = (local.new_zeros(features) if mean is None else mean).expand(patches, features)
        norms = np.empty((images, patches), np.float32)
        bits = whitening.contiguous().view(torch.uint16)
        z_l, z_g, middle, matrix = (t.detach().contiguous().numpy() for t in (local, global_, mean, bits))
        whitened_norms(z_l, z_g, middle, matrix, norms)
        return torch.from_numpy(norms)

    chunk = max(1, min(CHUNK if by_patch else ROWS // max(images, 1), patches))
    shape = chunk, images, features
    residual, whitened = local.new_empty(shape), local.new_empty(shape)
    matrices = local.new_empty(chunk, features, features) if by_patch else None
    if whitening is not None and not by_patch:
        whitening = whitening.to(local.dtype).mT
    out = local.new_empty(patches, images)
    for start in range(0, patches, chunk):
        part = slice(start, min(start + chunk, patches))
        r, w = residual[: part.stop - start], whitened[: part.stop - start]
        torch.sub(local[:, part].transpose(0, 1), global_[:, part].transpose(0, 1), out=r)
        if mean is not None:
            r -= mean if mean.dim() == 1 else mean[part, None]
        if whitening is None:
            w = r
        elif matrices is not None:
            torch.bmm(r, matrices[: len(r)].copy_(whitening[part]).mT, out=w)
        else:
            torch.mm(r.view(-1, features), whitening, out=w.view(-1, features))
        torch.linalg.vector_norm(w, dim=-1, out=out[part])
    return out.square_().div_(features).mT.contiguous()


def _distortion(local: Tensor, global_: Tensor, w: DistortionWeights) -> Tensor:
    """s_DAD [B, P], Eq. 12."""
    shape, features, units = local.shape[:2], local.shape[2], len(w.first_bias)
    local, global_ = local.reshape(-1, features), global_.reshape(-1, features)
    rows = min(ROWS, len(local))
    square, first, second = (local.new_empty(rows, n) for n in (features, units, units))
    logits = local.new_empty(len(local))
    for start in range(0, len(local), ROWS):
        z_l, z_g = local[start : start + ROWS], global_[start : start + ROWS]
        s, h1, h2 = (buffer[: len(z_l)] for buffer in (square, first, second))
        torch.sub(z_l, z_g, out=s).square_()
        torch.addmm(w.first_bias, s, w.square.mT, out=h1)
        h1.addmm_(z_l, w.local.mT).addmm_(z_g, w.global_.mT).relu_()
        torch.addmm(w.second_bias, h1, w.second.mT, out=h2).relu_()
        torch.mv(h2, w.last, out=logits[start : start + ROWS])
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    return logits.add_(w.last_bias).neg_().sigmoid_().view(shape)


@intrinsic
def half_to_float(typing, bits):
    """float32 of a float16's bits (uint16): the processor's own conversion, which vectorises."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


# Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning.
@njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def half_dots(bits, a, b):
    """Dot products of float16 as bits, uint16 [D], with two vectors float32 [D]."""
    sum_a = np.float32(0)
    sum_b = np.float32(0)
    for i in range(bits.shape[0]):
        value = half_to_float(bits[i])
        sum_a += value * a[i]
        sum_b += value * b[i]
    return sum_a, sum_b


@njit(cache=True, parallel=True)
def whitened_norms(local, global_, mean, whitening, out):
    """out[b, p] = |W_p (z_l - z_g - m_p)|² / D.

    Parameters: local and global_ float32 [B, P, D], mean float32 [P, D], whitening uint16 [P, D, D],
    the bits of float16, out float32 [B, P].
    """
    images, patches, features = local.shape
    for p in prange(patches):
        # Zeros beside an odd last image; four sums at a time are slower: adding lanes up costs too much.
        residual = np.zeros((images + images % 2, features), np.float32)
        for b in range(images):
            for i in range(features):
                residual[b, i] = local[b, p, i] - global_[b, p, i] - mean[p, i]
        for b in range(0, images, 2):
            norm_a = np.float32(0)
            norm_b = np.float32(0)
            for i in range(features):
                a, c = half_dots(whitening[p, i], residual[b], residual[b + 1])
                norm_a += a * a
                norm_b += c * c
            out[b, p] = norm_a / np.float32(features)
            if b + 1 < images:
                out[b + 1, p] = norm_b / np.float32(features)
