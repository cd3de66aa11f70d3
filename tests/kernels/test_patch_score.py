"""Patch scores against a loop over patches written from Eq. 11 to 13, on every form of the whitening."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from glance_fast.kernels import score_patches
from glance_fast.kernels.patch_score import DistortionWeights, PatchScores, cpu
from glance_fast.kernels.patch_score.cpu import CHUNK, ROWS

BACKENDS = ("auto", "cpu", "reference", "triton")
# Of the largest score. Triton's kernel has float32 alone.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = {"triton": torch.float32}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy says in Triton's interpreter what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")


def relative_error(a, b):
    """Largest difference as a share of the largest value of ``b``."""
    a, b = (torch.as_tensor(t).double() for t in (a, b))
    assert a.shape == b.shape and a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max()) if b.numel() else 0.0


def perceptron(features, hidden, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) / hidden**0.5).to(dtype)

    first = [draw(hidden, features) for _ in range(3)]
    return DistortionWeights(
        *first, draw(hidden), draw(hidden, hidden), draw(hidden), draw(hidden) * 4, draw().clone()
    )


def problem(b, p, d, mean=None, whitening=None, hidden=6, dtype=torch.float64, seed=0):
    """Arguments of score_patches; ``mean`` and ``whitening`` name a form."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {None: None, "D": (d,), "PD": (p, d), "DD": (d, d), "PDD": (p, d, d)}

    def draw(shape):
        return None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64)

    local, global_ = draw((b, p, d)), draw((b, p, d))
    mean, whitening = draw(shapes[mean]), draw(shapes[whitening])
    tensors = (None if t is None else t.to(dtype) for t in (mean, whitening))
    return {
        "local": local.to(dtype),
        "global_": global_.to(dtype),
        "distortion": perceptron(d, hidden, dtype),
        **dict(zip(("mean", "whitening"), tensors, strict=True)),
    }


def score(arguments, backend, **options):
    """score_patches where the backend runs, and its scores back on the CPU."""
    device = DEVICE if backend == "triton" else "cpu"
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    moved["distortion"] = DistortionWeights(*(t.to(device) for t in arguments["distortion"]))
    got = score_patches(**moved, **options, backend=backend)
    assert all(s.device.type == device for s in got)
    return PatchScores(*(s.cpu() for s in got))


def tolerance_of(backend):
    return TOLERANCES[DTYPES.get(backend, torch.float64)]


def loop(
    local, global_, distortion, mean=None, whitening=None,
    inconsistency_scale=(0.0, 1.0), distortion_scale=(0.0, 1.0), lambda_s=0.8,
):  # fmt: skip
    """One patch after the other, in float64 NumPy."""
    z_l, z_g = (t.double().numpy() for t in (local, global_))
    w = DistortionWeights(*(t.double().numpy() for t in distortion))
    out = np.zeros((3, *z_l.shape[:2]))
    for i, j in np.ndindex(*z_l.shape[:2]):
        residual = z_l[i, j] - z_g[i, j]
        if mean is not None:
            residual = residual - (mean[j] if mean.dim() == 2 else mean).double().numpy()
        if whitening is not None:
            residual = (whitening[j] if whitening.dim() == 3 else whitening).double().numpy() @ residual
        s_iad = sum(r * r for r in residual) / len(residual)
        hidden = w.local @ z_l[i, j] + w.global_ @ z_g[i, j] + w.square @ (z_l[i, j] - z_g[i, j]) ** 2
        hidden = np.maximum(w.second @ np.maximum(hidden + w.first_bias, 0) + w.second_bias, 0)
        # 1 - C with C the logistic function of the last sum, written without the cancellation.
        s_dad = expit(-(hidden @ w.last + w.last_bias))
        (a, b), (c, d) = inconsistency_scale, distortion_scale
        out[:, i, j] = lambda_s * (s_iad - a) / b + (1 - lambda_s) * (s_dad - c) / d, s_iad, s_dad
    return PatchScores(*torch.from_numpy(out))


def assert_close(got, expected, tolerance):
    for name, mine, theirs in zip(PatchScores._fields, got, expected, strict=True):
        assert relative_error(mine, theirs) <= tolerance, name


