"""What the machine can do."""

from __future__ import annotations

import torch

from glance_fast.errors import UserError


def pick_device(name: str) -> torch.device:
    """``"auto"`` to a CUDA device where there is one; any other name as it is.

    Raises
    ------
    UserError
        The device is unknown or not to be had.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch ({torch.__version__}) finds no CUDA device")
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are faster than float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()
