"""Inverse-distance-weighted maps: from the scores of a grid of patches to a score for every pixel."""

from __future__ import annotations

import numbers
from typing import TypeVar

import numpy as np
import torch

from glance_fast.kernels.dispatch import choose_backend
from glance_fast.kernels.idw import cpu, reference

__all__ = ["idw_map"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Squares and their sums stay far from the end of float32, in which ratios of them are taken.
_FARTHEST = 1e9
# Above, the map is the nearest centre's score for every practical purpose, and ratios round too far.
_HIGHEST_POWER = 100


def _checked_axis(centers: np.ndarray, length: int, name: str) -> np.ndarray:
    if isinstance(centers, torch.Tensor):
        centers = centers.detach().cpu().numpy()
    axis = np.asarray(centers)
    if axis.dtype.kind not in "uif":
        raise TypeError(f"{name} must hold real numbers, got {axis.dtype}")
    if axis.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},) as scores has, got {axis.shape}")
    axis = np.ascontiguousarray(axis, dtype=np.float64)
    if not (np.abs(axis) <= _FARTHEST).all():
        raise ValueError(f"{name} must be finite and within {_FARTHEST:g} pixels")
    if (np.diff(axis) <= 0).any():
        raise ValueError(f"{name} must ascend strictly")
    return axis


def _checked_count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _checked_power(power: float) -> float:
    if isinstance(power, bool) or not isinstance(power, numbers.Real):
        raise TypeError(f"power must be a real number, got {type(power).__name__}")
    if not 0 <= power <= _HIGHEST_POWER:
        raise ValueError(f"power must lie in [0, {_HIGHEST_POWER}], got {power}")
    return float(power)


def _as_floating(scores: Array) -> Array:
    """float32, unless float64 was given."""
    if isinstance(scores, torch.Tensor):
        if scores.is_complex() or scores.dtype == torch.bool:
            raise TypeError(f"scores must hold real numbers, got {scores.dtype}")
        return scores if scores.dtype == torch.float64 else scores.float()
    if scores.dtype.kind not in "uif":
        raise TypeError(f"scores must hold real numbers, got {scores.dtype}")
    return scores.astype(np.float64 if scores.dtype == np.float64 else np.float32, copy=False)


def idw_map(
    scores: Array,
    centers_y: np.ndarray,
    centers_x: np.ndarray,
    height: int,
    width: int,
    power: float = 2.0,
    neighbours: int | None = None,
    *,
    backend: str = "auto",
) -> Array:
    """Interpolate the scores of a grid of patches at every pixel, by inverse distance.

    At a pixel that lies d_c from centre c, the map is ``sum(d_c**-power * s_c) / sum(d_c**-power)`` over
    the centres; at a centre itself it is exactly that centre's score (the paper's anomaly map, from the
    patch scores of Eq. 13).

    Parameters
    ----------
    scores : ndarray or Tensor [B, gh, gw]
        Finite scores (not checked). B may be 0.
    centers_y, centers_x : array of float [gh], [gw]
        Where the rows and columns of patches are centred, in pixels, strictly ascending; pixel i is
        centred at i. They may lie outside the image and need not be evenly spaced.
    height, width : int
        Size of the map, in pixels.
    power : float
        In [0, 100]. With 0, a pixel that is no centre gets the mean.
    neighbours : int, optional
        Use only so many of the nearest centres; of equally near ones those of lower raster index. By
        default all.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" is "cpu" for arrays and tensors on the CPU; on a CUDA device "triton", but "reference" for
        float64, which that has not; and "reference" elsewhere.

    Returns
    -------
    ndarray or Tensor [B, height, width]
        Of the kind and on the device of ``scores``; float64 if they are, else float32.

    Raises
    ------
    TypeError
        An argument of the wrong kind; "triton" is asked for float64 or for an array.
    ValueError
        Shapes that do not fit, centres that do not ascend, ``power`` or ``neighbours`` out of range,
        scores that require a gradient (there is none), or a backend that cannot run where they are.

    Notes
    -----
    With ``neighbours`` a table of a geometry's neighbours and weights is kept, 8 bytes a pixel and
    neighbour in float32, on the CPU and on each device that used it; those of the last four geometries
    stay. Without, a CUDA device keeps a few numbers a row and column.

    On a CUDA device nothing waits for the device, but for the first map of a geometry, and where centres
    are given as tensors of the device.

    Examples
    --------
    >>> scores = np.array([[[0.0, 1.0]]], np.float32)  # two patches side by side
    >>> idw_map(scores, [0.0], [0.0, 4.0], height=1, width=5).round(2)
    array([[[0. , 0.1, 0.5, 0.9, 1. ]]], dtype=float32)
    """
    if not isinstance(scores, (torch.Tensor, np.ndarray)):
        raise TypeError(f"scores must be a NumPy array or a torch tensor, got {type(scores).__name__}")
    if scores.ndim != 3 or not scores.shape[1] or not scores.shape[2]:
        raise ValueError(f"scores must be [B, gh, gw] with gh, gw >= 1, got shape {tuple(scores.shape)}")
    if isinstance(scores, torch.Tensor) and scores.requires_grad and torch.is_grad_enabled():
        raise ValueError("scores require a gradient, which idw_map does not compute: detach them first")
    device = scores.device if isinstance(scores, torch.Tensor) else torch.device("cpu")
    chosen = choose_backend(backend, device)
    scores = _as_floating(scores)
    # An array's type is none of torch's.
    if chosen == "triton" and scores.dtype != torch.float32:
        if backend != "auto":
            raise TypeError("backend: 'triton' takes tensors, and computes in float32; use 'reference'")
        chosen = "reference"
    centers_y = _checked_axis(centers_y, scores.shape[1], "centers_y")
    centers_x = _checked_axis(centers_x, scores.shape[2], "centers_x")
    height, width = _checked_count(height, "height"), _checked_count(width, "width")
    power = _checked_power(power)
    if neighbours is not None:
        neighbours = _checked_count(neighbours, "neighbours")
        if neighbours > scores.shape[1] * scores.shape[2]:
            raise ValueError(
                f"neighbours is {neighbours}, scores has {scores.shape[1] * scores.shape[2]} centres"
            )
    geometry = (centers_y, centers_x, height, width, power, neighbours)
    if isinstance(scores, np.ndarray):
        return (reference if chosen == "reference" else cpu).idw_map(scores, *geometry)
    scores = scores.detach()
    if chosen == "cpu":
        return torch.from_numpy(cpu.idw_map(scores.numpy(), *geometry))
    if chosen == "reference":
        return reference.idw_map_torch(scores, *geometry)
    # Not every machine has Triton.
    from glance_fast.kernels.idw import gpu

    return gpu.idw_map(scores, *geometry)
