"""Bilinear reading of windows over a shared base: what the dense engine's head is given."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.dispatch import choose_backend, refuse
from glance_fast.kernels.window_conv.reference import WindowedMap
from glance_fast.kernels.window_sample.cpu import window_sample_cpu
from glance_fast.kernels.window_sample.reference import window_sample_reference

__all__ = ["window_sample", "window_sample_inner", "window_sample_reference"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def window_sample(
    base: Tensor,
    images: Tensor,
    cells: Tensor,
    *,
    window: Tensor | None = None,
    window_origins: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Values of masked images' maps between their places, each map given as ``window_conv2d`` gives it.

    The map of window p is ``base[images[p]]``, with ``window[p]`` added where that covers it. A value is
    interpolated between the four places around it, first along rows; beyond the outermost places it is
    that of the nearest.

    Parameters
    ----------
    base : Tensor
        [N, C, H, W], maps of the unmasked images; float32, float16 or bfloat16, and for the reference and
        the CPU float64. Here and below channels-last is taken as it is, any other layout copied.
    images : Tensor
        Integer [P], the image that each window belongs to.
    cells : Tensor
        Float32 [P, R, 2], (x, y) of what is read, in places of the map: (0, 0) is the middle of the first.
    window : Tensor, optional
        [P, C, h, w], differences from the base.
    window_origins : Tensor, optional
        Integer [P, 2], (top, left) of each ``window`` in the map; all lie within it.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" takes "cpu" on a CPU, "triton" on a CUDA device and "reference" elsewhere.

    Returns
    -------
    Tensor
        [P, R, C]; float32, of float64 maps float64.

    Raises
    ------
    TypeError
        An argument is no tensor, or has a dtype that does not fit.
    ValueError
        A shape, a device, an index or ``backend`` does not fit; a tensor requires a gradient. On a CUDA
        device an index is not waited for: it fails there, as an assertion of the device, at a later call.
    """
    _check(base, images, cells, window, window_origins)
    backend = choose_backend(backend, base.device)
    if backend == "triton" and base.dtype == torch.float64:
        raise TypeError("base: float64 has no Triton kernel; use backend='reference'")
    source = WindowedMap(_channels_last(base))
    if window is not None and window_origins is not None:
        source = source._replace(window=_channels_last(window), origins=window_origins.contiguous())
    return window_sample_inner(source, images.contiguous(), cells.contiguous(), backend)


def window_sample_inner(source: WindowedMap, images: Tensor, cells: Tensor, backend: str = "auto") -> Tensor:
    """The same between the parts of a net, which keep what is needed: nothing is checked or waited for.

    Parameters
    ----------
    source : WindowedMap
        ``base``, ``window`` and ``window_origins`` of ``window_sample``; maps are channels-last.
    images : Tensor
        Integer [P].
    cells : Tensor
        As there. These and the windows' origins may be of n windows where P is a multiple of n: window p
        then has those of p mod n.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" is known to be right; the others are trusted.

    Returns
    -------
    Tensor
        [P, R, C].
    """
    if backend == "auto":
        backend = choose_backend(backend, source.base.device)
    if backend == "triton":
        # Triton is there on Linux alone.
        from glance_fast.kernels.window_sample.gpu import window_sample_triton as run
    else:
        run = window_sample_cpu if backend == "cpu" else window_sample_reference
    with torch.no_grad():
        return run(source, images, cells)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _check(base, images, cells, window, window_origins) -> None:
    named = {
        "base": base,
        "images": images,
        "cells": cells,
        "window": window,
        "window_origins": window_origins,
    }
    for name, tensor in named.items():
        if tensor is None and name.startswith("window"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != base.device:
            raise ValueError(f"{name}: on {tensor.device}, but base is on {base.device}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: requires a gradient, and window_sample has none; use torch.no_grad()")
    if base.dtype not in DTYPES:
        raise TypeError(f"base: expected float32, float16, bfloat16 or float64, got {base.dtype}")
    if cells.dtype != torch.float32:
        raise TypeError(f"cells: expected float32, got {cells.dtype}")
    for name, tensor in (("images", images), ("window_origins", window_origins)):
        if tensor is not None and tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected int32 or int64, got {tensor.dtype}")
    if base.dim() != 4 or 0 in base.shape[1:]:
        raise ValueError(f"base: expected [N, C, H, W], got shape {tuple(base.shape)}")
    if images.dim() != 1:
        raise ValueError(f"images: expected [P], got shape {tuple(images.shape)}")
    count = len(images)
    if cells.dim() != 3 or cells.shape[0] != count or cells.shape[2] != 2:
        raise ValueError(f"cells: expected [{count}, R, 2], got shape {tuple(cells.shape)}")
    refuse(((images < 0) | (images >= len(base))).any(), f"images: not within {len(base)} images everywhere")
    refuse(~cells.isfinite().all(), "cells: not finite everywhere")
    if (window is None) != (window_origins is None):
        raise ValueError("window_origins: goes with window, both or neither")
    if window is None:
        return
    if window.dtype != base.dtype:
        raise TypeError(f"window: {window.dtype}, but base is {base.dtype}")
    if window.dim() != 4 or window.shape[:2] != (count, base.shape[1]) or 0 in window.shape[2:]:
        raise ValueError(
            f"window: expected [{count}, {base.shape[1]}, h, w], got shape {tuple(window.shape)}"
        )
    if tuple(window_origins.shape) != (count, 2):
        raise ValueError(f"window_origins: expected [{count}, 2], got shape {tuple(window_origins.shape)}")
    for axis in (0, 1):
        first, limit = window_origins[:, axis], base.shape[2 + axis] - window.shape[2 + axis]
        refuse(((first < 0) | (first > limit)).any(), "window_origins: a window does not lie within the map")
