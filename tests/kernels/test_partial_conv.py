"""Partial convolution against a loop written from Eq. 5, against its reference, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import glance_fast.kernels.partial_conv as module
from glance_fast.kernels import partial_conv2d
from glance_fast.kernels.partial_conv import choose_route, gpu, inside_holes, partial_conv2d_inner
from glance_fast.kernels.partial_conv.operator import BACKWARD, OPERATOR
from glance_fast.kernels.partial_conv.reference import partial_conv2d_reference

FEW = settings(max_examples=60, deadline=None)
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
BACKENDS = ("cpu", "reference", "triton", "cudnn")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def convolve(x, weight, bias, mask, stride=1, padding=0, backend="auto"):
    """partial_conv2d where ``backend`` runs; "cudnn" is the library's convolution and Triton for the rest."""
    place = DEVICE if backend in ("triton", "cudnn") else "cpu"
    inputs = (None if t is None else t.to(place) for t in (x, weight, bias, mask))
    with pytest.MonkeyPatch.context() as patch:
        if backend == "cudnn":
            patch.setattr(module, "choose_route", lambda *_: "cudnn")
        y, after = partial_conv2d(*inputs, stride, padding, "auto" if backend == "cudnn" else backend)
    return y.cpu(), None if after is None else after.cpu()


