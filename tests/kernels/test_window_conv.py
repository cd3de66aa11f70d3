"""window_conv2d against a loop written from its definition, its reference, and the net it exists for."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.geometry import Hole, output_size
from glance_fast.kernels import WindowedMap, window_conv2d
from glance_fast.kernels.native import instruction_sets, library
from glance_fast.kernels.partial_conv.reference import partial_conv2d_reference
from glance_fast.kernels.window_conv import Unmasked, cpu, native, packed, window_conv2d_inner

FEW = settings(max_examples=60, deadline=None)
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Numba and oneDNN, and the C code for every instruction set that this processor has, and with oneDNN.
SETS = instruction_sets() if library() is not None else 0
COMPILED = [f"cpu {number}" for number in range(SETS)]
CPU = ["cpu numba", *COMPILED, *(["cpu oneDNN"] if COMPILED else [])]
RUNS = [
    ("cpu", torch.float64),
    ("cpu", torch.float16),
    *((backend, dtype) for backend in CPU for dtype in (torch.float32, torch.bfloat16)),
    ("triton", torch.float32),
    ("triton", torch.float16),
    # The interpreter gets products of bfloat16 wrong.
    *([("triton", torch.bfloat16)] if torch.cuda.is_available() else []),
]
runs = pytest.mark.parametrize(("backend", "dtype"), RUNS)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """On a GPU, float32 as it is; the interpreter knows no other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def implementation(backend):
    """The backend, and of the CPU's implementations the one that is named."""
    name, _, which = backend.partition(" ")
    with pytest.MonkeyPatch.context() as patch:
        if which == "numba":
            patch.setattr(native, "there", lambda dtype: False)
        elif which:
            patch.setattr(native, "library_first", lambda dtype: which == "oneDNN")
        if which.isdigit():
            patch.setattr(native, "instruction_sets", lambda: int(which) + 1)
        yield name


def place(value, backend, device):
    """Arguments on the device where a backend runs, and in no other way changed."""
    if backend != "triton":
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, WindowedMap):
        return WindowedMap(*(place(v, backend, device) for v in value))
    return value


def run(problem, backend="cpu", device="cpu", **changes):
    problem = {k: place(v, backend, device) for k, v in (problem | changes).items()}
    with implementation(backend) as name:
        return window_conv2d(**problem, backend=name).cpu()


def exact(problem):
    return window_conv2d(**converted(problem, torch.float64), backend="reference")


def converted(problem, dtype):
    """The problem with its floating-point tensors in another type, and the sums of those."""

    def convert(value):
        if isinstance(value, WindowedMap):
            return WindowedMap(*map(convert, value))
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return with_sums({k: convert(v) for k, v in problem.items()})


def with_sums(problem):
    """What a layer's convolution makes of the base, as precise as it can be had."""
    base, weight = problem["base"], problem["weight"]
    raw = F.conv2d(base.double(), weight.double(), None, problem["stride"], problem["padding"])
    return problem | {"base_raw": raw.to(torch.promote_types(base.dtype, torch.float32))}


def relative_error(a, b):
    a, b = a.double(), b.double()
    assert a.shape == b.shape
    # A NaN compares as no error at all, so it must not get that far.
    assert a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) if b.numel() else 0.0


# ---- problems


