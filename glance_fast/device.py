"""What the machine can do."""

from __future__ import annotations

import os

import numba
import torch

from glance_fast.errors import UserError


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The one rule for devices: whatever trains or scores takes what this gives.

    Parameters
    ----------
    name : str or torch.device
        "auto" is a CUDA device where there is one, and the CPU where there is none; "cpu", "cuda" and such as
        "cuda:1" are what they are.

    Returns
    -------
    torch.device
        One with a number becomes the current device, on which Triton's kernels run.

    Raises
    ------
    UserError
        The device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {name}: no such device; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name}: not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: this PyTorch ({torch.__version__}) finds no CUDA device")
    if device.type == "cuda" and device.index is not None:
        devices = torch.cuda.device_count()
        if device.index >= devices:
            raise UserError(
                f"device {name}: this machine's CUDA devices number {devices}, the last is cuda:{devices - 1}"
            )
        torch.cuda.set_device(device)
    return device


def device_of_process(name: str | torch.device, local_rank: int, processes: int) -> str | torch.device:
    """One CUDA device for each process of a machine, where ``name`` leaves open which.

    Parameters
    ----------
    name : str or torch.device
        As for ``pick_device``.
    local_rank, processes : int
        The number of this process on this machine, from 0, and how many there are.

    Returns
    -------
    str or torch.device
        Such as ``"cuda:1"``, which becomes the current device; ``name`` where that is the CPU.

    Raises
    ------
    UserError
        The device is unknown or not available, or the machine has fewer than processes.
    """
    device = pick_device(name)
    if device.type != "cuda":
        return name
    if device.index is None:
        devices = torch.cuda.device_count()
        if processes > devices:
            raise UserError(
                f"device {name}: {processes} processes, but this machine's CUDA devices number {devices}; "
                f"give torchrun --nproc-per-node {devices}, or the CPU"
            )
        device = pick_device(f"cuda:{local_rank}")
    return str(device)


def use_threads(count: int | None) -> int:
    """Have PyTorch and Numba compute with one number of threads.

    Parameters
    ----------
    count : int, optional
        At least 1; what PyTorch has (``OMP_NUM_THREADS``, or the processor's cores) if not given. More than
        there are processors are as many as these: hundreds would only wait for each other.

    Returns
    -------
    int
        The number.
    """
    count = min(count or torch.get_num_threads(), max(os.cpu_count() or 1, torch.get_num_threads()))
    # Numba takes no more than it found processors when it was imported.
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # there at run time
    # Last: Numba starts its pool here, and with it sets PyTorch's threads to as many as there are processors.
    torch.set_num_threads(count)
    return count


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are faster than float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()
