"""Partial convolution around a hole against loops over Eq. 5, its reference, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.kernels import partial_conv2d, surround_conv2d
from glance_fast.kernels.surround_conv import gpu
from glance_fast.kernels.surround_conv.operator import BACKWARD, OPERATOR
from glance_fast.kernels.surround_conv.reference import count_seen, places, surround_conv2d_reference

TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
BACKENDS = ("cpu", "reference", "triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Large tiles and few shares of a sum: the interpreter takes milliseconds a step."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setattr(gpu, "PROGRAMS", 2)
        yield


def relative_error(a, b):
    """Largest difference as a share of the largest value of ``b``."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    assert a.shape == b.shape
    if b.numel() == 0:
        return 0.0
    # A NaN compares as no error at all, so it must not get that far.
    assert a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def on_ring(u, v, kernel, hole):
    """Whether place (u, v) of a kernel lies outside the hole."""
    return any(not (k - h) // 2 <= o < (k + h) // 2 for o, k, h in zip((u, v), kernel, hole, strict=True))


def offsets(kernel, hole, dilations):
    """All places by hand: pairs counted from the kernel's first."""
    found = [(u, v) for u, v in np.ndindex(*kernel) if on_ring(u, v, kernel, hole)]
    for d in dilations:
        for u, v in [(-d, -d), (-d, 0), (-d, d), (0, -d), (0, d), (d, -d), (d, 0), (d, d)]:
            found.append((kernel[0] // 2 + u, kernel[1] // 2 + v))
    return found


def loop(x, weight, bias, far_weight, kernel, hole, stride, padding, dilations):
    """Eq. 5, one output after the other, in float64."""
    weights = weight if far_weight is None else torch.cat([weight, far_weight], 2)
    x, weights, bias = (t.detach().double().numpy() for t in (x, weights, bias))
    where = offsets(kernel, hole, dilations)
    rows, cols = ((s + 2 * p - k) // stride + 1 for s, k, p in zip(x.shape[2:], kernel, padding, strict=True))
    y = np.zeros((len(x), len(weights), rows, cols))
    for n, i, j in np.ndindex(len(x), rows, cols):
        seen, total = 0, np.zeros(len(weights))
        for t, (u, v) in enumerate(where):
            row, col = i * stride - padding[0] + u, j * stride - padding[1] + v
            if 0 <= row < x.shape[2] and 0 <= col < x.shape[3]:
                seen += 1
                total += weights[:, :, t] @ x[n, :, row, col]
        if seen:
            y[n, :, i, j] = total * len(where) / seen + bias
    return torch.from_numpy(y)


def tensors(n, c, o, size, kernel, hole, stride=1, padding=(0, 0), dilations=(), dtype=torch.float32, seed=0):
    """x, weight, bias and far weight (or None), and the geometry as the operator takes it."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    ring = kernel[0] * kernel[1] - hole[0] * hole[1]
    far_weight = draw(o, c, 8 * len(dilations)) if dilations else None
    geometry = kernel, hole, stride, padding, dilations
    return [draw(n, c, *size), draw(o, c, ring), draw(o), far_weight], geometry


def convolve(inputs, geometry, backend="auto", relu=False):
    """surround_conv2d where ``backend`` runs."""
    place = DEVICE if backend == "triton" else "cpu"
    x, weight, bias, far_weight = (None if t is None else t.to(place) for t in inputs)
    kernel, hole, stride, padding, dilations = geometry
    return surround_conv2d(
        x,
        weight,
        bias,
        kernel=kernel,
        hole=hole,
        stride=stride,
        padding=padding,
        far_weight=far_weight,
        dilations=dilations,
        relu=relu,
        backend=backend,
    )


# n, c, o, size, kernel, hole, stride, padding, dilations. Ragged on purpose.
CASES = {
    "k3": (2, 3, 4, (6, 7), (3, 3), (1, 1), 1, (1, 1), ()),
    "two-rings": (1, 5, 6, (9, 11), (7, 7), (3, 3), 1, (3, 3), ()),
    "far": (2, 4, 3, (8, 9), (5, 5), (3, 3), 1, (2, 2), (3, 6)),
    "far-beyond": (1, 2, 3, (5, 6), (3, 3), (1, 1), 1, (1, 1), (2, 40)),
    "half-stride": (1, 3, 4, (15, 13), (7, 7), (5, 5), 2, (2, 2), ()),
    "half-stride-far": (2, 3, 4, (13, 12), (5, 5), (3, 3), 2, (1, 2), (4,)),
    "stride3": (1, 2, 3, (14, 17), (5, 7), (1, 3), 3, (4, 0), (4, 5)),
    "even": (2, 3, 4, (8, 7), (6, 4), (2, 2), 1, (2, 1), ()),
    "rows-alone": (1, 3, 4, (9, 8), (7, 3), (3, 3), 1, (3, 1), ()),
    "columns-alone": (1, 3, 4, (8, 9), (1, 5), (1, 1), 2, (0, 2), ()),
    "smaller-than-hole": (2, 3, 4, (3, 2), (9, 9), (5, 5), 1, (4, 4), ()),
    "nothing-seen": (1, 3, 4, (2, 3), (3, 3), (1, 1), 1, (5, 4), ()),
    "no-padding": (1, 20, 17, (9, 8), (5, 5), (3, 3), 1, (0, 0), ()),
    "one-pixel": (2, 3, 4, (1, 1), (3, 3), (1, 1), 1, (1, 1), (2,)),
}
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# Against the definition


@case
def test_reference_equals_the_loop(case):
    inputs, geometry = tensors(*case, dtype=torch.float64)
    assert places(geometry[0], geometry[1], geometry[4]) == offsets(geometry[0], geometry[1], geometry[4])
    expected = loop(*inputs, *geometry)
    assert relative_error(surround_conv2d_reference(*inputs, *geometry, relu=False), expected) <= 1e-12
    assert relative_error(convolve(inputs, geometry), expected) <= 1e-12


# In the interpreter a step takes milliseconds: the kernels get some cases there, and float16 one.
IN_TRITON = ("half-stride-far", "even", "rows-alone", "columns-alone", "nothing-seen")


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [
        *((name, "cpu", dtype) for name in CASES for dtype in TOLERANCES),
        *((name, "triton", torch.float32) for name in IN_TRITON),
        ("half-stride", "triton", torch.float16),
    ],
    ids=str,
)
def test_equals_the_reference_with_gradients(name, dtype, backend):
    inputs, geometry = tensors(*CASES[name], dtype=dtype)
    relu = len(geometry[4]) == 1
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    y = convolve(inputs, geometry, backend, relu)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    expected = surround_conv2d_reference(*exact, *geometry, relu)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, expected) <= TOLERANCES[dtype]

    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if relu:
        # Rounding may turn a sign, and then the gradient is another one.
        upstream = torch.where(expected.abs() > TOLERANCES[dtype] * expected.abs().max(), upstream, 0)
    got = torch.autograd.grad(y, leaves, upstream.to(y))
    wanted = torch.autograd.grad(expected, [t for t in exact if t is not None], upstream)
    for name, mine, theirs in zip(("x", "weight", "bias", "far"), got, wanted, strict=False):
        assert relative_error(mine, theirs) <= TOLERANCES[dtype], name


@st.composite
def problems(draw):
    """Rectangles, strides and paddings; far places where the hole has a middle."""
    hole = tuple(draw(st.integers(1, 4)) for _ in range(2))
    around = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any))
    kernel = tuple(h + 2 * r for h, r in zip(hole, around, strict=True))
    stride = draw(st.integers(1, 3))
    padding = tuple(draw(st.integers(0, k + 2)) for k in kernel)
    size = tuple(max(1, k - 2 * p) + draw(st.integers(0, 8)) for k, p in zip(kernel, padding, strict=True))
    dilations = ()
    if all(h % 2 for h in hole):
        least = max(kernel) // 2 + 1
        dilations = tuple(draw(st.lists(st.integers(least, least + 9), max_size=2, unique=True)))
    return (draw(st.integers(1, 2)), 2, 3, size, kernel, hole, stride, padding, dilations), draw(
        st.integers(0, 999)
    )


@settings(max_examples=60, deadline=None)
@given(problems())
def test_any_geometry_on_the_cpu(problem):
    inputs, geometry = tensors(*problem[0], dtype=torch.float64, seed=problem[1])
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    y, expected = convolve(inputs, geometry, "cpu"), convolve(inputs, geometry, "reference")
    assert relative_error(y, loop(*inputs, *geometry)) <= 1e-12
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for mine, theirs in zip(torch.autograd.grad(y, leaves, upstream), wanted, strict=True):
        assert relative_error(mine, theirs) <= 1e-12


@settings(max_examples=6, deadline=None)
@given(problems())
def test_any_geometry_in_the_triton_kernel(problem):
    inputs, geometry = tensors(*problem[0], seed=problem[1])
    y, expected = convolve(inputs, geometry, "triton"), convolve(inputs, geometry, "reference")
    assert relative_error(y, expected) <= TOLERANCES[torch.float32]


@case
def test_what_is_seen_is_counted_from_integers(case):
    _, _, _, size, kernel, hole, stride, padding, dilations = case
    seen = count_seen(size, kernel, hole, stride, padding, dilations, torch.device("cpu"))
    assert seen.dtype == torch.int32
    for i, j in np.ndindex(*seen.shape):
        first = i * stride - padding[0], j * stride - padding[1]
        inside = sum(
            0 <= first[0] + u < size[0] and 0 <= first[1] + v < size[1]
            for u, v in offsets(kernel, hole, dilations)
        )
        assert seen[i, j] == inside


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_output_that_sees_nothing_is_exactly_0(backend):
    inputs, geometry = tensors(*CASES["nothing-seen"])
    y = convolve(inputs, geometry, backend).cpu()
    blind = count_seen((2, 3), *geometry[:4], (), torch.device("cpu")) == 0
    assert 0 < blind.sum() < blind.numel()
    assert (y[..., blind] == 0).all() and (y[..., ~blind] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["two-rings", "half-stride", "even", "no-padding"])
def test_equals_a_partial_convolution_of_every_window(name, backend):
    """One window after the other, under a mask, the hole's weights whatever they are."""
    inputs, geometry = tensors(*CASES[name])
    kernel, hole, stride, padding, _ = geometry
    x, weight, bias, _ = inputs
    y = convolve(inputs, geometry, backend).cpu()
    full = torch.full((len(weight), x.shape[1], *kernel), 7.0)
    ring = torch.tensor([on_ring(u, v, kernel, hole) for u, v in np.ndindex(*kernel)]).view(kernel)
    full[:, :, ring] = weight
    frame = (padding[1], padding[1], padding[0], padding[0])
    x = torch.nn.functional.pad(x, frame)
    inside = torch.nn.functional.pad(torch.ones(1, 1, *inputs[0].shape[2:]), frame)
    for i, j in np.ndindex(*y.shape[2:]):
        box = (..., slice(stride * i, stride * i + kernel[0]), slice(stride * j, stride * j + kernel[1]))
        mask = (inside[box] * ring).expand(len(x), 1, *kernel)
        expected, _ = partial_conv2d(x[box].contiguous(), full, None, mask.contiguous())
        # There the ratio counts the hole's places too.
        expected = expected * (weight.shape[2] / ring.numel()) + bias[:, None, None]
        assert relative_error(y[:, :, i : i + 1, j : j + 1], expected) <= 2e-5


# What lies in the hole


HIDDEN = {"two-rings": (4, 5), "far": (4, 4), "half-stride": (3, 2), "stride3": (2, 1), "even": (3, 3)}


def boxed(geometry, i, j):
    """Where an output's hole lies in x."""
    kernel, hole, stride, padding, _ = geometry
    starts = (stride * o - p + (k - h) // 2 for o, p, k, h in zip((i, j), padding, kernel, hole, strict=True))
    return (..., *(slice(max(s, 0), s + h) for s, h in zip(starts, hole, strict=True)))


# The interpreter computes on NaN, as it should here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("backend", "dtype", "name"),
    [
        *(("cpu", dtype, name) for dtype in TOLERANCES for name in HIDDEN),
        *(("reference", torch.float32, name) for name in HIDDEN),
        *(("triton", torch.float32, name) for name in ("far", "half-stride", "even")),
    ],
    ids=str,
)
def test_what_lies_in_the_hole_changes_no_bit(name, dtype, backend):
    inputs, geometry = tensors(1, *CASES[name][1:], dtype=dtype)
    i, j = HIDDEN[name]
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 6e4, 0.0]).to(dtype)
    # An image a value.
    x = inputs[0].repeat(len(values), 1, 1, 1)
    clean = convolve([x, *inputs[1:]], geometry, backend)
    x = x.clone()
    x[boxed(geometry, i, j)] = values[:, None, None, None]
    dirty = convolve([x, *inputs[1:]], geometry, backend)
    assert clean.isfinite().all() and torch.equal(dirty[:, :, i, j], clean[:, :, i, j])
    # It was no idle change: others see those places.
    assert not any(torch.equal(one, other) for one, other in zip(dirty, clean, strict=True))


@pytest.mark.parametrize(
    ("backend", "name"), [*((b, n) for b in ("cpu", "reference") for n in HIDDEN), ("triton", "k3")]
)
def test_every_place_outside_the_hole_is_seen(name, backend):
    inputs, geometry = tensors(*CASES[name])
    kernel, hole, stride, padding, dilations = geometry
    i, j = HIDDEN.get(name, (2, 3))
    expected = torch.zeros(inputs[0].shape[2:], dtype=torch.bool)
    for u, v in offsets(kernel, hole, dilations):
        row, col = stride * i - padding[0] + u, stride * j - padding[1] + v
        if 0 <= row < expected.shape[0] and 0 <= col < expected.shape[1]:
            expected[row, col] = True
    # All in one batch: an image for every place that holds a NaN.
    x = inputs[0][:1].repeat(expected.numel(), 1, 1, 1)
    for n, (row, col) in enumerate(np.ndindex(*expected.shape)):
        x[n, :, row, col] = float("nan")
    y = convolve([x, *inputs[1:]], geometry, backend).cpu()
    found = y[:, :, i, j].isnan().all(1).view(expected.shape)
    assert torch.equal(found, expected)


# As operators of torch


def arguments_of(route, dtype=torch.float32, relu=True):
    """Inputs of the operator, all that there is."""
    inputs, geometry = tensors(2, 3, 4, (7, 6), (3, 3), (1, 1), 2, (1, 0), (2,), dtype)
    place = DEVICE if route == "triton" else "cpu"
    return (*(t.to(place).requires_grad_() for t in inputs), *geometry, relu, route)


@pytest.mark.parametrize(
    ("route", "wanted"),
    [*(("cpu", w) for w in [(0,), (1,), (2,), (3,), (0, 2), (1, 3)]), ("triton", (1,)), ("triton", (0, 3))],
    ids=str,
)
def test_only_the_gradients_that_are_asked_for(route, wanted):
    arguments = arguments_of(route)
    every = torch.autograd.grad(OPERATOR(*arguments).sum(), arguments[:4])
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(arguments[:4])]
    got = torch.autograd.grad(OPERATOR(*leaves, *arguments[4:]).sum(), [leaves[i] for i in wanted])
    for i, gradient in zip(wanted, got, strict=True):
        assert torch.equal(gradient, every[i])


@pytest.mark.parametrize("last", [True, False], ids=["last", "contiguous"])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "images"),
    [
        (1, 4, (7, 6), 2),
        (3, 1, (7, 6), 2),
        (1, 1, (7, 6), 2),
        (3, 4, (3, 3), 2),
        (3, 4, (7, 3), 1),
        (3, 4, (7, 6), 0),
    ],
    ids=["one-channel", "one-output", "one-of-both", "one-pixel-left", "one-column-left", "no-images"],
)
@pytest.mark.parametrize("route", ["cpu", "triton"])
def test_strides_are_those_that_tracing_expects(route, channels, outputs, size, images, last):
    inputs, geometry = tensors(images, channels, outputs, size, (3, 3), (1, 1), 1, (0, 0), (2,))
    x, *weights = (t.to(DEVICE if route == "triton" else "cpu") for t in inputs)
    if last:
        # Also in strides that mean nothing.
        x = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    arguments = (x, *weights, *geometry, False, route)
    torch.library.opcheck(OPERATOR, arguments, test_utils="test_faketensor")
    dy = torch.ones_like(OPERATOR(*arguments))
    backward = (dy, x, weights[0], weights[2], *geometry, [True] * 4, route)
    torch.library.opcheck(BACKWARD, backward, test_utils="test_faketensor")