def draw_problem(
    channels, outputs, kernel, stride, padding, size, count, out, window=None, added=None, relu=True, seed=0
):
    """Random maps, windows and places; ``added`` is the size of the residual's windows, () for none.

    Where there are windows, they cover the holes, and are minus the base there.
    """
    generator = torch.Generator().manual_seed(seed)
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    images = 3
    after = tuple(output_size(s, k, stride, padding) for s, k in zip(size, kernel, strict=True))

    def reals(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def integers(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=generator)

    def corners(limits, lengths):
        return torch.stack(
            [integers(0, n - part, count) for n, part in zip(limits, lengths, strict=True)], dim=1
        )

    corner = integers(-3, max(size), count, 2)
    problem = {
        "base": reals(images, channels, *size),
        "base_out": reals(images, outputs, *after),
        "weight": reals(outputs, channels, *kernel) / (channels * kernel[0] * kernel[1]) ** 0.5,
        "bias": reals(outputs),
        "holes": torch.cat([corner, corner + integers(-1, max(size), count, 2)], 1),
        "images": integers(0, images - 1, count),
        "origins": corners(after, out),
        "size": out,
        "stride": stride,
        "padding": padding,
        "relu": relu,
    }
    if window is not None:
        problem |= {
            "window": reals(count, channels, *window),
            "window_origins": corners(size, window),
        }
        cut_out(problem)
    if added == ():
        problem["residual"] = WindowedMap(reals(images, outputs, *after))
    elif added is not None:
        problem["residual"] = WindowedMap(
            reals(images, outputs, *after), reals(count, outputs, *added), corners(after, added)
        )
    return with_sums(problem)


def cut_out(problem):
    """Move holes into their windows, but where those end the map, and take what they hide out of it."""
    base, window, holes = problem["base"], problem["window"], problem["holes"]
    sides, size = window.shape[2:], base.shape[2:]
    for p, (first, image) in enumerate(
        zip(problem["window_origins"].tolist(), problem["images"].tolist(), strict=True)
    ):
        for k in range(2):
            low, high = first[k] - 9 * (first[k] == 0), first[k] + sides[k]
            high += 9 * (high == size[k])
            holes[p, k], holes[p, k + 2] = (int(holes[p, i].clamp(low, high)) for i in (k, k + 2))
        places = [slice(max(int(holes[p, k]), 0), max(int(holes[p, k + 2]), 0)) for k in range(2)]
        hidden = base[image][:, places[0], places[1]]
        shifted = [slice(max(s.start - f, 0), max(s.stop - f, 0)) for s, f in zip(places, first, strict=True)]
        window[p][:, shifted[0], shifted[1]] = -hidden


# Ragged on purpose; channels in multiples of 16 go another way through Triton's kernel than others.
CASES = {
    "k1": (16, 20, 1, 1, 0, (5, 7), 4, (3, 6), (2, 3)),
    "k2-stride2": (5, 3, 2, 2, 1, (9, 7), 3, (4, 3), (4, 4)),
    "k3": (16, 16, 3, 1, 1, (9, 11), 5, (4, 5), (3, 4), (2, 3)),
    "k3-narrow": (7, 10, 3, 1, 1, (9, 11), 5, (4, 5), (3, 4), (2, 3)),
    "k3-stride2": (32, 24, 3, 2, 1, (13, 9), 6, (4, 3), (5, 5)),
    "k3-base-alone": (16, 17, 3, 1, 1, (8, 8), 3, (5, 5), None, ()),
    "k3-residual-alone": (16, 32, 3, 1, 1, (8, 9), 3, (5, 5), None, (4, 7)),
    "k3-whole-map": (16, 16, 3, 1, 1, (6, 5), 3, (6, 5), (6, 5), (6, 5)),
    "k3-one-place": (48, 80, 3, 1, 1, (6, 5), 3, (1, 1), (1, 1), (1, 1)),
    "k5-stride3": (4, 6, 5, 3, 2, (19, 14), 4, (3, 4), (7, 6), (2, 2)),
    "k7-stride2": (3, 5, 7, 2, 3, (21, 23), 3, (6, 5), None),
    "k8-stride4": (3, 64, 8, 4, 2, (24, 32), 4, (4, 5), None),
    "k3x5": (16, 8, (3, 5), 2, 2, (12, 11), 3, (4, 3), (5, 6), ()),
    "padding-beyond-kernel": (16, 8, 1, 1, 2, (4, 5), 3, (7, 8), (2, 2)),
    "one-window": (3, 2, 3, 1, 1, (5, 5), 1, (3, 3), (2, 2)),
    "no-window": (16, 16, 3, 1, 1, (5, 5), 0, (3, 3), (2, 2), (2, 2)),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def laid_over(base, windows, corners, p, image):
    whole = base[image].clone().numpy()
    if windows is not None:
        top, left = corners[p].tolist()
        for i, j in np.ndindex(*windows.shape[2:]):
            whole[:, top + i, left + j] += windows[p, :, i, j].numpy()
    return whole


def loop(problem):
    """The definition, one output after the other."""
    base, weight, bias = problem["base"], problem["weight"].numpy(), problem["bias"]
    kernel, stride, padding = weight.shape[2:], problem["stride"], problem["padding"]
    added = problem.get("residual")
    count, outputs = len(problem["images"]), len(weight)
    y = np.zeros((count, outputs, *problem["size"]))
    for p in range(count):
        image = int(problem["images"][p])
        whole = laid_over(base, problem.get("window"), problem.get("window_origins"), p, image)
        residual = None if added is None else laid_over(*added[:3], p, image)
        top, left, bottom, right = problem["holes"][p].tolist()
        for i, j in np.ndindex(*problem["size"]):
            row, column = i + int(problem["origins"][p, 0]), j + int(problem["origins"][p, 1])
            seen, total = 0, np.zeros(outputs)
            for u, v in np.ndindex(*kernel):
                r, c = row * stride - padding + u, column * stride - padding + v
                hidden = top <= r < bottom and left <= c < right
                if 0 <= r < whole.shape[1] and 0 <= c < whole.shape[2] and not hidden:
                    seen += 1
                    total += weight[:, :, u, v] @ whole[:, r, c]
            if seen:
                y[p, :, i, j] = total * (kernel[0] * kernel[1] / seen)
                y[p, :, i, j] += 0 if bias is None else bias.numpy()
            if residual is not None:
                y[p, :, i, j] += residual[:, row, column]
    y = torch.from_numpy(np.maximum(y, 0) if problem["relu"] else y)
    for p, (top, left) in enumerate(problem["origins"].tolist()):
        height, width = problem["size"]
        y[p] -= problem["base_out"][int(problem["images"][p]), :, top : top + height, left : left + width]
    return y


# ---- against the definition


@cases
@pytest.mark.parametrize("relu", [False, True])
def test_reference_equals_the_loop(case, relu):
    problem = draw_problem(*case, relu=relu)
    assert relative_error(run(problem, "reference"), loop(problem)) <= 1e-14


@cases
@runs
def test_every_backend_equals_the_reference(case, backend, dtype, device):
    problem = converted(draw_problem(*case), dtype)
    y = run(problem, backend, device)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, exact(problem)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("backend", [*CPU, "triton"])
def test_without_bias_and_activation(backend, device):
    problem = converted(draw_problem(*CASES["k3"], relu=False), torch.float32) | {"bias": None}
    assert relative_error(run(problem, backend, device), exact(problem)) <= 2e-6


@st.composite
def problems(draw):
    """Sizes, strides and paddings of every kind, with windows and residuals or without."""
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    size = tuple(max(1, k - 2 * padding) + draw(st.integers(0, 7)) for k in kernel)
    after = tuple(output_size(s, k, stride, padding) for s, k in zip(size, kernel, strict=True))

    def within(limits):
        return tuple(draw(st.integers(1, n)) for n in limits)

    window = within(size) if draw(st.booleans()) else None
    added = draw(st.sampled_from([None, (), "window"]))
    added = within(after) if added == "window" else added
    arguments = (draw(st.integers(1, 5)), draw(st.integers(1, 4)), kernel, stride, padding, size)
    return draw_problem(
        *arguments,
        count=draw(st.integers(0, 4)),
        out=within(after),
        window=window,
        added=added,
        relu=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@FEW
@given(problems())
def test_any_problem_equals_the_loop(problem):
    expected = loop(problem)
    for backend in ("reference", "cpu"):
        assert relative_error(run(problem, backend), expected) <= 1e-13
    problem = converted(problem, torch.float32)
    expected = exact(problem)
    for backend in CPU:
        assert relative_error(run(problem, backend), expected) <= 5e-6
    problem = converted(problem, torch.bfloat16)
    expected = exact(problem)
    for backend in COMPILED:
        # Of bfloat16 multiplied two at once, too: only what comes out is rounded.
        assert relative_error(run(problem, backend), expected) <= 2**-8


@pytest.mark.parametrize("backend", [b for b in CPU if b in ("cpu numba", "cpu oneDNN")])
def test_steps_do_not_show(monkeypatch, backend):
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)
    at_once = run(problem, backend)
    monkeypatch.setattr(cpu, "STEP_BYTES", 1)
    assert torch.equal(run(problem, backend), at_once)


@pytest.mark.parametrize("backend", CPU)
def test_threads_do_not_show(backend):
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 7):
        torch.set_num_threads(number)
        found.append(run(problem, backend))
    torch.set_num_threads(threads)
    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize(("step", "count", "expected"), [(0, 3, 1), (4, 9, 3), (5, 5, 5), (7, 0, 1)])
def test_even_step(step, count, expected):
    assert cpu.even_step(step, count) == expected


# ---- the net it exists for

# Outputs, kernel, stride, padding, and whether the input of the layer before is added; residual blocks.
NET = [
    (16, 8, 4, 2, False),
    (16, 3, 2, 1, False),
    (16, 3, 1, 1, False),
    (16, 3, 1, 1, True),
    (24, 3, 2, 1, False),
    (24, 3, 1, 1, False),
    (24, 3, 1, 1, True),
]
# Holes of 8 at every corner, border and inside; of other shapes; none, and all of it.
SIZE, IMAGES = (56, 72), 2
HOLES = [
    *((top, left, top + 8, left + 8) for top in (0, 24, 48) for left in (0, 32, 64)),
    (5, 9, 6, 10),
    (0, 0, 56, 20),
    (17, 0, 29, 72),
    (40, 50, 56, 72),
    (0, 0, 0, 0),
    (0, 0, 56, 72),
]  # fmt: skip


def reach(start, stop, size, kernel, stride, padding):
    """Outputs that read any of the inputs [start, stop), along one axis."""
    outputs = range(output_size(size, kernel, stride, padding))
    read = [o for o in outputs if o * stride - padding < stop and o * stride - padding + kernel > start]
    return (read[0], read[-1] + 1) if stop > start and read else (0, 0)


def common(boxes, size):
    """Corners of windows of one size that hold the boxes, clamped to the map; and that size."""
    sides = [max(1, *(b[k + 2] - b[k] for b in boxes)) for k in range(2)]
    corners = [[min(b[k], size[k] - sides[k]) for k in range(2)] for b in boxes]
    return torch.tensor(corners), tuple(sides)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", torch.float64),
        ("cpu", torch.float64),
        *((backend, torch.float32) for backend in CPU),
        ("triton", torch.float32),
    ],
)
def test_windows_and_the_base_equal_the_masked_image(backend, dtype, device):
    generator = torch.Generator().manual_seed(0)
    holes = [Hole(*box) for box in HOLES]
    which = torch.arange(len(holes)) % IMAGES
    boxes = [tuple(hole) for hole in holes]
    size, channels = SIZE, 3
    base = torch.randn(IMAGES, channels, *size, generator=generator, dtype=torch.float64)
    base_mask = torch.ones(IMAGES, 1, *size, dtype=torch.float64)
    full, mask = base[which], torch.ones(len(holes), 1, *size, dtype=torch.float64)
    for p, (top, left, bottom, right) in enumerate(holes):
        mask[p, :, top:bottom, left:right] = 0
    source = WindowedMap(base)
    before = full_before = None

    def last(value):
        """As what is not checked wants it."""
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(last, value))
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(dtype) if value.is_floating_point() else value
        value = (
            value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.contiguous()
        )
        return place(value, backend, device)

    for outputs, kernel, stride, padding, adds in NET:
        shape = (outputs, channels, kernel, kernel)
        scale = (channels * kernel**2) ** -0.5
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
        added, added_full = (before, full_before) if adds else (None, None)
        before, full_before = source, full

        full, mask = partial_conv2d_reference(full, weight, bias, mask, stride, padding)
        base, base_mask = partial_conv2d_reference(source.base, weight, bias, base_mask, stride, padding)
        if adds:
            full, base = full + added_full, base + added.base
        full, base = full.relu(), base.relu()

        after = tuple(base.shape[2:])
        boxes = [
            tuple(
                v for pair in zip(
                    reach(b[0], b[2], size[0], kernel, stride, padding),
                    reach(b[1], b[3], size[1], kernel, stride, padding), strict=True,
                ) for v in pair
            )
            for b in boxes
        ]  # fmt: skip
        origins, common_size = common(boxes, after)
        parts = torch.tensor(boxes)
        raw = F.conv2d(source.base, weight, None, stride, padding)
        layer = (
            source, Unmasked(raw, base), weight, bias, torch.tensor([tuple(hole) for hole in holes]), which,
            origins, common_size, stride, padding, added, True, parts,
        )  # fmt: skip
        with implementation(backend) as name:
            y = window_conv2d_inner(*map(last, layer), backend=name).cpu().double()
        source = WindowedMap(base, y, origins, parts)

        # What the windows make of the base must be the masked image's map, everywhere.
        height, width = common_size
        made = base[which]
        for p, (top, left) in enumerate(origins.tolist()):
            made[p, :, top : top + height, left : left + width] += y[p]
        assert relative_error(made, full) <= {torch.float64: 1e-13, torch.float32: 3e-6}[dtype]
        holes = [hole.through(size, kernel, stride, padding) for hole in holes]
        for p, hole in enumerate(holes):
            if not adds:
                hidden = made[p, :, hole.top : hole.bottom, hole.left : hole.right]
                assert (hidden.abs() <= 1e-6 * full.abs().max()).all()
        size, channels = after, outputs