@pytest.mark.parametrize("mean", [None, "D", "PD"], ids="mean-{}".format)
@pytest.mark.parametrize("whitening", [None, "DD", "PDD"], ids="whitening-{}".format)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(b, d) for b in BACKENDS for d in TOLERANCES if d == DTYPES.get(b, d)],
    ids=lambda v: str(v).removeprefix("torch."),
)
def test_equals_the_loop(mean, whitening, backend, dtype):
    arguments = problem(3, 7, 5, mean, whitening, dtype=dtype)
    scales = {"inconsistency_scale": (1.5, 0.7), "distortion_scale": (0.2, 0.05), "lambda_s": 0.65}
    got = score(arguments, backend, **scales)
    assert all(s.shape == (3, 7) and s.dtype == dtype for s in got)
    assert_close(got, loop(**arguments, **scales), TOLERANCES[dtype])


def test_forms_that_could_be_confused_are_not():
    # P = D: a matrix a patch and one matrix, a mean a patch and one mean, have to be told apart by axes.
    for mean, whitening in (("PD", "DD"), ("D", "PDD"), ("PD", "PDD")):
        arguments = problem(2, 5, 5, mean, whitening)
        assert_close(score_patches(**arguments), loop(**arguments), 1e-12)


# images, patches, features, units: around the sizes of blocks.
RAGGED = [(1, 1, 1, 1), (1, 35, 17, 5), (2, 19, 16, 16), (5, 7, 33, 15), (33, 3, 20, 40)]


@pytest.mark.parametrize("whitening", [None, "DD", "PDD"], ids="whitening-{}".format)
@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_ragged_shapes(shape, whitening, backend):
    images, patches, features, units = shape
    mean = {None: None, "DD": "D", "PDD": "PD"}[whitening]
    arguments = problem(images, patches, features, mean, whitening, units, torch.float32)
    assert_close(score(arguments, backend), loop(**arguments), TOLERANCES[torch.float32])


@pytest.mark.parametrize("whitening", [None, "DD", "PDD", "half"])
@pytest.mark.parametrize("tile", [(4, 1), (8, 4), (2, 16), (1, 32), (64, 2)], ids=str)
def test_tiles_of_triton(tile, whitening, monkeypatch):
    from glance_fast.kernels.patch_score import gpu

    # Tiles that reach over both ends, several chunks of features, of units and of a whitening matrix.
    sizes = {"BLOCK_O": 16, "BLOCK_K": 16, "BLOCK_U": 16, "STAGES_W": 2, "STAGES": 2, "num_warps": 4}
    blocks = {"BLOCK_P": tile[0], "BLOCK_B": tile[1], **sizes}
    monkeypatch.setattr(gpu, "_blocks", lambda *shape: blocks)
    form = "PDD" if whitening == "half" else whitening
    arguments = problem(5, 11, 37, "PD", form, 21, torch.float32)
    if whitening == "half":
        arguments["whitening"] = arguments["whitening"].half()
    assert_close(score(arguments, "triton"), loop(**arguments), TOLERANCES[torch.float32])