def relative_error(a, b):
    """Largest difference as a share of the largest value of ``b``."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape
    if b.numel() == 0:
        return 0.0
    # A NaN compares as no error at all, so it must not get that far.
    assert a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def loop(x, weight, bias, mask, stride, padding):
    """Eq. 5, one output after the other; x [N, C, H, W], mask [N, 1, H, W]."""
    x, weight, mask = (t.detach().double().numpy() for t in (x, weight, mask))
    kernel = weight.shape[2:]
    rows, cols = ((s + 2 * padding - k) // stride + 1 for s, k in zip(x.shape[2:], kernel, strict=True))
    y = np.zeros((len(x), len(weight), rows, cols))
    valid = np.zeros((len(x), 1, rows, cols))
    for n, i, j in np.ndindex(len(x), rows, cols):
        seen, total = 0, np.zeros(len(weight))
        for u, v in np.ndindex(*kernel):
            row, col = i * stride - padding + u, j * stride - padding + v
            if 0 <= row < x.shape[2] and 0 <= col < x.shape[3] and mask[n, 0, row, col]:
                seen += 1
                total += weight[:, :, u, v] @ x[n, :, row, col]
        if seen:
            y[n, :, i, j] = total * kernel[0] * kernel[1] / seen
            y[n, :, i, j] += 0 if bias is None else bias.detach().double().numpy()
            valid[n, 0, i, j] = 1
    return torch.from_numpy(y), torch.from_numpy(valid)


def tensors(n, c, o, size, kernel, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, c, *size), (o, c, *kernel), (o,)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


def mask_of(holes, size, dtype=torch.float32):
    """[N, 1, H, W] by slices, no comparison shared with the code under test."""
    holes = holes if holes.dim() == 3 else holes[:, None]
    mask = torch.ones(len(holes), 1, *size, dtype=dtype)
    for n, boxes in enumerate(holes.clamp_min(0).tolist()):
        for top, left, bottom, right in boxes:
            mask[n, :, top:bottom, left:right] = 0
    return mask


FOUR = [(0, 0, 8, 8), (0, 16, 8, 25), (14, 0, 24, 9), (15, 14, 23, 22)]
# Ragged on purpose: odd sizes, more columns than rows and the reverse, kernels with no centre.
CASES = {
    "k1": (2, 3, 4, (7, 9), (1, 1), 1, 0, [[(2, 1, 5, 4)], [(0, 0, 7, 3)]]),
    "k1-stride2": (1, 2, 3, (8, 5), (1, 1), 2, 0, [[(3, 1, 6, 4)]]),
    "k2-stride2": (2, 3, 2, (9, 7), (2, 2), 2, 1, [[(1, 2, 6, 6)], [(3, 0, 9, 7)]]),
    "k3": (2, 5, 3, (11, 13), (3, 3), 1, 1, [[(4, 4, 9, 10)], [(0, 0, 0, 0)]]),
    "k3-two-holes": (1, 4, 6, (17, 10), (3, 3), 1, 1, [[(0, 0, 6, 6), (9, 2, 17, 8)]]),
    "k3-four-holes": (1, 2, 2, (24, 25), (3, 3), 2, 1, [FOUR]),
    "k5-stride3": (2, 2, 3, (19, 14), (5, 5), 3, 2, [[(3, 0, 13, 9)], [(12, 5, 19, 14)]]),
    "k7-stride2": (1, 3, 4, (21, 23), (7, 7), 2, 3, [[(6, 5, 18, 20)]]),
    "k8-stride4": (2, 3, 5, (32, 40), (8, 8), 4, 2, [[(8, 16, 24, 32)], [(16, 24, 32, 40)]]),
    "k3x5": (1, 3, 2, (12, 11), (3, 5), 2, 2, [[(2, 1, 9, 10)]]),
    "k5x2": (2, 2, 4, (13, 10), (5, 2), 1, 1, [[(0, 3, 8, 10)], [(5, 0, 13, 4)]]),
    "hole-covers-all": (2, 2, 3, (9, 9), (3, 3), 1, 1, [[(0, 0, 9, 9)], [(-4, -4, 40, 40)]]),
    "partly-outside": (2, 2, 3, (10, 12), (3, 3), 2, 1, [[(-3, -2, 5, 6)], [(6, 7, 99, 99)]]),
    "wholly-outside": (1, 2, 3, (10, 12), (3, 3), 1, 1, [[(-9, 0, -2, 12), (0, 12, 10, 20)]]),
    "empty-holes-only": (1, 2, 3, (10, 12), (3, 3), 1, 1, [[(0, 0, 0, 0), (5, 5, 5, 9), (9, 9, 2, 2)]]),
}  # fmt: skip
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def unpack(case, dtype=torch.float32):
    n, c, o, size, kernel, stride, padding, holes = case
    return tensors(n, c, o, size, kernel, dtype), torch.tensor(holes), (stride, padding)


# Against the definition


@case
def test_reference_equals_the_loop(case):
    (x, weight, bias), holes, layer = unpack(case, torch.float64)
    mask = mask_of(holes, x.shape[2:])
    y, valid = partial_conv2d_reference(x, weight, bias, mask, *layer)
    expected, expected_valid = loop(x, weight, bias, mask, *layer)
    assert relative_error(y, expected) <= 1e-12
    assert torch.equal(valid.double(), expected_valid)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_masks_of_any_shape_equal_the_loop(share):
    x, weight, bias = tensors(2, 3, 4, (9, 11), (3, 3), torch.float64)
    mask = (torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(1)) < share).double()
    y, valid = partial_conv2d(x, weight, bias, mask, 2, 1)
    expected, expected_valid = loop(x, weight, bias, mask, 2, 1)
    assert relative_error(y, expected) <= 1e-12
    assert torch.equal(valid, expected_valid)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_new_mask_has_the_dtype_of_the_mask(dtype):
    x, weight, bias = tensors(1, 3, 4, (9, 11), (3, 3))
    mask = mask_of(torch.tensor([[1, 1, 8, 8]]), (9, 11), dtype)
    y, valid = partial_conv2d(x, weight, bias, mask, 1, 1)
    assert valid.dtype == dtype and y.dtype == torch.float32
    assert torch.equal(y, partial_conv2d(x, weight, bias, mask.float(), 1, 1)[0])


@case
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *((backend, torch.float32) for backend in BACKENDS),
        ("cpu", torch.float64),
        ("reference", torch.float64),
        ("triton", torch.float16),
    ],
    ids=str,
)
def test_holes_equal_the_masked_reference_with_gradients(case, dtype, backend):
    inputs, holes, layer = unpack(case, dtype)
    inputs = [t.requires_grad_() for t in inputs]
    y, after = convolve(*inputs, holes, *layer, backend=backend)
    assert y.dtype == dtype and after.shape == holes.shape

    exact = [t.detach().double().requires_grad_() for t in inputs]
    mask = mask_of(holes, inputs[0].shape[2:], torch.float64)
    expected, valid = partial_conv2d_reference(*exact, mask, *layer)
    assert relative_error(y, expected) <= TOLERANCES[dtype]
    assert torch.equal(mask_of(after, y.shape[2:]).double(), valid)
    # Not "small": later layers rely on exact zeros.
    assert (y[(valid == 0).expand_as(y)] == 0).all()

    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad(y, inputs, upstream.to(dtype))
    wanted = torch.autograd.grad(expected, exact, upstream)
    for name, mine, theirs in zip(("x", "weight", "bias"), got, wanted, strict=True):
        assert relative_error(mine, theirs) <= TOLERANCES[dtype], name


@st.composite
def problems(draw):
    """Up to four holes, one in each quarter: always disjoint, often abutting, beyond the image or empty."""
    kernel = tuple(draw(st.sampled_from([1, 2, 3, 5, 7, 8])) for _ in range(2))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, min(kernel) - 1))
    size = tuple(max(2, k - 2 * padding) + draw(st.integers(0, 9)) for k in kernel)
    middle = tuple(draw(st.integers(1, s - 1)) for s in size)
    axes = [[(0, m), (m, s)] for m, s in zip(middle, size, strict=True)]
    holes = []
    for (top, bottom), (left, right) in draw(
        st.lists(st.sampled_from([(v, h) for v in axes[0] for h in axes[1]]), min_size=1, unique=True)
    ):
        box = []
        for low, high, end in ((top, bottom, size[0]), (left, right, size[1])):
            ends = st.one_of(st.sampled_from([low, high]), st.integers(low, high))
            start, stop = sorted((draw(ends), draw(ends)))
            box.append((start - 2 * (start == 0), stop + 2 * (stop == end)))
        holes.append((box[0][0], box[1][0], box[0][1], box[1][1]))
    return size, kernel, stride, padding, torch.tensor([holes]), draw(st.integers(0, 999))


@FEW
@given(problems())
def test_any_holes_equal_the_loop_or_are_refused(problem):
    size, kernel, stride, padding, holes, seed = problem
    x, weight, bias = tensors(1, 2, 3, size, kernel, torch.float64, seed)
    expected, valid = loop(x, weight, bias, mask_of(holes, size), stride, padding)
    hidden_by_one = torch.zeros_like(valid, dtype=torch.bool)
    for k in range(holes.shape[1]):
        alone = mask_of(holes[:, k], size)
        hidden_by_one |= loop(x, weight, bias, alone, stride, padding)[1] == 0
    if not torch.equal(hidden_by_one, valid == 0):
        with pytest.raises(ValueError, match="two holes together"):
            partial_conv2d(x, weight, bias, holes, stride, padding)
        return
    y, after = partial_conv2d(x, weight, bias, holes, stride, padding)
    assert relative_error(y, expected) <= 1e-12
    assert torch.equal(mask_of(after, y.shape[2:]).double(), valid)


@settings(max_examples=12, deadline=None)
@given(problems())
def test_any_holes_in_the_triton_kernels(problem):
    size, kernel, stride, padding, holes, seed = problem
    x, weight, bias = tensors(1, 3, 2, size, kernel, seed=seed)
    mask = mask_of(holes, size, torch.float64)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected, valid = partial_conv2d_reference(*exact, mask, stride, padding)
    # Masks say the same and are never refused.
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y, after = convolve(*leaves, mask, stride, padding, "triton")
    assert relative_error(y, expected) <= TOLERANCES[torch.float32] and torch.equal(after, valid)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for mine, theirs in zip(torch.autograd.grad(y, leaves, upstream), wanted, strict=True):
        assert relative_error(mine, theirs) <= TOLERANCES[torch.float32]
    try:
        convolve(x, weight, bias, holes, stride, padding, "cpu")
    except ValueError:
        if DEVICE == "cpu":
            with pytest.raises(ValueError, match="two holes together"):
                convolve(x, weight, bias, holes, stride, padding, "triton")
        return
    y_boxes, after_boxes = convolve(x, weight, bias, holes, stride, padding, "triton")
    assert torch.equal(y_boxes, y)
    assert torch.equal(mask_of(after_boxes, y.shape[2:], torch.float64), valid)


# As operators of torch


def operator_arguments(route, form="boxes", dtype=torch.float32):
    """Inputs of the operator with bias, residual and ReLU, two holes an image."""
    place = "cpu" if route == "cpu" else DEVICE
    x, weight, bias = tensors(2, 5, 6, (13, 11), (3, 3), dtype)
    holes = torch.tensor([[[0, 0, 4, 5], [6, 6, 13, 11]], [[3, 2, 9, 8], [0, 0, 0, 0]]])
    x = x.to(memory_format=torch.channels_last)
    residual = tensors(2, 6, 1, (7, 6), (1, 1), dtype, seed=5)[0]
    mask = holes if form == "boxes" else mask_of(holes, (13, 11))
    leaves = [t.to(place).requires_grad_() for t in (x, weight, bias, residual)]
    return (*leaves, mask.to(place), 2, 1, True, False, route)


# Masks on the CPU are the definition itself, without the operator.
@pytest.mark.parametrize(
    ("route", "form"),
    [("cpu", "boxes"), *((route, form) for route in ("triton", "cudnn") for form in ("boxes", "mask"))],
)
def test_residual_and_relu_with_gradients(route, form):
    arguments = operator_arguments(route, form)
    y, seen, _ = OPERATOR(*arguments)
    exact = [t.detach().double().cpu().requires_grad_() for t in arguments[:4]]
    mask = arguments[4].cpu().double() if form == "mask" else mask_of(arguments[4].cpu(), (13, 11))
    expected, valid = partial_conv2d_reference(*exact[:3], mask.double(), 2, 1)
    expected = (expected + exact[3]).relu()
    assert relative_error(y.cpu(), expected) <= TOLERANCES[torch.float32]
    assert torch.equal((seen.cpu() > 0).double(), valid)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad(y, arguments[:4], upstream.to(y.device))
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for name, mine, theirs in zip(("x", "weight", "bias", "residual"), got, wanted, strict=True):
        assert relative_error(mine.cpu(), theirs) <= TOLERANCES[torch.float32], name


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("route", ["cpu", "triton", "cudnn"])
def test_only_the_gradients_that_are_asked_for(route, wanted):
    arguments = operator_arguments(route)
    y, *_ = OPERATOR(*arguments)
    every = torch.autograd.grad(y.sum(), arguments[:4])
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(arguments[:4])]
    y, *_ = OPERATOR(*leaves, *arguments[4:])
    got = torch.autograd.grad(y.sum(), [leaves[i] for i in wanted])
    for i, gradient in zip(wanted, got, strict=True):
        assert torch.equal(gradient, every[i])


@pytest.mark.parametrize("route", ["cpu", "triton"])
def test_opcheck(route):
    arguments = operator_arguments(route)
    torch.library.opcheck(OPERATOR, arguments)
    y, seen, _ = OPERATOR(*arguments)
    x, weight, mask = (arguments[i].detach() for i in (0, 1, 4))
    torch.library.opcheck(
        BACKWARD, (torch.ones_like(y), x, weight, mask, seen, 2, 1, False, [True, True, True], route)
    )


LAYOUTS = {
    "one-channel": ((2, 1, 9, 8), (4, 1, 3, 3)),
    "one-output": ((2, 3, 9, 8), (1, 3, 3, 3)),
    "1x1": ((2, 3, 9, 8), (4, 3, 1, 1)),
    "one-pixel": ((2, 3, 1, 1), (4, 3, 3, 3)),
    "one-row-left": ((2, 3, 3, 8), (4, 3, 3, 3)),
    "no-images": ((0, 3, 9, 8), (4, 3, 3, 3)),
    "plain": ((2, 3, 9, 8), (4, 3, 3, 3)),
}
FORMATS = {
    "contiguous": lambda t: t.contiguous(),
    # Also in strides that mean nothing.
    "last": lambda t: torch.empty(t.shape, dtype=t.dtype, memory_format=torch.channels_last).copy_(t),
    "part-of-last": lambda t: F.pad(t, (0, 2)).to(memory_format=torch.channels_last)[..., :-2],
}


@pytest.mark.parametrize(
    "formats", [("contiguous", "contiguous"), ("last", "last"), ("part-of-last", "contiguous")], ids=" ".join
)
@pytest.mark.parametrize("shapes", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("route", ["cpu", "triton", "cudnn"])
def test_strides_are_those_that_tracing_expects(route, shapes, formats):
    x, weight = (FORMATS[f](torch.randn(s)) for f, s in zip(formats, shapes, strict=True))
    padding = 1 if min(x.shape[2:]) < 3 else 0
    x, weight, holes = (
        t.to("cpu" if route == "cpu" else DEVICE) for t in (x, weight, torch.zeros(len(x), 1, 4).long())
    )
    forward = (x, weight, None, None, holes, 1, padding, False, True, route)
    torch.library.opcheck(OPERATOR, forward, test_utils="test_faketensor")
    y, seen, _ = OPERATOR(*forward)
    backward = (torch.ones_like(y), x, weight, holes, seen, 1, padding, True, [True] * 3, route)
    torch.library.opcheck(BACKWARD, backward, test_utils="test_faketensor")


@pytest.mark.parametrize("form", ["box", "none", "mask"])
def test_compile_and_export_pass_through(form):
    x, weight, bias = tensors(2, 5, 6, (13, 11), (3, 3))
    holes = torch.tensor([[0, 0, 4, 5], [3, 2, 9, 8]])
    mask = {"box": holes, "none": None, "mask": mask_of(holes, (13, 11))}[form]

    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return partial_conv2d(x, weight, bias, mask, 2, 1)[0].relu()

    expected = Layer()(x, weight)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, weight), expected)
    weight.requires_grad_()
    (eager,) = torch.autograd.grad(Layer()(x, weight).square().sum(), weight)
    (traced,) = torch.autograd.grad(compiled(x, weight).square().sum(), weight)
    assert relative_error(traced, eager) <= 1e-6
    exported = torch.export.export(Layer(), (x, weight.detach())).module()
    assert torch.equal(exported(x, weight.detach()), expected)


def test_a_second_derivative_is_refused():
    arguments = operator_arguments("cpu")
    y, *_ = OPERATOR(*arguments)
    (dx,) = torch.autograd.grad(y.sum(), arguments[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        dx.sum().backward()


def test_the_route_can_be_asked_for():
    x, mask = torch.ones(1, 2, 8, 8), torch.ones(1, 1, 8, 8)
    assert choose_route(x, None, 1) == "cpu"
    assert choose_route(x, mask, 1) == "reference"
    assert choose_route(x.to("meta"), None, 1) == "reference"
    with FakeTensorMode():
        assert choose_route(torch.ones(1, 2, 8, 8, device="cuda"), None, 1) == "auto"
        assert choose_route(torch.ones(1, 2, 8, 8, device="cuda"), None, 1, "triton") == "triton"


@pytest.mark.parametrize("form", ["holes", "mask", "none"])
def test_tracing_for_a_gpu_reads_no_files_and_no_settings(form):
    """Of a GPU that need not be there: all that is traced are shapes."""

    def layer(x, weight, mask):
        return partial_conv2d(x, weight, None, mask, 2, 1)[0].relu()

    graphs = []

    def keep(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    with FakeTensorMode():
        x, weight = torch.empty(2, 5, 13, 11, device="cuda"), torch.empty(6, 5, 3, 3, device="cuda")
        holes, mask = (
            torch.empty(2, 4, dtype=torch.int64, device="cuda"),
            torch.empty(2, 1, 13, 11, device="cuda"),
        )
        mask = {"holes": holes, "mask": mask, "none": None}[form]
        y = torch.compile(layer, backend=keep, fullgraph=True)(x, weight, mask)
    assert y.shape == (2, 6, 7, 6) and y.device.type == "cuda"
    assert len(graphs) == 1 and "glance_fast.partial_conv2d.default" in graphs[0]


@pytest.mark.parametrize(
    ("table", "taken"),
    [
        ({}, ["triton", "library"]),
        ({"partial_conv_fwd_route": 0, "partial_conv_bwd_route": 1}, ["library", "triton"]),
        ({"partial_conv_bwd_route": 0}, ["triton", "library"]),
    ],
    ids=["no-table", "table", "half-a-table"],
)
def test_forward_and_backward_choose_each_by_itself(monkeypatch, table, taken):
    arguments = operator_arguments("auto")
    shape = gpu.shape_of(*arguments[:2], arguments[5])
    table = {name: {shape: {"triton": value}} for name, value in table.items()}
    monkeypatch.setattr(gpu, "table_of", lambda _: table)
    monkeypatch.setattr(gpu, "tf32_allowed", lambda: True)
    found = []
    for direction in ("forward", "backward"):
        run = getattr(gpu, direction)

        def note(*inputs, run=run):
            found.append("library" if inputs[-1] else "triton")
            return run(*inputs)

        monkeypatch.setattr(gpu, direction, note)
    OPERATOR(*arguments)[0].sum().backward()
    assert found == taken


@pytest.mark.skipif(DEVICE == "cuda", reason="takes 5 GB there; here the memory is never touched")
def test_offsets_beyond_32_bits():
    size, channels = 12000, 16
    x = torch.zeros(1, size, size, channels, dtype=torch.float16).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    x[0, :, -2, -2] = torch.arange(channels)
    weight = torch.ones(1, channels, 2, 2, dtype=torch.float16)
    y, _ = partial_conv2d(x, weight, None, torch.tensor([[0, 0, 9, 9]]), size - 2, 0, "triton")
    assert y.flatten().tolist() == [0, 0, 0, sum(range(channels))]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("form", ["boxes", "box", "mask"])
def test_gradcheck(form, padding):
    x, weight, bias = (t.requires_grad_() for t in tensors(2, 2, 2, (5, 6), (3, 2), torch.float64))
    holes = torch.tensor([[[0, 0, 3, 4], [0, 0, 0, 0]], [[2, 2, 5, 6], [0, 0, 1, 1]]])
    mask = {"boxes": holes, "box": holes[:, 0], "mask": mask_of(holes, (5, 6))}[form]
    assert torch.autograd.gradcheck(
        lambda *inputs: partial_conv2d(*inputs, mask, 1, padding)[0], (x, weight, bias)
    )


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_half_precisions_stay_finite_and_close(case, dtype, backend):
    inputs, holes, layer = unpack(case, dtype)
    inputs = [t.requires_grad_() for t in inputs]
    y, _ = convolve(*inputs, holes, *layer, backend=backend)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)
    exact = (t.detach().double() for t in inputs)
    expected, _ = partial_conv2d_reference(*exact, mask_of(holes, inputs[0].shape[2:]), *layer)
    assert relative_error(y, expected) <= TOLERANCES[dtype]


# Forms of the mask


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_box_and_a_list_of_one_box_are_the_same(backend):
    x, weight, bias = tensors(3, 2, 4, (12, 10), (3, 3))
    holes = torch.tensor([[0, 0, 6, 6], [4, 3, 12, 9], [7, 7, 7, 7]])
    y, after = convolve(x, weight, bias, holes, 2, 1, backend)
    y_list, after_list = convolve(x, weight, bias, holes[:, None], 2, 1, backend)
    assert after.shape == (3, 4) and after_list.shape == (3, 1, 4)
    assert torch.equal(y, y_list) and torch.equal(after, after_list[:, 0])


def test_boxes_in_another_order_are_the_same():
    x, weight, bias = tensors(1, 2, 4, (24, 25), (3, 3))
    holes = torch.tensor([FOUR])
    y, after = partial_conv2d(x, weight, bias, holes, 1, 1)
    y_turned, after_turned = partial_conv2d(x, weight, bias, holes.flip(1), 1, 1)
    assert torch.equal(y, y_turned) and torch.equal(after, after_turned.flip(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_narrow_integers_do_not_wrap(dtype):
    # 300 columns and corners of the image's size, beyond what eight bits hold.
    x, weight, bias = tensors(1, 1, 1, (9, 300), (3, 3))
    holes = torch.tensor([[2, 4, 8, 120]])
    y, after = partial_conv2d(x, weight, bias, holes.to(dtype), 2, 1)
    expected, expected_after = partial_conv2d(x, weight, bias, holes, 2, 1)
    assert torch.equal(y, expected) and torch.equal(after.long(), expected_after)


@pytest.mark.parametrize("mask", ["none", "ones", "empty", "no-holes"])
@pytest.mark.parametrize("padding", [0, 1, 2], ids="padding{}".format)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_seen_is_a_convolution_times_the_border_ratio(mask, padding, backend):
    dtype = torch.float32 if backend in ("triton", "cudnn") else torch.float64
    tolerance = TOLERANCES[dtype]
    x, weight, bias = tensors(2, 3, 4, (10, 13), (3, 3), dtype)
    masks = {
        "none": None,
        "ones": torch.ones(2, 1, 10, 13),
        "empty": torch.zeros(2, 4, dtype=torch.long),
        "no-holes": torch.zeros(2, 0, 4, dtype=torch.long),
    }
    y, after = convolve(x, weight, bias, masks[mask], 1, padding, backend)
    assert (after is None) == (mask == "none")
    plain = F.conv2d(x, weight, bias, 1, padding)
    inner = (..., slice(padding, plain.shape[2] - padding), slice(padding, plain.shape[3] - padding))
    assert relative_error(y[inner], plain[inner]) <= tolerance
    # How many of a window's rows or columns lie inside, by hand.
    rows, cols = (
        torch.tensor([sum(0 <= o - padding + u < s for u in range(3)) for o in range(s + 2 * padding - 2)])
        for s in (10, 13)
    )
    ratio = 9 / (rows[:, None] * cols).to(dtype)
    assert bool((ratio[0] > 1).all()) == (padding > 0)
    expected = F.conv2d(x, weight, None, 1, padding) * ratio + bias[:, None, None]
    assert relative_error(y, expected) <= tolerance


# What lies under the mask


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38], ids=str)
@pytest.mark.parametrize("form", ["holes", "mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_masked_reaches_neither_output_nor_gradient(value, form, backend):
    inputs = tensors(2, 3, 4, (16, 14), (5, 5))
    holes = torch.tensor([[[0, 0, 7, 6], [9, 7, 16, 13]], [[3, 3, 14, 12], [0, 0, 0, 0]]])
    mask = mask_of(holes, (16, 14))
    results = []
    for filling in (0.0, value):
        x = inputs[0].masked_fill(mask == 0, filling)
        leaves = [t.clone().requires_grad_() for t in (x, *inputs[1:])]
        y, _ = convolve(*leaves, holes if form == "holes" else mask, 2, 2, backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for name, clean, dirty in zip(("y", "x", "weight", "bias"), *results, strict=True):
        assert clean.isfinite().all() and torch.equal(clean, dirty), name
    assert (results[1][1][(mask == 0).expand_as(inputs[0])] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_that_is_seen_is_not_swallowed(backend):
    x, weight, bias = tensors(1, 2, 3, (10, 10), (3, 3))
    x[0, 0, 7, 7] = float("nan")
    y, _ = convolve(x, weight, bias, torch.tensor([[0, 0, 7, 7]]), 1, 1, backend)
    nan = y.isnan().any(1)[0]
    assert nan[6:9, 6:9].all() and nan.sum() == 9


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_earlier_mask_is_forgotten(backend):
    # The reference implementation that the paper cites keeps the last mask of a size.
    x, weight, bias = tensors(1, 2, 3, (10, 10), (3, 3))
    fresh, _ = convolve(x, weight, bias, None, 1, 1, backend)
    for mask in (torch.tensor([[1, 1, 9, 9]]), mask_of(torch.tensor([[1, 1, 9, 9]]), (10, 10))):
        masked, _ = convolve(x, weight, bias, mask, 1, 1, backend)
        again, _ = convolve(x, weight, bias, None, 1, 1, backend)
        assert torch.equal(fresh, again) and not torch.equal(masked, again)


@pytest.mark.parametrize("form", ["none", "box", "boxes", "mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(form, backend):
    inputs = tensors(2, 2, 3, (10, 10), (3, 3))
    holes = torch.tensor([[-2, 3, 6, 30], [9, 9, 1, 1]])
    mask = {"none": None, "box": holes, "boxes": holes[:, None], "mask": mask_of(holes, (10, 10))}[form]
    given_ = [t for t in (*inputs, mask) if t is not None]
    before = [t.clone() for t in given_]
    convolve(*inputs, mask, 1, 1, backend)
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


@pytest.mark.parametrize("form", ["holes", "mask", "none"])
def test_layout_in_memory_does_not_matter(form):
    x, weight, bias = tensors(2, 8, 16, (14, 12), (3, 3))
    holes = torch.tensor([[2, 2, 9, 9], [0, 5, 14, 12]])
    mask = {"holes": holes, "mask": mask_of(holes, (14, 12)), "none": None}[form]
    plain, _ = partial_conv2d(x, weight, bias, mask, 1, 1)
    last = torch.channels_last
    y, _ = partial_conv2d(x.to(memory_format=last), weight.to(memory_format=last), bias, mask, 1, 1)
    assert relative_error(y, plain) <= TOLERANCES[torch.float32]
    # Strides that fit no layout: every second pixel of a larger image.
    wide = torch.zeros(2, 8, 28, 12)
    wide[:, :, ::2] = x
    assert relative_error(partial_conv2d(wide[:, :, ::2], weight, bias, mask, 1, 1)[0], plain) <= 2e-5


@pytest.mark.parametrize("form", ["holes", "mask", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(form, backend):
    x, weight, bias = (t.requires_grad_() for t in tensors(0, 2, 3, (10, 9), (3, 3)))
    mask = {"holes": torch.zeros(0, 2, 4, dtype=torch.long), "mask": torch.ones(0, 1, 10, 9), "none": None}[
        form
    ]
    y, after = convolve(x, weight, bias, mask, 2, 1, backend)
    assert y.shape == (0, 3, 5, 5)
    assert after is None or after.shape == ((0, 2, 4) if form == "holes" else (0, 1, 5, 5))
    y.sum().backward()
    assert (weight.grad == 0).all() and (bias.grad == 0).all()


@pytest.mark.parametrize("form", ["holes", "mask", "none"])
@pytest.mark.parametrize("backend", ["cpu", "reference", "cudnn"])
def test_autocast(form, backend):
    inputs = [t.requires_grad_() for t in tensors(2, 8, 6, (14, 12), (8, 8))]
    holes = torch.tensor([[0, 2, 13, 12], [0, 0, 14, 12]])
    mask = {"holes": holes, "mask": mask_of(holes, (14, 12)), "none": None}[form]
    expected, after = convolve(*inputs, mask, 2, 3, backend)
    with torch.autocast(DEVICE if backend == "cudnn" else "cpu", torch.bfloat16):
        y, after_too = convolve(*inputs, mask, 2, 3, backend)
    assert y.dtype in (torch.bfloat16, torch.float32)
    assert 0 < relative_error(y, expected) <= TOLERANCES[torch.bfloat16]
    assert after is None or torch.equal(after, after_too)
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in inputs)


def test_autocast_takes_mixed_dtypes():
    x, weight, bias = tensors(2, 8, 6, (14, 12), (3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = partial_conv2d(x.bfloat16(), weight, bias, torch.tensor([[1, 1, 9, 9]] * 2), 1, 1)
    assert y.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias(backend):
    x, weight, bias = tensors(1, 2, 3, (10, 10), (3, 3))
    holes = torch.tensor([[2, 2, 9, 9]])
    bare, after = convolve(x, weight, None, holes, 1, 1, backend)
    y, _ = convolve(x, weight, bias, holes, 1, 1, backend)
    seen = ~inside_holes(after, *y.shape[2:])
    assert relative_error(y, torch.where(seen, bare + bias[:, None, None], 0)) <= 2e-5


def test_inside_holes_marks_the_boxes():
    holes = torch.tensor([[[0, 0, 2, 3], [4, 1, 6, 2]], [[-3, 2, 99, 4], [0, 0, 0, 0]]])
    marked = inside_holes(holes, 6, 5)
    assert marked.shape == (2, 1, 6, 5) and marked.dtype == torch.bool
    assert torch.equal(~marked, mask_of(holes, (6, 5), torch.bool))
    assert torch.equal(inside_holes(holes[:, 0], 6, 5), inside_holes(holes[:, :1], 6, 5))


# Between the layers of a net


@case
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_inner_equals_the_checked_one_with_gradients(case, with_bias):
    (x, weight, bias), holes, layer = unpack(case, torch.float64)
    # What it may rely on: zeros under holes that lie within the image.
    size = x.shape[2:]
    holes = torch.minimum(holes.clamp_min(0), torch.tensor([*size, *size]))
    inputs = [x * mask_of(holes, size), weight, *([bias] if with_bias else [])]
    results = []
    for run in (partial_conv2d, partial_conv2d_inner):
        leaves = [t.clone().requires_grad_() for t in inputs]
        arguments = (*leaves, *([] if with_bias else [None]), holes, *layer)
        y, after, *seen = run(*arguments)
        results.append((y, after, *torch.autograd.grad(y.square().sum(), leaves[1:])))
    for expected, got in zip(*results, strict=True):
        assert relative_error(got, expected) <= 1e-12
    ones = torch.ones(1, 1, *weight.shape[2:], dtype=torch.float64)
    assert torch.equal(seen[0].double(), F.conv2d(mask_of(holes, size, torch.float64), ones, None, *layer))
    assert (y[(seen[0] == 0).expand_as(y)] == 0).all()


# What is refused


GOOD = dict(zip(("x", "weight", "bias"), tensors(2, 3, 4, (8, 9), (3, 3)), strict=True))
BOX = torch.tensor([[0, 0, 4, 4], [1, 1, 5, 5]])


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        pytest.param({"x": np.zeros((2, 3, 8, 9))}, TypeError, "x: expected a tensor", id="x-array"),
        pytest.param({"x": None}, TypeError, "x: expected a tensor", id="x-none"),
        pytest.param({"weight": None}, TypeError, "weight: expected a tensor", id="weight-none"),
        pytest.param({"bias": [0, 0, 0, 0]}, TypeError, "bias: expected a tensor", id="bias-list"),
        pytest.param({"mask": (0, 0, 4, 4)}, TypeError, "mask: expected a tensor", id="mask-tuple"),
        pytest.param(
            {"weight": GOOD["weight"].to("meta")}, ValueError, "weight: on meta", id="weight-device"
        ),
        pytest.param({"mask": BOX.to("meta")}, ValueError, "mask: on meta", id="mask-device"),
        pytest.param({"backend": "cuda"}, ValueError, "backend: 'cuda' is none of", id="backend-unknown"),
        pytest.param(
            {k: v.double() for k, v in GOOD.items()} | {"backend": "triton"},
            TypeError,
            "x: float64 is not for the Triton kernels",
            id="float64-triton",
            marks=pytest.mark.skipif(DEVICE == "cuda", reason="the tensors lie on the CPU"),
        ),
        pytest.param(
            {"mask": torch.ones(2, 1, 8, 9, requires_grad=True)}, ValueError, "mask: requires", id="mask-grad"
        ),
        pytest.param({"stride": 1.0}, TypeError, "stride: expected an integer", id="stride-float"),
        pytest.param({"stride": (1, 1)}, TypeError, "stride: expected an integer", id="stride-pair"),
        pytest.param({"stride": 0}, ValueError, "stride: must be at least 1", id="stride-zero"),
        pytest.param({"padding": "same"}, TypeError, "padding: expected an integer", id="padding-text"),
        pytest.param({"padding": -1}, ValueError, "padding: must be at least 0", id="padding-negative"),
        pytest.param({"x": GOOD["x"][0]}, ValueError, r"x: expected \[N, C, H, W\]", id="x-three-axes"),
        pytest.param({"x": GOOD["x"].long()}, TypeError, "x: expected floating point", id="x-integers"),
        pytest.param(
            {"weight": GOOD["weight"][:, :2]}, ValueError, r"weight: expected \[O, 3", id="channels"
        ),
        pytest.param({"weight": GOOD["weight"][0]}, ValueError, "weight: expected", id="weight-three-axes"),
        pytest.param({"weight": GOOD["weight"].double()}, TypeError, "weight: .*float64", id="weight-dtype"),
        pytest.param({"bias": GOOD["bias"][:3]}, ValueError, r"bias: expected \[4\]", id="bias-shape"),
        pytest.param({"bias": GOOD["bias"].double()}, TypeError, "bias: .*float64", id="bias-dtype"),
        pytest.param({"x": GOOD["x"][:, :, :2]}, ValueError, "x: .* smaller than the kernel", id="x-small"),
        pytest.param({"mask": torch.ones(2, 1, 8, 8)}, ValueError, "mask: expected .*8, 9", id="mask-size"),
        pytest.param({"mask": torch.ones(2, 3, 8, 9)}, ValueError, "mask: expected", id="mask-channels"),
        pytest.param({"mask": torch.ones(1, 1, 8, 9)}, ValueError, "mask: expected", id="mask-batch"),
        pytest.param(
            {"mask": torch.full((2, 1, 8, 9), 0.5)}, ValueError, "mask: holds values", id="mask-half"
        ),
        pytest.param({"mask": torch.full((2, 1, 8, 9), torch.nan)}, ValueError, "mask: holds", id="mask-nan"),
        pytest.param({"mask": BOX[:1]}, ValueError, "mask: expected .* N = 2", id="holes-batch"),
        pytest.param({"mask": BOX[:, :3]}, ValueError, "mask: expected", id="holes-three-numbers"),
        pytest.param({"mask": BOX[0]}, ValueError, "mask: expected", id="holes-one-axis"),
        pytest.param({"mask": BOX.float()}, TypeError, "mask: holes are integers", id="holes-float"),
        pytest.param({"mask": BOX.bool()}, TypeError, "mask: holes are integers", id="holes-bool"),
        pytest.param({"mask": BOX, "padding": 3}, ValueError, "padding: with holes", id="padding-wide"),
        pytest.param(
            {"x": torch.zeros(2, 3, 182, 182), "weight": torch.zeros(4, 3, 182, 182), "mask": BOX},
            ValueError,
            "weight: with holes a kernel has at most 32767 places, got 182 x 182",
            id="kernel-large",
        ),
    ],
)
def test_refused(changed, error, words):
    with pytest.raises(error, match=words):
        partial_conv2d(**{**GOOD, **changed})


def test_the_largest_kernel_that_may_come_with_holes_counts_right():
    x, weight = torch.ones(1, 1, 181, 181), torch.full((1, 1, 181, 181), 2.0**-15)
    y, _ = partial_conv2d(x, weight, mask=torch.tensor([[0, 0, 1, 1]]))
    torch.testing.assert_close(y, torch.full((1, 1, 1, 1), 181**2 / 2**15))


def test_padding_as_wide_as_the_kernel_is_fine_without_holes():
    y, _ = partial_conv2d(**GOOD, padding=4)
    expected, _ = loop(*GOOD.values(), torch.ones(2, 1, 8, 9), 1, 4)
    # Outputs that see padding alone see nothing.
    assert relative_error(y, expected) <= 2e-5 and (y[:, :, 0] == 0).all()


# On a GPU the device asserts, after which nothing else would run.
refusing = pytest.mark.parametrize("backend", BACKENDS if DEVICE == "cpu" else ("cpu", "reference"))


@refusing
@pytest.mark.parametrize(
    "holes",
    [[(0, 0, 5, 5), (4, 4, 8, 8)], [(1, 1, 4, 4)] * 2, [(0, 0, 8, 9), (2, 2, 3, 3)]],
    ids=["corner", "same-twice", "one-in-the-other"],
)
def test_overlapping_holes_are_refused(holes, backend):
    # The first image is without fault: one bad image is enough.
    mask = torch.tensor([[(0, 0, 1, 1), (0, 0, 0, 0)], holes])
    with pytest.raises(ValueError, match="mask: holes of one image overlap"):
        convolve(**GOOD, mask=mask, padding=1, backend=backend)


@refusing
@pytest.mark.parametrize(
    "holes",
    [[(0, 0, 8, 4), (0, 4, 8, 9)], [(0, 2, 2, 8), (2, 2, 8, 8)]],
    ids=["side-by-side", "one-above-the-other"],
)
def test_holes_that_together_hide_a_window_are_refused(holes, backend):
    with pytest.raises(ValueError, match="mask: two holes together hide"):
        convolve(**GOOD, mask=torch.tensor([holes] * 2), backend=backend)


@pytest.mark.parametrize(
    "holes",
    [[(2, 0, 6, 4), (2, 5, 6, 9)], [(0, 0, 2, 2), (0, 2, 2, 4)]],
    ids=["a-column-apart", "abutting-but-narrow"],
)
def test_holes_between_which_every_window_sees_something_are_fine(holes):
    y, _ = partial_conv2d(**GOOD, mask=torch.tensor([holes] * 2))
    expected, _ = loop(*GOOD.values(), mask_of(torch.tensor([holes] * 2), (8, 9)), 1, 0)
    assert relative_error(y, expected) <= 2e-5


def test_holes_that_overlap_outside_the_image_are_fine():
    holes = torch.tensor([[(-5, -5, 0, 9), (-5, -5, 3, 3)]] * 2)
    y, _ = partial_conv2d(**GOOD, mask=holes)
    expected, _ = loop(*GOOD.values(), mask_of(holes, (8, 9)), 1, 0)
    assert relative_error(y, expected) <= 2e-5