# ---- what must always hold


# The interpreter's products say that they are none.
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@pytest.mark.parametrize("backend", ["reference", *CPU, "triton"])
def test_a_hole_over_all_leaves_the_residual_alone(backend, device):
    problem = converted(draw_problem(*CASES["k3-residual-alone"], relu=False), torch.float32)
    whole = {"holes": torch.tensor([[-1, -1, 99, 99]] * 3)}
    nothing = whole | {"weight": torch.zeros_like(problem["weight"]), "bias": None}
    infinite = whole | {"weight": torch.full_like(problem["weight"], float("inf"))}
    expected = run(problem, "reference", **nothing)
    assert torch.equal(run(problem, backend, device, **whole), expected)
    assert torch.equal(run(problem, backend, device, **infinite), expected)


@pytest.mark.parametrize("backend", ["reference", *CPU, "triton"])
@pytest.mark.parametrize("where", ["base", "residual"])
def test_a_nan_that_is_seen_stays_where_it_is(where, backend, device):
    problem = converted(draw_problem(*CASES["k3-base-alone"]), torch.float32)
    problem |= {"holes": torch.zeros(3, 4, dtype=torch.long), "origins": torch.full((3, 2), 1)}
    target = problem["base"] if where == "base" else problem["residual"].base
    target[:, :, 4, 4] = float("nan")
    y = run(with_sums(problem), backend, device)
    nan = torch.zeros(5, 5, dtype=torch.bool)
    nan[slice(2, 5) if where == "base" else 3, slice(2, 5) if where == "base" else 3] = True
    assert torch.equal(y.isnan(), nan.expand_as(y))


