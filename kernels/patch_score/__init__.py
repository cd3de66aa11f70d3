"""Patch scores from local and global features (Eq. 11 to 13)."""

from __future__ import annotations

import math

from torch import Tensor

from glance_fast.kernels.patch_score.cpu import score_patches_cpu
from glance_fast.kernels.patch_score.reference import DistortionWeights, PatchScores, score_patches_reference

__all__ = ["DistortionWeights", "PatchScores", "score_patches"]

BACKENDS = ("auto", "reference", "cpu", "triton")


def score_patches(
    local: Tensor,
    global_: Tensor,
    distortion: DistortionWeights,
    *,
    mean: Tensor | None = None,
    whitening: Tensor | None = None,
    inconsistency_scale: tuple[float, float] = (0.0, 1.0),
    distortion_scale: tuple[float, float] = (0.0, 1.0),
    lambda_s: float = 0.8,
    backend: str = "auto",
) -> PatchScores:
    r"""Anomaly scores of patches, Eq. 11, 12 and 13 of *Glancing at the Patch*.

    .. math::
        s_{IAD} &= \tfrac{1}{D} \lVert W (z_l - z_g - m) \rVert_2^2 \\
        s_{DAD} &= 1 - C(z_l, z_g) \\
        s &= \lambda_s \frac{s_{IAD} - a}{b} + (1 - \lambda_s) \frac{s_{DAD} - c}{d}

    Parameters
    ----------
    local, global_ : Tensor
        z_l and z_g, [B, P, D], float32 or float64.
    distortion : DistortionWeights
        The perceptron C.
    mean : Tensor, optional
        m, [D] or [P, D]; 0 if not given.
    whitening : Tensor, optional
        W, [D, D] or one for each patch [P, D, D]; the identity, Eq. 11 as it stands, if not given.
    inconsistency_scale, distortion_scale : (float, float)
        (a, b) and (c, d): mean and deviation that standardise the two scores.
    lambda_s : float
        Share of the inconsistency score, in [0, 1].
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" takes "cpu" for tensors on the CPU and "reference" elsewhere.

    Returns
    -------
    PatchScores
        ``blended``, ``inconsistency`` and ``distortion``, each [B, P].

    Raises
    ------
    ValueError
        A shape, a scale, ``lambda_s`` or ``backend`` does not fit ("triton" has no kernel here).
    TypeError
        Features are not floating point, or of two dtypes.
    """
    if local.dim() != 3 or local.shape != global_.shape:
        raise ValueError(
            f"local, global_: expected one [B, P, D], got {tuple(local.shape)} and {tuple(global_.shape)}"
        )
    if not local.is_floating_point() or local.dtype != global_.dtype:
        raise TypeError(f"local, global_: expected one floating dtype, got {local.dtype} and {global_.dtype}")
    patches, features = local.shape[1:]
    if distortion.local.shape[-1] != features:
        raise ValueError(f"distortion: made for {distortion.local.shape[-1]} features, got {features}")
    for name, tensor, shapes in (
        ("mean", mean, ((features,), (patches, features))),
        ("whitening", whitening, ((features, features), (patches, features, features))),
    ):
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise ValueError(f"{name}: expected shape {shapes[0]} or {shapes[1]}, got {tuple(tensor.shape)}")
    for name, (middle, width) in (
        ("inconsistency_scale", inconsistency_scale),
        ("distortion_scale", distortion_scale),
    ):
        if not (math.isfinite(middle) and math.isfinite(width) and width > 0):
            raise ValueError(f"{name}: expected (finite mean, positive deviation), got {(middle, width)}")
    if not 0 <= lambda_s <= 1:
        raise ValueError(f"lambda_s: must lie in [0, 1], got {lambda_s}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "triton":
        raise ValueError("backend: score_patches has no Triton kernel; use 'auto'")
    if backend == "cpu" and local.device.type != "cpu":
        raise ValueError(f"backend: 'cpu' asked for tensors on {local.device}")
    run = (
        score_patches_cpu
        if backend != "reference" and local.device.type == "cpu"
        else score_patches_reference
    )
    return run(
        local, global_, mean, whitening, distortion, inconsistency_scale, distortion_scale, float(lambda_s)
    )
