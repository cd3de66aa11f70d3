"""window_sample against a loop written from its definition, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.kernels import window_sample
from glance_fast.kernels.native import library
from glance_fast.kernels.window_conv import WindowedMap
from glance_fast.kernels.window_sample import cpu, window_sample_inner

TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
RUNS = [
    *(("cpu", dtype) for dtype in TOLERANCES),
    ("reference", torch.float32),
    ("triton", torch.float32),
    ("triton", torch.float16),
    # The interpreter has bfloat16 that is read and not multiplied.
    ("triton", torch.bfloat16),
]
runs = pytest.mark.parametrize(("backend", "dtype"), RUNS)


def draw(channels=5, size=(6, 9), count=4, points=3, window=(3, 4), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def integers(limits):
        return torch.stack([torch.randint(n + 1, (count,), generator=generator) for n in limits], 1)

    problem = {
        "base": torch.randn(3, channels, *size, generator=generator).to(dtype),
        "images": torch.randint(3, (count,), generator=generator),
        # Some of them beyond the map, and some on its places.
        "cells": torch.randn(count, points, 2, generator=generator) * max(size),
    }
    problem["cells"][:, ::2] = problem["cells"][:, ::2].round()
    if window is not None:
        problem["window"] = torch.randn(count, channels, *window, generator=generator).to(dtype)
        problem["window_origins"] = integers([s - w for s, w in zip(size, window, strict=True)])
    return problem


def loop(problem):
    """The definition, one value after the other."""
    base, cells = problem["base"].double().numpy(), problem["cells"].numpy()
    y = np.zeros((*cells.shape[:2], base.shape[1]))
    for p, image in enumerate(problem["images"].tolist()):
        whole = base[image].copy()
        if "window" in problem:
            (top, left), window = problem["window_origins"][p].tolist(), problem["window"][p].double().numpy()
            whole[:, top : top + window.shape[1], left : left + window.shape[2]] += window
        for r, (x, y_) in enumerate(cells[p].astype(float)):
            x, y_ = (min(max(v, 0.0), n - 1.0) for v, n in zip((x, y_), whole.shape[:0:-1], strict=True))
            for i in (int(y_), min(int(y_) + 1, whole.shape[1] - 1)):
                for j in (int(x), min(int(x) + 1, whole.shape[2] - 1)):
                    share = max(1 - abs(y_ - i), 0) * max(1 - abs(x - j), 0)
                    # At the last place both neighbours are that one.
                    times = (1 + (i == int(y_) == whole.shape[1] - 1)) * (
                        1 + (j == int(x) == whole.shape[2] - 1)
                    )
                    y[p, r] += share * whole[:, i, j] / times
    return torch.from_numpy(y)


def run(problem, backend="cpu", device="cpu"):
    if backend == "triton":
        problem = {k: v.to(device) for k, v in problem.items()}
    return window_sample(**problem, backend=backend).cpu()


def check(problem, backend, device="cpu"):
    y, expected = run(problem, backend, device), loop(problem)
    dtype = problem["base"].dtype
    assert y.dtype == torch.promote_types(dtype, torch.float32) and y.shape == expected.shape
    assert float((y - expected).abs().max()) <= TOLERANCES[dtype] * float(expected.abs().max().clamp_min(1))


SHAPES = {
    "ragged": {},
    "no-window": {"window": None},
    "wide": {"channels": 80, "points": 9, "size": (5, 5), "window": (5, 5)},
    "one-place": {"size": (1, 1), "window": (1, 1)},
    "one-row": {"size": (1, 7), "window": (1, 2), "points": 1},
}


@runs
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_backend_equals_the_loop(shape, backend, dtype, device):
    check(draw(**shape, dtype=dtype), backend, device)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_any_problem_equals_the_loop(channels, height, width, count, points, seed):
    window = (1 + seed % height, 1 + seed // 7 % width) if seed % 3 else None
    problem = draw(channels, (height, width), count, points, window, seed)
    if count:
        for backend in ("cpu", "reference"):
            check(problem, backend)
    else:
        assert run(problem).shape == (0, points, channels)


def test_without_c_code(monkeypatch):
    problem = draw()
    if library() is not None:
        assert not torch.equal(run(problem), run(problem, "reference"))
    monkeypatch.setattr(cpu, "library", lambda: None)
    assert torch.equal(run(problem), run(problem, "reference"))


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_places_of_one_image_serve_those_of_the_next(backend, device):
    problem = draw(channels=16, count=6)
    for name in ("cells", "window_origins"):
        problem[name][3:] = problem[name][:3]
    p = {k: v.to(device if backend == "triton" else "cpu") for k, v in problem.items()}
    last = {"memory_format": torch.channels_last}
    source = WindowedMap(
        p["base"].contiguous(**last), p["window"].contiguous(**last), p["window_origins"][:3]
    )
    found = window_sample_inner(source, p["images"], p["cells"][:3].contiguous(), backend)
    assert torch.equal(found.cpu(), run(problem, backend, device))


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_layouts_do_not_matter_and_inputs_stay(backend, device):
    problem = draw()
    before = {k: v.clone() for k, v in problem.items()}
    expected = run(problem, backend, device)
    spread = {k: torch.stack([v, v], -1)[..., 0] for k, v in problem.items()}
    spread["images"] = spread["images"].int()
    assert torch.equal(run(spread, backend, device), expected)
    assert all(torch.equal(problem[k], v) for k, v in before.items())


BAD = {
    "base-array": ({"base": np.zeros((3, 5, 6, 9))}, TypeError, "base: expected a tensor"),
    "base-type": ({"base": torch.ones(3, 5, 6, 9).int()}, TypeError, "base: expected float32"),
    "base-axes": ({"base": torch.ones(5, 6, 9)}, ValueError, r"base: expected \[N, C, H, W\]"),
    "images-type": ({"images": torch.zeros(4)}, TypeError, "images: expected int32 or int64"),
    "images-axes": ({"images": torch.zeros(4, 1).long()}, ValueError, r"images: expected \[P\]"),
    "images-high": ({"images": torch.full((4,), 3)}, ValueError, "images: not within 3 images"),
    "cells-type": ({"cells": torch.zeros(4, 3, 2).double()}, TypeError, "cells: expected float32"),
    "cells-shape": ({"cells": torch.zeros(4, 3)}, ValueError, r"cells: expected \[4, R, 2\]"),
    "cells-nan": ({"cells": torch.full((4, 3, 2), float("nan"))}, ValueError, "cells: not finite"),
    "window-alone": ({"window_origins": None}, ValueError, "window_origins: goes with window"),
    "window-type": ({"window": torch.ones(4, 5, 3, 4).half()}, TypeError, "window: torch.float16"),
    "window-shape": ({"window": torch.ones(4, 4, 3, 4)}, ValueError, r"window: expected \[4, 5, h, w\]"),
    "origins-shape": ({"window_origins": torch.zeros(4).long()}, ValueError, "window_origins: expected"),
    "origins-high": ({"window_origins": torch.full((4, 2), 4)}, ValueError, "does not lie within"),
    "device": ({"cells": torch.zeros(4, 3, 2, device="meta")}, ValueError, "cells: on meta"),
    "backend": ({"backend": "cuda"}, ValueError, "backend: 'cuda' is none of"),
    "gradient": ({"base": torch.ones(3, 5, 6, 9).requires_grad_()}, ValueError, "base: requires"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        window_sample(**(draw() | change))


def test_float64_has_no_kernel():
    with pytest.raises(TypeError, match="base: float64 has no Triton kernel"):
        run(draw(dtype=torch.float64), "triton")