@runs
def test_two_runs_are_identical_and_inputs_unchanged(backend, dtype, device):
    problem = converted(draw_problem(*CASES["k3"]), dtype)
    before = {k: v.clone() for k, v in problem.items() if isinstance(v, torch.Tensor)}
    assert torch.equal(run(problem, backend, device), run(problem, backend, device))
    assert all(torch.equal(problem[k], v) for k, v in before.items())


@pytest.mark.parametrize("backend", ["reference", *CPU, "triton"])
def test_layouts_and_types_of_integers_do_not_matter(backend, device):
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)

    def spread(value):
        """The same numbers, every second place in memory."""
        if isinstance(value, WindowedMap):
            return WindowedMap(*map(spread, value))
        if not isinstance(value, torch.Tensor):
            return value
        value = value if value.is_floating_point() else value.int()
        wide = torch.zeros(*value.shape, 2, dtype=value.dtype)
        wide[..., 0] = value
        return wide[..., 0]

    changed = {k: spread(v) for k, v in problem.items()}
    assert torch.equal(run(changed, backend, device), run(problem, backend, device))
    for name in ("base", "base_raw", "base_out", "window", "weight"):
        last = {name: problem[name].contiguous(memory_format=torch.channels_last)}
        assert torch.equal(run(problem, backend, device, **last), run(problem, backend, device))


