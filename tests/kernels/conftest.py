"""Kernel tests: where Triton's kernels run, and memory that shows what was not written."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton's kernels run: a GPU, or the CPU in Triton's interpreter."""
    return DEVICE


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(float("nan"))
    return tensor.fill_(-77) if tensor.dtype in (torch.int32, torch.int64) else tensor


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN, so that an output that was not written fails its test."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, allocate=allocate, **k: _poison(allocate(*a, **k)))
