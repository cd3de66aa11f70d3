"""Which implementation runs, and with which configuration a Triton kernel is launched."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu", "triton")
# One file a device, written by ``python -m benchmarks.gpu.tune`` on it.
TUNED = Path(__file__).parent / "tuned"
LOGGER = logging.getLogger("glance_fast")
# Asked once: PyTorch 2.11 cannot trace the question.
HAS_TRITON = find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of the CPU."""
    from triton import knobs

    return knobs.runtime.interpret


def shared_memory() -> int:
    """Bytes of shared memory that a block may have on the current device; no limit in the interpreter."""
    if interpreting():
        return sys.maxsize
    from triton.runtime import driver

    device = driver.active.get_current_device()
    return driver.active.utils.get_device_properties(device)["max_shared_mem"]


def on_its_device(launcher: Callable) -> Callable:
    """The launcher with its first tensor's device as the current one, where Triton compiles and launches.

    The first argument is that tensor, or a tuple that begins with it.
    """

    @wraps(launcher)
    def run(first: Tensor | tuple, *arguments: Any) -> Any:
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
            return launcher(first, *arguments)

    return run


def choose_backend(backend: str, device: torch.device) -> str:
    """The implementation that ``backend`` means on a device.

    Parameters
    ----------
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" is "cpu" on a CPU, "triton" on a CUDA device and "reference" elsewhere.
    device : torch.device
        Where the tensors are.

    Returns
    -------
    {"reference", "cpu", "triton"}

    Raises
    ------
    ValueError
        ``backend`` is unknown, or cannot run on ``device``.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "reference")
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend: 'cpu' asked for tensors on {device}")
    if backend == "triton":
        # No silent way round: who has a GPU and no Triton shall know why nothing is fast.
        if not HAS_TRITON:
            raise ValueError("backend: 'triton' needs the package triton (Linux); use 'reference'")
        if device.type != "cuda" and not interpreting():
            raise ValueError(
                f"backend: 'triton' asked for tensors on {device}; its kernels run on CUDA devices, and "
                "elsewhere in Triton's interpreter alone (TRITON_INTERPRET=1 before Python starts)"
            )
    return backend


def refuse(fault: Tensor, message: str) -> None:
    """Raise what the values of tensors are to blame for.

    Parameters
    ----------
    fault : Tensor
        Bool []. On a CUDA device nobody waits for it: the device checks it itself when it gets there, and
        fails as CUDA does, at a later call and for all that follows.
    message : str
        What is wrong.

    Raises
    ------
    ValueError
        ``fault`` is true, and not on a CUDA device.
    """
    if fault.is_cuda:
        torch._assert_async(fault.logical_not(), message)
    elif bool(fault):
        raise ValueError(message)


def tf32_allowed() -> bool:
    """Whether torch's convolutions may multiply float32 as tf32.

    Not ``torch.backends.cudnn.allow_tf32``: reading that raises where the setting that replaces it was used.
    """
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # there at run time


def configuration(tensor: Tensor, kernel: str, shape: str, otherwise: dict[str, int]) -> dict[str, Any]:
    """Block sizes and options of a launch.

    Parameters
    ----------
    tensor : Tensor
        Any of the launch's; it says which device.
    kernel, shape : str
        What the device's table of tuned configurations is searched for.
    otherwise : dict
        The heuristic's answer, taken where the table has none.

    Returns
    -------
    dict
        Keyword arguments of the launch.
    """
    # Said outright, because its default changes with Triton's version.
    return {"enable_fp_fusion": True, **table_of(tensor).get(kernel, {}).get(shape, otherwise)}


def table_of(tensor: Tensor) -> dict[str, dict[str, dict[str, int]]]:
    """The table of the device of a tensor; empty on a CPU."""
    return tuned(torch.cuda.get_device_name(tensor.device)) if tensor.is_cuda else {}


@cache
def tuned(device: str) -> dict[str, dict[str, dict[str, int]]]:
    """The table of a device by its name: kernel, then shape, then configuration; empty if there is none.

    Neither is there one for kernels that have changed since, or another Triton: their fastest blocks are
    others, and what fitted may not. A warning says so.
    """
    path = TUNED / f"{device.replace(' ', '-')}.json"
    if not path.is_file():
        return {}
    table, here = json.loads(path.read_text(encoding="utf-8")), made_for()
    there = table.get("made_for", {})
    if there != here:
        differs = ", ".join(
            f"{name} {there.get(name)}, here {here[name]}" for name in here if there.get(name) != here[name]
        )
        LOGGER.warning(
            "%s is ignored: made for %s; python -m benchmarks.gpu.tune makes it anew", path, differs
        )
        return {}
    return table["configurations"]


@cache
def made_for() -> dict[str, str]:
    """What a table of tuned configurations is good for: Triton's version, and the kernels' source."""
    import triton

    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted([*folder.glob("*/gpu*.py"), folder / "conv_common.py", folder / "tf32.py"]):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_text(encoding="utf-8").encode())
    return {"triton": triton.__version__, "kernels": digest.hexdigest()[:16]}


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Channels-last where one of the tensors [N, C, H, W] is that, else contiguous.

    Decided by strides that mean something: those of an axis of length 1 are whatever they are, and with one
    channel or one pixel both formats are the same. Tracing takes such strides for no promise.
    """

    def last(x: Tensor) -> bool:
        return x.shape[1] > 1 and any(x.shape[i] > 1 and x.stride(i) > x.stride(1) for i in (2, 3))

    return torch.channels_last if any(map(last, tensors)) else torch.contiguous_format