@pytest.mark.parametrize("backend", [*CPU, "triton"])
def test_memory_that_is_not_aligned(backend, device):
    problem = converted(draw_problem(*CASES["k3"]), torch.float16)

    def moved(value):
        """Channels-last, and begun two bytes after a multiple of 16."""
        if isinstance(value, WindowedMap):
            return WindowedMap(*map(moved, value))
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        flat = torch.zeros(value.numel() + 1, dtype=value.dtype, device=device)[1:]
        if value.dim() < 4:
            return flat.copy_(value)
        return flat.view(value.permute(0, 2, 3, 1).shape).copy_(value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    changed = {k: moved(v) for k, v in problem.items()}
    assert changed["base"].data_ptr() % 16 == 2
    assert relative_error(run(changed, backend, device), exact(problem)) <= 2e-3


@pytest.mark.parametrize("backend", ["reference", *CPU, "triton"])
def test_holes_beyond_32_bits(backend, device):
    problem = converted(draw_problem(*CASES["k3-base-alone"]), torch.float32)
    far = torch.tensor([[-(2**40), 2, 2**40, 5], [2**33, 0, 2**34, 9], [0, -(2**62), 4, 2**62]])
    near = torch.tensor([[-9, 2, 99, 5], [0, 0, 0, 0], [0, -9, 4, 99]])
    expected = run(problem, "reference", holes=near)
    assert relative_error(run(problem, backend, device, holes=far), expected) <= 2e-6


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", torch.bfloat16), ("triton", torch.float16)])
def test_maps_beyond_32_bits(backend, dtype, device):
    # NumPy's zeros cost nothing until they are touched; the last image lies beyond 2**31 numbers.
    images, size = 2**31 // (64 * 64 * 16) + 1, (64, 64)
    problem = converted(draw_problem(16, 16, 3, 1, 1, size, 3, (4, 4)), dtype)
    small = problem | {"images": torch.zeros(3, dtype=torch.long)}
    large = problem | {"images": torch.full((3,), images - 1)}
    for name in ("base", "base_raw", "base_out"):
        zeros = torch.from_numpy(np.zeros((images, *size, 8 * problem[name].itemsize), np.int16))
        large[name] = zeros.view(problem[name].dtype).permute(0, 3, 1, 2)
        large[name][-1] = problem[name][0]
    for some in (small, large):
        some["residual"] = WindowedMap(some["base_out"])
    assert torch.equal(run(large, backend, device), run(small, backend, device))


@pytest.mark.parametrize("backend", [*CPU, "triton"])
def test_inner_gives_the_same(backend, device):
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)
    expected = run(problem, backend, device)
    p = {k: place(v, backend, device) for k, v in problem.items()}

    def last(x):
        return x.contiguous(memory_format=torch.channels_last)

    added = p["residual"]
    with implementation(backend) as name:
        once_more = packed(last(p["weight"]))
    layer = (
        WindowedMap(last(p["base"]), last(p["window"]), p["window_origins"].int()),
        Unmasked(last(p["base_raw"]), last(p["base_out"])),
        last(p["weight"]),
        p["bias"],
        p["holes"].int(),
        p["images"].int(),
        p["origins"].int(),
        p["size"],
        p["stride"],
        p["padding"],
        WindowedMap(last(added.base), last(added.window), added.origins.int()),
        True,
        None,
        once_more,
    )
    with implementation(backend) as name:
        y = window_conv2d_inner(*layer, backend=name)
    assert torch.equal(y.cpu(), expected)