@pytest.mark.parametrize("sizes", [(128, 128), (256, 256), (200, 100), (60, 140)], ids=str)
@pytest.mark.parametrize("whitening", [None, "DD", "PDD", "half"])
def test_large_features_and_units_in_triton(sizes, whitening):
    form = "PDD" if whitening == "half" else whitening
    arguments = problem(2, 3, sizes[0], "PD", form, sizes[1], torch.float32)
    if whitening == "half":
        arguments["whitening"] = arguments["whitening"].half()
    got = score(arguments, "triton")
    assert_close(got, loop(**arguments), TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults_are_equation_13_as_it_stands(backend):
    arguments, tolerance = problem(2, 6, 8, dtype=DTYPES.get(backend, torch.float64)), tolerance_of(backend)
    got = score(arguments, backend)
    s_iad = (arguments["local"] - arguments["global_"]).pow(2).sum(-1) / 8
    assert relative_error(got.inconsistency, s_iad) <= tolerance
    assert relative_error(got.blended, 0.8 * s_iad + 0.2 * got.distortion) <= tolerance
    assert bool(((got.distortion > 0) & (got.distortion <= 1)).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("share", "field"), [(1, "inconsistency"), (0, "distortion")])
def test_at_the_ends_of_lambda_s_one_score_is_left(share, field, backend):
    got = score(problem(2, 6, 8, dtype=DTYPES.get(backend, torch.float64)), backend, lambda_s=share)
    assert relative_error(got.blended, getattr(got, field)) <= tolerance_of(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_standardise(backend):
    arguments = problem(4, 12, 8, dtype=DTYPES.get(backend, torch.float64))
    raw = score(arguments, "reference")
    stats = {
        f"{name}_scale": (float(getattr(raw, name).mean()), float(getattr(raw, name).std()))
        for name in ("inconsistency", "distortion")
    }
    tolerance = 1e-9 if backend != "triton" else 1e-5
    for share in (0, 1):
        blended = score(arguments, backend, **stats, lambda_s=share).blended
        assert abs(float(blended.mean())) < tolerance and abs(float(blended.std()) - 1) < tolerance
    # The scores themselves stay as they were: maps of each head are made from them.
    again = score(arguments, backend, **stats)
    assert torch.equal(again.inconsistency, score(arguments, backend).inconsistency)
    assert relative_error(again.distortion, raw.distortion) <= tolerance_of(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("mean", [None, "D", "PD"], ids="mean-{}".format)
@pytest.mark.parametrize("whitening", ["DD", "PDD"])
def test_whitening_in_half_precision(whitening, mean, images, backend):
    arguments = problem(images, 9, 8, mean, whitening, dtype=torch.float32)
    arguments["whitening"] = arguments["whitening"].half()
    got = score(arguments, backend)
    assert got.inconsistency.dtype == torch.float32
    # Widened before the product: only the matrix itself is rounded.
    assert_close(got, loop(**arguments), TOLERANCES[torch.float32])


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_half_precision_whitens_residuals_of_any_scale(scale, backend):
    arguments = problem(3, 9, 20, None, "PDD", dtype=torch.float32)
    arguments["whitening"] = arguments["whitening"].half()
    arguments["local"] = arguments["local"] * scale
    # A large and a small entry beside each other.
    arguments["local"][..., 0] *= 1e3
    arguments["global_"] = arguments["global_"] * 0
    got = score(arguments, backend).inconsistency
    expected = loop(**{k: v.double() if k in ("local", "global_") else v for k, v in arguments.items()})
    if scale**2 > 1e-38:
        assert relative_error(got, expected.inconsistency) <= 1e-5
    assert bool(got.isfinite().all())


def test_bits_of_half_precision_become_floats():
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16).float()
    finite = values.isfinite()
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    got = [
        cpu.half_dots(np.array([b], np.uint16), one, none)[0] for b in bits[finite].numpy().view(np.uint16)
    ]
    assert np.array_equal(np.array(got, np.float32), values[finite].numpy())


@pytest.mark.parametrize("patches", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("images", [1, 3])
def test_patches_in_chunks(patches, images):
    arguments = problem(images, patches, 4, "PD", "PDD")
    assert_close(score_patches(**arguments, backend="cpu"), loop(**arguments), 1e-12)


@pytest.mark.parametrize("whitening", [None, "DD"])
@pytest.mark.parametrize("rows", [(1, ROWS - 1), (1, ROWS + 1), (3, ROWS // 2), (ROWS + 1, 1)], ids=str)
def test_rows_in_chunks(rows, whitening):
    arguments = problem(*rows, 2, "PD", whitening, hidden=3)
    got, expected = (score_patches(**arguments, backend=b) for b in ("cpu", "reference"))
    assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("mean", [None, "D", "PD"])
@pytest.mark.parametrize("whitening", [None, "DD", "PDD"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("images", "patches"), [(0, 7), (2, 0)], ids=["no-images", "no-patches"])
def test_nothing_to_score(mean, whitening, backend, images, patches):
    arguments = problem(images, patches, 5, mean, whitening, dtype=DTYPES.get(backend, torch.float64))
    assert all(s.shape == (images, patches) for s in score(arguments, backend))


@pytest.mark.parametrize("whitening", [None, "DD", "PDD", "half"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["local", "global_"])
def test_nan_stays_in_its_patch(whitening, backend, side):
    form = "PDD" if whitening == "half" else whitening
    arguments = problem(3, 7, 20, "PD", form, dtype=torch.float32)
    if whitening == "half":
        arguments["whitening"] = arguments["whitening"].half()
    clean = score(arguments, backend)
    arguments[side][1, 4, 3] = float("nan")
    for before, after in zip(clean, score(arguments, backend), strict=True):
        where = after.isnan()
        assert where[1, 4] and int(where.sum()) == 1
        assert torch.equal(before[~where], after[~where])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits_keep_their_sign_and_stay_finite(logit, backend):
    arguments = problem(1, 3, 4, dtype=torch.float32)
    weights = arguments["distortion"]
    arguments["distortion"] = weights._replace(last=weights.last * 0, last_bias=torch.tensor(logit))
    distortion = score(arguments, backend).distortion
    assert bool((distortion == (1.0 if logit < 0 else 0.0)).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_probabilities_do_not_cancel(backend):
    # 1 - sigmoid(20) is 0.0 or 1.2e-7 in float32 if taken literally.
    arguments = problem(1, 3, 4, dtype=torch.float32)
    weights = arguments["distortion"]
    arguments["distortion"] = weights._replace(last=weights.last * 0, last_bias=torch.tensor(20.0))
    distortion = score(arguments, backend).distortion
    assert relative_error(distortion, torch.full((1, 3), 2.0611536e-9)) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whitening", ["PDD", "half"])
def test_inputs_are_left_alone(backend, whitening):
    dtype = torch.float32 if whitening == "half" else DTYPES.get(backend, torch.float64)
    arguments = problem(2, 9, 4, "PD", "PDD", dtype=dtype)
    if whitening == "half":
        arguments["whitening"] = arguments["whitening"].half()
    tensors = [t for t in arguments.values() if isinstance(t, torch.Tensor)] + [*arguments["distortion"]]
    before = [t.clone() for t in tensors]
    score(arguments, backend)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whitening", ["PDD", "half"])
def test_layout_in_memory_does_not_matter(backend, whitening):
    dtype = torch.float32 if whitening == "half" else DTYPES.get(backend, torch.float64)
    arguments = problem(3, 7, 5, "PD", "PDD", dtype=dtype)
    if whitening == "half":
        arguments["whitening"] = arguments["whitening"].half()
    expected = score(arguments, backend)
    # As Local-Net's map comes out of flatten(2).mT; every second of more images; transposed matrices.
    arguments["local"] = arguments["local"].mT.contiguous().mT
    arguments["global_"] = arguments["global_"].repeat_interleave(2, 0)[::2]
    arguments["whitening"] = arguments["whitening"].mT.contiguous().mT
    arguments["mean"] = arguments["mean"].T.contiguous().T
    weights = arguments["distortion"]
    arguments["distortion"] = weights._replace(square=weights.square.T.contiguous().T)
    assert_close(score(arguments, backend), expected, TOLERANCES[dtype])


def requiring(arguments, name):
    if name in arguments:
        return {**arguments, name: arguments[name].clone().requires_grad_()}
    weights = arguments["distortion"]
    weight = getattr(weights, name).clone().requires_grad_()
    return {**arguments, "distortion": weights._replace(**{name: weight})}


@pytest.mark.parametrize("name", ["local", "global_", "mean", "whitening", "square", "last_bias"])
def test_gradients_are_computed_or_refused_and_never_lost(name):
    arguments = requiring(problem(2, 4, 3, "PD", "PDD", dtype=torch.float32), name)
    tensor = arguments.get(name)
    tensor = getattr(arguments["distortion"], name) if tensor is None else tensor
    score_patches(**arguments).blended.sum().backward()
    assert tensor.grad is not None and float(tensor.grad.abs().max()) > 0
    for backend in ("cpu", "triton"):
        with pytest.raises(ValueError, match=f"backend: '{backend}' computes no gradients"):
            score(arguments, backend)
        with torch.no_grad():
            assert not score(arguments, backend).blended.requires_grad
    with torch.inference_mode():
        score_patches(**arguments)


GOOD = problem(2, 3, 4)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        pytest.param({"local": GOOD["local"][0]}, ValueError, "local, global_: expected one", id="two-axes"),
        pytest.param({"global_": GOOD["global_"][:1]}, ValueError, "local, global_: expected", id="batch"),
        pytest.param({"global_": GOOD["global_"].float()}, TypeError, "local, global_", id="two-dtypes"),
        pytest.param(
            {"local": GOOD["local"].long(), "global_": GOOD["global_"].long()},
            TypeError, "local, global_: .*int64", id="integers",
        ),
        pytest.param({"distortion": perceptron(5, 6)}, ValueError, "distortion: made for 5", id="perceptron"),
        pytest.param({"mean": torch.zeros(3)}, ValueError, "mean: expected", id="mean"),
        pytest.param({"mean": torch.zeros(2, 4)}, ValueError, "mean: expected", id="mean-an-image"),
        pytest.param({"mean": torch.zeros(1, 3, 4)}, ValueError, "mean: expected", id="mean-three-axes"),
        pytest.param({"whitening": torch.eye(3)}, ValueError, "whitening: expected", id="whitening"),
        pytest.param({"whitening": torch.zeros(2, 4, 4)}, ValueError, "whitening: expected", id="patches"),
        pytest.param({"whitening": torch.zeros(4)}, ValueError, "whitening: expected", id="whitening-vector"),
        pytest.param({"inconsistency_scale": (0, 0)}, ValueError, "inconsistency_scale", id="no-deviation"),
        pytest.param({"inconsistency_scale": (math.nan, 1)}, ValueError, "inconsistency_scale", id="nan"),
        pytest.param({"distortion_scale": (0, -1)}, ValueError, "distortion_scale", id="negative-deviation"),
        pytest.param({"distortion_scale": (0, math.inf)}, ValueError, "distortion_scale", id="infinite"),
        pytest.param({"lambda_s": 1.01}, ValueError, "lambda_s: must lie", id="lambda-above"),
        pytest.param({"lambda_s": -0.01}, ValueError, "lambda_s: must lie", id="lambda-below"),
        pytest.param({"lambda_s": math.nan}, ValueError, "lambda_s: must lie", id="lambda-nan"),
        pytest.param({"backend": "numba"}, ValueError, "backend: 'numba' is none of", id="backend-unknown"),
        pytest.param({"backend": "triton"}, TypeError, "local, global_: 'triton' takes float32", id="triton"),
        pytest.param({"local": GOOD["local"].numpy()}, TypeError, "local: expected a tensor", id="array"),
        pytest.param({"whitening": [[1]]}, TypeError, "whitening: expected a tensor", id="list"),
        pytest.param(
            {"local": GOOD["local"].half(), "global_": GOOD["global_"].half()},
            TypeError, "local, global_: .*float16", id="half",
        ),
        pytest.param({"distortion": tuple(GOOD["distortion"])}, TypeError, "distortion: exp", id="tuple"),
        pytest.param(
            {"distortion": perceptron(4, 6, torch.float32)}, TypeError, "distortion.local:", id="w-dtype"
        ),
        pytest.param(
            {"distortion": GOOD["distortion"]._replace(second=torch.zeros(6, 5).double())},
            ValueError, "distortion.second: expected", id="second",
        ),
        pytest.param(
            {"distortion": GOOD["distortion"]._replace(last_bias=torch.zeros(1).double())},
            ValueError, "distortion.last_bias: expected", id="last-bias",
        ),
        pytest.param({"mean": torch.zeros(4).long()}, TypeError, "mean: expected", id="mean-integer"),
        pytest.param({"mean": torch.zeros(4, device="meta")}, ValueError, "mean: on meta", id="device"),
        pytest.param(
            {"distortion": GOOD["distortion"]._replace(last=torch.zeros(6, device="meta"))},
            ValueError, "distortion.last: on meta", id="device-weight",
        ),
    ],
)  # fmt: skip
def test_refused(changed, error, words):
    with pytest.raises(error, match=words):
        score_patches(**{**GOOD, **changed})


def test_triton_takes_no_float64_beside_float32():
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in GOOD.items()}
    single["distortion"] = DistortionWeights(*(t.float() for t in GOOD["distortion"]))
    with pytest.raises(TypeError, match="mean, whitening: 'triton' takes no float64"):
        score_patches(**single | {"mean": torch.zeros(4).double()}, backend="triton")


def test_the_cpu_backend_is_for_the_cpu():
    arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in GOOD.items()}
    arguments["distortion"] = DistortionWeights(*(t.to("meta") for t in GOOD["distortion"]))
    with pytest.raises(ValueError, match="backend: 'cpu' asked for tensors on meta"):
        score_patches(**arguments, backend="cpu")


def test_triton_says_which_sizes_it_has():
    arguments = problem(1, 2, 257, dtype=torch.float32)
    with pytest.raises(ValueError, match="backend: 'triton' takes up to 256 features"):
        score(arguments, "triton")
