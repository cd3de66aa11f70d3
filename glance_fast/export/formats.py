"""Graphs as files, ONNX and torch.export, with what is to be known about them; and how such files are run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from glance_fast.errors import UserError
from glance_fast.export.graph import ScoringGraph

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
INPUT, OUTPUTS = "images", ("maps", "scores", "anomalous")
# What the extra "export" brings.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Bytes that a file of ONNX holds, protobuf's limit.
MOST_BYTES = (1 << 31) - (1 << 20)
# Images, and pixels of a side: torch.export asks for a limit, and sums of pixels are exact up to there.
LARGEST = 1 << 16
# The field that keeps what is to be known.
NOTES = "glance_fast"

# Images [B, H, W, 3] to maps [B, h, w], scores [B] and anomalous [B].
Scorer = Callable[[NDArray], tuple[NDArray, NDArray, NDArray]]


def check_packages(format: str) -> None:
    """Refuse a format whose packages are missing, or that there is not.

    Raises
    ------
    UserError
        With what to install.
    """
    if format not in SUFFIXES:
        raise UserError(f"format: {format!r} is none of {', '.join(SUFFIXES)}")
    missing = [name for name in PACKAGES if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'glance-fast[export]' brings it")


def write(graph: ScoringGraph, path: Path, format: str, notes: dict[str, Any]) -> None:
    """Write a graph.

    Parameters
    ----------
    graph : ScoringGraph
        In evaluation mode.
    path : Path
        The file.
    format : str
        One of ``SUFFIXES``.
    notes : dict
        To be kept in the file, as JSON in a field "glance_fast".

    Raises
    ------
    UserError
        It is larger than the format allows.
    """
    size = sum(t.nbytes for t in graph.state_dict().values())
    if format == "onnx" and size > MOST_BYTES:
        raise UserError(
            f"the model takes {size >> 20} MiB, and a file of ONNX holds less than 2048; "
            "use `format=torch-export`, or train with a smaller image_size"
        )
    with _quiet():
        program = exported(graph)
        if format == "onnx":
            _write_onnx(program, path, json.dumps(notes))
        else:
            torch.export.save(program, path, extra_files={NOTES: json.dumps(notes)})


def exported(graph: ScoringGraph) -> ExportedProgram:
    """A graph of torch's own operators, for images of any size and number."""
    # Not 0 or 1, which torch.export takes for what they are.
    example = torch.zeros(2, 192, 320, 3, dtype=graph.dtype)
    sizes = {i: Dim(name, min=1, max=LARGEST) for i, name in enumerate(("batch", "height", "width"))}
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes={INPUT: sizes})


def _write_onnx(program: ExportedProgram, path: Path, notes: str) -> None:
    # A runtime's own sigmoid differs from torch's in the last digits, of which the log odds of a probability
    # near 1 make a lot.
    program = program.run_decompositions({torch.ops.aten.sigmoid.default: lambda x: 1 / (1 + (-x).exp())})
    made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=OUTPUTS, verbose=False)
    assert made is not None
    made.model.metadata_props[NOTES] = notes
    made.save(path, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of packages that are not there, and of its own parts."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def scorer(path: Path, format: str) -> Scorer:
    """A file as a function, on the CPU with as many threads as PyTorch has."""
    return _onnx_scorer(path) if format == "onnx" else _torch_scorer(path)


def _onnx_scorer(path: Path) -> Scorer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def score(images: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        maps, scores, anomalous = session.run(list(OUTPUTS), {INPUT: images})
        return maps, scores, anomalous

    return score


def _torch_scorer(path: Path) -> Scorer:
    with _quiet():
        module = torch.export.load(path).module()

    def score(images: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        with torch.no_grad():
            maps, scores, anomalous = (t.numpy() for t in module(torch.from_numpy(images)))
        return maps, scores, anomalous

    return score


def finite(value: float) -> float | None:
    """A number for JSON, which has no infinity: an infinite threshold is none."""
    return value if math.isfinite(value) else None
