"""Bilinear reading of windows on the CPU: C code, a window a thread; torch where the package has none."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from glance_fast.kernels.native import library, parallel
from glance_fast.kernels.window_conv.reference import WindowedMap
from glance_fast.kernels.window_sample.reference import window_sample_reference

SIZES = (
    "count", "places", "points", "channels", "height", "width", "window_height", "window_width", "bfloat16",
)  # fmt: skip
POINTERS = ("base", "window", "origins", "images", "cells", "out")


class Reading(ctypes.Structure):
    """``Reading`` of native.c, field by field."""

    _fields_ = [(name, ctypes.c_int64) for name in SIZES] + [(name, ctypes.c_void_p) for name in POINTERS]


def window_sample_cpu(source: WindowedMap, images: Tensor, cells: Tensor) -> Tensor:
    """[P, R, C]; see ``window_sample``."""
    base, window, origins, _ = source
    found = library()
    if found is None or base.dtype not in (torch.float32, torch.bfloat16):
        return window_sample_reference(source, images, cells)
    out = torch.empty(len(images), cells.shape[1], base.shape[1])
    # Kept until the call is over.
    index = images.long().contiguous()
    first = None if origins is None else origins.long().contiguous()
    cells = cells.contiguous()
    pointers = (base, window, first, index, cells, out)
    reading = Reading(
        count=len(images),
        places=len(cells),
        points=cells.shape[1],
        channels=base.shape[1],
        bfloat16=base.dtype == torch.bfloat16,
        **{k: None if t is None else t.data_ptr() for k, t in zip(POINTERS, pointers, strict=True)},
    )
    reading.height, reading.width = base.shape[2:]
    if window is not None:
        reading.window_height, reading.window_width = window.shape[2:]
    found.glance_window_sample(ctypes.byref(reading), parallel(), torch.get_num_threads())
    return out
