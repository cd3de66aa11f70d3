"""The operators' C code, where it was compiled with the package; it runs on torch's own threads.

PyTorch's OpenMP is the one pool: a second one, whose threads wait for work while the first one's run, costs
more than what it does. Without a compiler at installation there is no C code, and Numba does the same.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code; None where there is none, or torch has no OpenMP that it could run on."""
    paths = (Path(__file__).parent / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES)
    path = next((p for p in paths if p.is_file()), None)
    if path is None or parallel() is None:
        return None
    found = ctypes.CDLL(str(path))
    found.glance_window_conv_block.argtypes = [ctypes.c_int, ctypes.c_int64]
    found.glance_window_conv_block.restype = ctypes.c_int64
    return found


@cache
def parallel() -> Any:
    """``GOMP_parallel`` of the OpenMP that torch is linked with; None where that has none."""
    try:
        return ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None


def compiled() -> str | None:
    """What the C code's products use of this processor; None where there is no C code."""
    return (
        None
        if library() is None
        else ("the least", "AVX2", "AVX-512", "AVX-512 with bfloat16")[instruction_sets() - 1]
    )


@cache
def instruction_sets() -> int:
    """How many of the instruction sets that the code was compiled for this processor has; at least one."""
    found = library()
    assert found is not None
    return found.glance_instruction_sets()