@pytest.mark.parametrize("route", ["cpu", "triton"])
def test_opcheck(route):
    arguments = arguments_of(route)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    traced = ("test_aot_dispatch_dynamic",) if route == "cpu" else ()
    torch.library.opcheck(OPERATOR, arguments, test_utils=checks + traced)
    y = OPERATOR(*arguments).detach()
    x, weight, _, far_weight = (t.detach() for t in arguments[:4])
    geometry = arguments[4:9]
    given_ = torch.ones_like(y), x, weight, far_weight, *geometry, [True, True, False, True], route
    torch.library.opcheck(BACKWARD, given_, test_utils=checks[::2])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "layer",
    [((3, 3), (1, 1), 1, (1, 1), (2,)), ((5, 3), (3, 1), 2, (3, 4), ())],
    ids=["far", "nothing-seen"],
)
def test_gradcheck(layer, relu):
    inputs, geometry = tensors(1, 2, 2, (4, 5), *layer, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    assert torch.autograd.gradcheck(
        lambda *found: convolve([*found, *[None] * (4 - len(found))], geometry, "cpu", relu), leaves
    )


def test_compile_and_export_pass_through():
    inputs, geometry = tensors(*CASES["half-stride-far"])
    x, weight, bias, far_weight = inputs

    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return convolve([x, weight, bias, far_weight], geometry, relu=True) * 2

    expected = Layer()(x, weight)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, weight), expected)
    weight.requires_grad_()
    (eager,) = torch.autograd.grad(Layer()(x, weight).square().sum(), weight)
    (traced,) = torch.autograd.grad(compiled(x, weight).square().sum(), weight)
    assert relative_error(traced, eager) <= 1e-6
    inputs = x, weight.detach()
    exported = torch.export.export(Layer(), inputs).module()
    assert torch.equal(exported(*inputs), expected)


