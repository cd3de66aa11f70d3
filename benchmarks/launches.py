"""The launches of the default net that ``ahead_of_time`` compiles: 256x256 pixels, patches of 32 at stride 8.

Only types, shapes and alignment matter here; no memory is touched. Each case calls a launcher of an
operator's ``gpu.py`` with tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CASES: dict[str, Callable[[], Any]] = {}


def case(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function as the case ``name``."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name] = function
        return function

    return register