# ---- what is refused


def test_gradients_are_refused_and_no_grad_is_not():
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)
    expected = run(problem)
    for name in ("base", "base_raw", "base_out", "weight", "bias", "window"):
        leaf = problem[name].clone().requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: requires a gradient"):
            run(problem, **{name: leaf})
        with torch.no_grad():
            assert torch.equal(run(problem, **{name: leaf}), expected)
    added = problem["residual"]
    with pytest.raises(ValueError, match=r"residual\.window: requires a gradient"):
        run(problem, residual=added._replace(window=added.window.clone().requires_grad_()))


def integers(*shape, value=0):
    return torch.full(shape, value)


BAD = {
    "base-array": ({"base": np.zeros((3, 16, 9, 11))}, TypeError, "base: expected a tensor"),
    "base-integers": ({"base": torch.ones(3, 16, 9, 11).int()}, TypeError, "base: expected float32"),
    "base-axes": ({"base": torch.ones(16, 9, 11)}, ValueError, r"base: expected \[N, C, H, W\]"),
    "base-small": ({"base": torch.ones(3, 16, 9, 11), "padding": 0, "weight": torch.ones(16, 16, 12, 3)},
                   ValueError, "smaller than the kernel"),
    "raw-type": ({"base_raw": torch.ones(3, 16, 9, 11).double()}, TypeError, "base_raw: torch.float64"),
    "raw-shape": ({"base_raw": torch.ones(3, 16, 9, 10)}, ValueError, r"base_raw: expected \(3, 16, 9, 11\)"),
    "out-shape": ({"base_out": torch.ones(3, 15, 9, 11)}, ValueError, r"base_out: expected \(3, 16, 9, 11\)"),
    "out-none": ({"base_out": None}, TypeError, "base_out: expected a tensor"),
    "weight-type": ({"weight": torch.ones(16, 16, 3, 3).double()}, TypeError, "weight: torch.float64"),
    "weight-channels": ({"weight": torch.ones(16, 15, 3, 3)}, ValueError, r"weight: expected \[O, 16,"),
    "weight-device": ({"weight": torch.ones(16, 16, 3, 3, device="meta")}, ValueError, "weight: on meta"),
    "bias": ({"bias": torch.ones(15)}, ValueError, r"bias: expected \[16\]"),
    "holes-type": ({"holes": torch.zeros(5, 4)}, TypeError, "holes: expected int32 or int64"),
    "holes-shape": ({"holes": integers(5, 1, 4)}, ValueError, r"holes: expected \[5, 4\]"),
    "holes-none": ({"holes": None}, TypeError, "holes: expected a tensor"),
    "images-type": ({"images": torch.zeros(5, dtype=torch.bool)}, TypeError, "images: expected int32"),
    "images-axes": ({"images": integers(5, 1)}, ValueError, r"images: expected \[5\]"),
    "images-high": ({"images": integers(5, value=3)}, ValueError, "images: .* does not lie within"),
    "images-low": ({"images": integers(5, value=-1)}, ValueError, "images: .* does not lie within"),
    "origins-shape": ({"origins": integers(4, 2)}, ValueError, r"origins: expected \[5, 2\]"),
    "origins-high": ({"origins": integers(5, 2, value=6)}, ValueError, "origins: .* does not lie within"),
    "origins-low": ({"origins": integers(5, 2, value=-1)}, ValueError, "origins: .* does not lie within"),
    "size-zero": ({"size": (0, 4)}, ValueError, "size: expected height and width"),
    "size-large": ({"size": (4, 12)}, ValueError, "size: expected height and width"),
    "size-one": ({"size": (4,)}, ValueError, "size: expected height and width"),
    "size-float": ({"size": (4.0, 4)}, TypeError, "size: expected two integers"),
    "size-integer": ({"size": 4}, TypeError, "size: expected two integers"),
    "stride": ({"stride": 0}, ValueError, "stride: must be at least 1"),
    "stride-float": ({"stride": 1.0}, TypeError, "stride: expected an integer"),
    "padding": ({"padding": -1}, ValueError, "padding: must be at least 0"),
    "window-alone": ({"window_origins": None}, ValueError, "window_origins: goes with window"),
    "window-channels": ({"window": torch.ones(5, 15, 3, 4)}, ValueError, r"window: expected \[5, 16, h, w\]"),
    "window-count": ({"window": torch.ones(4, 16, 3, 4)}, ValueError, r"window: expected \[5, 16, h, w\]"),
    "window-place": ({"window_origins": integers(5, 2, value=7)}, ValueError, "window_origins: .* does not"),
    "residual-tensor": ({"residual": torch.ones(3, 16, 9, 11)}, TypeError, "residual: expected a Wind"),
    "residual-base": ({"residual": WindowedMap(torch.ones(3, 16, 9, 10))}, ValueError, "residual.base: exp"),
    "residual-type": ({"residual": WindowedMap(torch.ones(3, 16, 9, 11).half())}, TypeError, "residual.base"),
    "residual-place": ({"residual": WindowedMap(torch.ones(3, 16, 9, 11), torch.ones(5, 16, 2, 2),
                                                integers(5, 2, value=10))}, ValueError, "residual.origins: "),
    "backend": ({"backend": "cuda"}, ValueError, "backend: 'cuda' is none of"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(change, error, message):
    problem = converted(draw_problem(*CASES["k3"]), torch.float32)
    with pytest.raises(error, match=message):
        window_conv2d(**(problem | change))


def test_float64_has_no_kernel():
    with pytest.raises(TypeError, match="base: float64 has no Triton kernel"):
        run(draw_problem(*CASES["k3"]), "triton")