def test_export_of_any_number_of_images():
    inputs, geometry = tensors(*CASES["far"])

    class Layer(torch.nn.Module):
        def forward(self, x):
            return convolve([x, *inputs[1:]], geometry)

    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Layer(), (inputs[0],), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, *inputs[0].shape[1:])
    assert torch.equal(exported(x), Layer()(x))


def test_a_second_derivative_is_refused():
    arguments = arguments_of("cpu")
    (dx,) = torch.autograd.grad(OPERATOR(*arguments).sum(), arguments[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        dx.sum().backward()


@pytest.mark.skipif(DEVICE == "cuda", reason="takes 5 GB there; here the memory is never touched")
def test_offsets_beyond_32_bits():
    size, channels = 12000, 16
    x = torch.zeros(1, size, size, channels, dtype=torch.float16).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    x[0, :, -1, -2] = torch.arange(channels)
    weight = torch.ones(1, channels, 8, dtype=torch.float16)
    y = surround_conv2d(x, weight, kernel=3, hole=1, stride=size - 3, padding=0, backend="triton")
    assert y.flatten().tolist() == [0, 0, 0, sum(range(channels))]


# Tensors as they come


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone_and_layout_does_not_matter(backend):
    inputs, geometry = tensors(*CASES["half-stride-far"])
    before = [t.clone() for t in inputs]
    y = convolve(inputs, geometry, backend)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    x, weight, bias, far_weight = inputs
    wide = torch.zeros(*x.shape[:2], 2 * x.shape[2], x.shape[3])
    wide[:, :, ::2] = x
    turned = [t.permute(0, 2, 1).contiguous().permute(0, 2, 1) for t in (weight, far_weight)]
    assert torch.equal(convolve([wide[:, :, ::2], turned[0], bias, turned[1]], geometry, backend), y)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(convolve([last, weight, bias, far_weight], geometry, backend), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(backend):
    inputs, geometry = tensors(0, *CASES["far"][1:])
    leaves = [t.requires_grad_() for t in inputs]
    y = convolve(inputs, geometry, backend)
    assert y.shape == (0, 3, 8, 9)
    y.sum().backward()
    assert all((t.grad == 0).all() for t in leaves[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias(backend):
    (x, weight, bias, _), geometry = tensors(*CASES["nothing-seen"])
    bare = convolve([x, weight, None, None], geometry, backend)
    y = convolve([x, weight, bias, None], geometry, backend).cpu()
    zero = convolve([x, weight, torch.zeros_like(bias), None], geometry, backend)
    assert torch.equal(bare, zero) and not torch.equal(bare.cpu(), y)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast(backend):
    inputs, geometry = tensors(*CASES["far"])
    leaves = [t.requires_grad_() for t in inputs]
    expected = convolve(inputs, geometry, backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(inputs, geometry, backend)
        mixed = convolve([inputs[0].bfloat16(), *inputs[1:]], geometry, backend)
    assert y.dtype == torch.bfloat16 and torch.equal(mixed, y)
    assert 0 < relative_error(y, expected) <= TOLERANCES[torch.bfloat16]
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in leaves)


def test_float32_is_exact_where_tf32_is_switched_off(monkeypatch):
    # Here the sums are cut into shares.
    monkeypatch.setattr(gpu, "PROGRAMS", 100)
    inputs, geometry = tensors(*CASES["no-padding"])
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    with torch.backends.cudnn.flags(allow_tf32=False):
        y = convolve(inputs, geometry, "triton")
        got = torch.autograd.grad(y.square().sum(), leaves)
    expected = convolve(exact, geometry, "reference")
    wanted = torch.autograd.grad(expected.square().sum(), [t for t in exact if t is not None])
    for mine, theirs in zip((y, *got), (expected, *wanted), strict=True):
        assert relative_error(mine, theirs) <= 2e-6


def test_padding_is_that_of_a_centred_kernel():
    inputs, geometry = tensors(*CASES["two-rings"])
    y = surround_conv2d(*inputs[:3], kernel=7, hole=3)
    assert torch.equal(y, convolve(inputs, geometry)) and y.shape[2:] == inputs[0].shape[2:]


# What is refused


GOOD = dict(zip(("x", "weight", "bias"), tensors(2, 3, 4, (8, 9), (5, 5), (3, 3))[0], strict=False))
GOOD |= {"kernel": 5, "hole": 3}
FAR = {"far_weight": torch.zeros(4, 3, 8), "dilations": (3,)}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": np.zeros((2, 3, 8, 9))}, TypeError, "x: expected a tensor"),
        ({"weight": None}, TypeError, "weight: expected a tensor"),
        ({"bias": [0.0] * 4}, TypeError, "bias: expected a tensor"),
        (FAR | {"far_weight": 1}, TypeError, "far_weight: expected a tensor"),
        ({"weight": GOOD["weight"].to("meta")}, ValueError, "weight: on meta"),
        ({"x": GOOD["x"].long()}, TypeError, "x: expected float32"),
        ({"weight": GOOD["weight"].double()}, TypeError, "weight: .*float64"),
        (FAR | {"far_weight": FAR["far_weight"].half()}, TypeError, "far_weight: .*float16"),
        ({"x": GOOD["x"][0]}, ValueError, r"x: expected \[N, C, H, W\]"),
        ({"x": GOOD["x"][:, :0], "weight": GOOD["weight"][:, :0]}, ValueError, "x: expected"),
        ({"weight": GOOD["weight"][:, :, :-1]}, ValueError, r"weight: expected \[O, 3, 16\]"),
        ({"weight": GOOD["weight"].view(4, 3, 4, 4)}, ValueError, "weight: expected"),
        ({"bias": GOOD["bias"][:3]}, ValueError, r"bias: expected \[4\]"),
        ({"x": GOOD["x"][:, :, :2], "padding": 1}, ValueError, "x: .* smaller than the kernel"),
        ({"kernel": 5.0}, TypeError, "kernel: expected an integer"),
        ({"kernel": True}, TypeError, "kernel: expected an integer"),
        ({"kernel": (5, 5, 5)}, ValueError, "kernel: expected an integer or two"),
        ({"hole": 0}, ValueError, "hole: must be at least 1"),
        ({"hole": (3, 2)}, ValueError, "hole: .* middle of the kernel"),
        ({"hole": 7}, ValueError, "hole: .* middle of the kernel"),
        ({"hole": 5}, ValueError, "kernel: .* is all hole"),
        ({"stride": 0}, ValueError, "stride: must be at least 1"),
        ({"stride": (1, 1)}, TypeError, "stride: expected an integer"),
        ({"stride": 2}, ValueError, "padding: must be given"),
        ({"kernel": 4, "hole": 2}, ValueError, "padding: must be given"),
        ({"padding": -1}, ValueError, "padding: must be at least 0"),
        ({"padding": "same"}, TypeError, "padding: expected an integer"),
        ({"dilations": (3,)}, ValueError, "far_weight: goes with dilations"),
        ({"far_weight": FAR["far_weight"]}, ValueError, "far_weight: goes with dilations"),
        (FAR | {"dilations": (3, 4)}, ValueError, r"far_weight: expected \[4, 3, 16\]"),
        (FAR | {"dilations": 3}, TypeError, "dilations: expected a tuple"),
        (FAR | {"dilations": (3.0,)}, TypeError, "dilations: expected an integer"),
        (FAR | {"dilations": (2,)}, ValueError, "dilations: places at 2 lie within"),
        (FAR | {"dilations": (3, 3)}, ValueError, "dilations: .* holds one twice"),
        (
            FAR | {"kernel": (5, 4), "hole": (3, 2), "padding": 2},
            ValueError,
            "dilations: the hole .* has no middle",
        ),
        ({"backend": "cuda"}, ValueError, "backend: 'cuda' is none of"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_refused(changed, error, words):
    with pytest.raises(error, match=words):
        surround_conv2d(**{**GOOD, **changed})


@pytest.mark.skipif(DEVICE == "cuda", reason="the tensors lie on the CPU")
def test_triton_refuses_float64():
    with pytest.raises(TypeError, match="x: float64 is not for the Triton kernels"):
        inputs, geometry = tensors(*CASES["k3"], dtype=torch.float64)
        convolve(inputs, geometry, "triton")
