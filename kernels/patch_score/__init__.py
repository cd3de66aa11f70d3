"""Patch scores from local and global features (Eq. 11 to 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glance_fast.kernels.dispatch import choose_backend
from glance_fast.kernels.patch_score.cpu import score_patches_cpu
from glance_fast.kernels.patch_score.reference import DistortionWeights, PatchScores, score_patches_reference

__all__ = ["DistortionWeights", "PatchScores", "score_patches"]

# Features and hidden units that the Triton kernel's registers hold.
MOST = 256


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
        "auto" is "cpu" on a CPU, "triton" on a CUDA device and "reference" elsewhere. It is "reference" too
        for what the other two cannot do: gradients; on a CUDA device float64, or more than 256 features
        or hidden units.

    Returns
    -------
    PatchScores
        ``blended``, ``inconsistency`` and ``distortion``, each [B, P]. A NaN in a patch's features is in
        that patch's scores, and in no other's.

    Raises
    ------
    ValueError
        A shape, a device, a scale, ``lambda_s`` or ``backend`` is not as described above; "cpu" or "triton"
        is asked for gradients; "triton" is asked for more than 256 features or hidden units.
    TypeError
        An argument is no tensor, or its dtype is not floating point; ``local`` and ``global_`` are not both
        float32 or both float64; ``distortion`` is no ``DistortionWeights``, or of another dtype; "triton" is
        asked for float64.

    Examples
    --------
    >>> from glance_fast.nets.heads import DistortionHead
    >>> head = DistortionHead(features=8).eval()
    >>> local, global_ = torch.ones(1, 4, 8), torch.zeros(1, 4, 8)  # four patches of an image
    >>> with torch.no_grad():
    ...     score_patches(local, global_, head.folded()).inconsistency.round(decimals=3)
    tensor([[1., 1., 1., 1.]])
    """
    _check_tensors(local, global_, distortion, mean, whitening)
    for name, (middle, width) in (
        ("inconsistency_scale", inconsistency_scale),
        ("distortion_scale", distortion_scale),
    ):
        if not (math.isfinite(middle) and math.isfinite(width) and width > 0):
            raise ValueError(f"{name}: expected (finite mean, positive deviation), got {(middle, width)}")
    if not 0 <= lambda_s <= 1:
        raise ValueError(f"lambda_s: must lie in [0, 1], got {lambda_s}")
    chosen = choose_backend(backend, local.device)
    tensors = [t for t in (local, global_, mean, whitening, *distortion) if t is not None]
    refusal = _refusal(chosen, tensors, len(distortion.first_bias))
    if refusal is not None:
        if backend != "auto":
            raise refusal
        chosen = "reference"
    return RUN[chosen](
        local, global_, mean, whitening, distortion, inconsistency_scale, distortion_scale, float(lambda_s)
    )


def _score_patches_gpu(*arguments) -> PatchScores:
    # Not every machine has Triton.
    from glance_fast.kernels.patch_score.gpu import score_patches_gpu

    return score_patches_gpu(*arguments)


RUN = {"reference": score_patches_reference, "cpu": score_patches_cpu, "triton": _score_patches_gpu}


def _refusal(chosen: str, tensors: list[Tensor], units: int) -> Exception | None:
    """Why a backend cannot do what is asked, if so."""
    if chosen == "reference":
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return ValueError(
            f"backend: {chosen!r} computes no gradients; detach the tensors, or use 'reference'"
        )
    if chosen == "cpu":
        return None
    dtype, features = tensors[0].dtype, tensors[0].shape[2]
    if dtype != torch.float32:
        return TypeError(f"local, global_: 'triton' takes float32, got {dtype}; use 'reference'")
    if any(t.dtype == torch.float64 for t in tensors):
        return TypeError("mean, whitening: 'triton' takes no float64; use float32, or 'reference'")
    if max(features, units) > MOST:
        return ValueError(
            f"backend: 'triton' takes up to {MOST} features and hidden units, got {features} and {units}"
        )
    return None


def _check_tensors(
    local: Tensor,
    global_: Tensor,
    distortion: DistortionWeights,
    mean: Tensor | None,
    whitening: Tensor | None,
) -> None:
    if not isinstance(distortion, DistortionWeights):
        raise TypeError(f"distortion: expected DistortionWeights, got {type(distortion).__name__}")
    weights = {f"distortion.{name}": t for name, t in zip(distortion._fields, distortion, strict=True)}
    tensors = {"local": local, "global_": global_, "mean": mean, "whitening": whitening, **weights}
    for name, tensor in tensors.items():
        if tensor is None and name in ("mean", "whitening"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != local.device:
            raise ValueError(f"{name}: on {tensor.device}, but local is on {local.device}")
    if local.dim() != 3 or local.shape != global_.shape:
        raise ValueError(
            f"local, global_: expected one [B, P, D], got {tuple(local.shape)} and {tuple(global_.shape)}"
        )
    if local.dtype not in (torch.float32, torch.float64) or local.dtype != global_.dtype:
        raise TypeError(
            f"local, global_: expected one of float32 and float64, got {local.dtype} and {global_.dtype}"
        )
    patches, features = local.shape[1:]
    if distortion.local.shape[-1] != features:
        raise ValueError(f"distortion: made for {distortion.local.shape[-1]} features, got {features}")
    units = len(distortion.local)
    expected = (*[(units, features)] * 3, (units,), (units, units), (units,), (units,), ())
    for (name, tensor), shape in zip(weights.items(), expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != local.dtype:
            raise TypeError(f"{name}: {tensor.dtype}, but local is {local.dtype}")
    for name, tensor, shapes in (
        ("mean", mean, ((features,), (patches, features))),
        ("whitening", whitening, ((features, features), (patches, features, features))),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            raise ValueError(f"{name}: expected shape {shapes[0]} or {shapes[1]}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected floating point, got {tensor.dtype}")
