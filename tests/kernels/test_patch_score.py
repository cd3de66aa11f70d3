"""Patch scores against a loop over patches written from Eq. 11 to 13, on every form of the whitening."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from glance_fast.kernels import score_patches
from glance_fast.kernels.patch_score import DistortionWeights, PatchScores
from glance_fast.kernels.patch_score.cpu import CHUNK

BACKENDS = ("auto", "cpu", "reference")
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}


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
        s_dad = 1 / (1 + math.exp(hidden @ w.last + w.last_bias))
        (a, b), (c, d) = inconsistency_scale, distortion_scale
        out[:, i, j] = lambda_s * (s_iad - a) / b + (1 - lambda_s) * (s_dad - c) / d, s_iad, s_dad
    return PatchScores(*torch.from_numpy(out))


def assert_close(got, expected, tolerance):
    for name, mine, theirs in zip(PatchScores._fields, got, expected, strict=True):
        assert relative_error(mine, theirs) <= tolerance, name


@pytest.mark.parametrize("mean", [None, "D", "PD"], ids="mean-{}".format)
@pytest.mark.parametrize("whitening", [None, "DD", "PDD"], ids="whitening-{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_loop(mean, whitening, dtype, backend):
    arguments = problem(3, 7, 5, mean, whitening, dtype=dtype)
    scales = {"inconsistency_scale": (1.5, 0.7), "distortion_scale": (0.2, 0.05), "lambda_s": 0.65}
    got = score_patches(**arguments, **scales, backend=backend)
    assert all(s.shape == (3, 7) and s.dtype == dtype for s in got)
    assert_close(got, loop(**arguments, **scales), TOLERANCES[dtype])


def test_forms_that_could_be_confused_are_not():
    # P = D: a matrix a patch and one matrix, a mean a patch and one mean, have to be told apart by axes.
    for mean, whitening in (("PD", "DD"), ("D", "PDD"), ("PD", "PDD")):
        arguments = problem(2, 5, 5, mean, whitening)
        assert_close(score_patches(**arguments), loop(**arguments), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults_are_equation_13_as_it_stands(backend):
    arguments = problem(2, 6, 8)
    got = score_patches(**arguments, backend=backend)
    s_iad = (arguments["local"] - arguments["global_"]).pow(2).sum(-1) / 8
    assert relative_error(got.inconsistency, s_iad) <= 1e-12
    assert relative_error(got.blended, 0.8 * s_iad + 0.2 * got.distortion) <= 1e-12
    assert bool(((got.distortion > 0) & (got.distortion < 1)).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("share", "field"), [(1, "inconsistency"), (0, "distortion")])
def test_at_the_ends_of_lambda_s_one_score_is_left(share, field, backend):
    arguments = problem(2, 6, 8)
    got = score_patches(**arguments, lambda_s=share, backend=backend)
    assert relative_error(got.blended, getattr(got, field)) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_standardise(backend):
    arguments = problem(4, 50, 8)
    raw = score_patches(**arguments)
    stats = {
        f"{name}_scale": (float(getattr(raw, name).mean()), float(getattr(raw, name).std()))
        for name in ("inconsistency", "distortion")
    }
    for share in (0, 1):
        blended = score_patches(**arguments, **stats, lambda_s=share, backend=backend).blended
        assert abs(float(blended.mean())) < 1e-9 and abs(float(blended.std()) - 1) < 1e-9
    # The scores themselves stay as they were: maps of each head are made from them.
    again = score_patches(**arguments, **stats, backend=backend)
    assert torch.equal(again.inconsistency, score_patches(**arguments, backend=backend).inconsistency)
    assert relative_error(again.distortion, raw.distortion) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whitening", ["DD", "PDD"])
def test_whitening_in_half_precision(whitening, backend):
    arguments = problem(2, 9, 8, "PD", whitening, dtype=torch.float32)
    arguments["whitening"] = arguments["whitening"].half()
    got = score_patches(**arguments, backend=backend)
    assert got.inconsistency.dtype == torch.float32
    # Widened before the product: only the matrix itself is rounded.
    assert_close(got, loop(**arguments), TOLERANCES[torch.float32])


@pytest.mark.parametrize("patches", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("images", [1, 3])
def test_patches_in_chunks(patches, images):
    arguments = problem(images, patches, 4, "PD", "PDD")
    assert_close(score_patches(**arguments, backend="cpu"), loop(**arguments), 1e-12)


@pytest.mark.parametrize("mean", [None, "D", "PD"])
@pytest.mark.parametrize("whitening", [None, "DD", "PDD"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("images", "patches"), [(0, 7), (2, 0)], ids=["no-images", "no-patches"])
def test_nothing_to_score(mean, whitening, backend, images, patches):
    got = score_patches(**problem(images, patches, 5, mean, whitening), backend=backend)
    assert all(s.shape == (images, patches) for s in got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits_keep_their_sign_and_stay_finite(logit, backend):
    arguments = problem(1, 3, 4, dtype=torch.float32)
    weights = arguments["distortion"]
    arguments["distortion"] = weights._replace(last=weights.last * 0, last_bias=torch.tensor(logit))
    distortion = score_patches(**arguments, backend=backend).distortion
    assert bool((distortion == (1.0 if logit < 0 else 0.0)).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_probabilities_do_not_cancel(backend):
    # 1 - sigmoid(20) is 0.0 or 1.2e-7 in float32 if taken literally.
    arguments = problem(1, 3, 4, dtype=torch.float32)
    weights = arguments["distortion"]
    arguments["distortion"] = weights._replace(last=weights.last * 0, last_bias=torch.tensor(20.0))
    distortion = score_patches(**arguments, backend=backend).distortion
    assert relative_error(distortion, torch.full((1, 3), 2.0611536e-9)) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(backend):
    arguments = problem(2, 70, 4, "PD", "PDD")
    tensors = [t for t in arguments.values() if isinstance(t, torch.Tensor)] + [*arguments["distortion"]]
    before = [t.clone() for t in tensors]
    score_patches(**arguments, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_in_memory_does_not_matter(backend):
    arguments = problem(3, 7, 5, "PD", "PDD")
    expected = score_patches(**arguments)
    # As Local-Net's map comes out of flatten(2).mT.
    arguments["local"] = arguments["local"].mT.contiguous().mT
    assert_close(score_patches(**arguments, backend=backend), expected, 1e-12)


GOOD = problem(2, 3, 4)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        pytest.param({"local": GOOD["local"][0]}, ValueError, "local, global_: expected one", id="two-axes"),
        pytest.param({"global_": GOOD["global_"][:1]}, ValueError, "local, global_: expected", id="batch"),
        pytest.param({"global_": GOOD["global_"].float()}, TypeError, "one floating dtype", id="two-dtypes"),
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
        pytest.param({"backend": "triton"}, ValueError, "backend: .*no Triton", id="backend-triton"),
    ],
)  # fmt: skip
def test_refused(changed, error, words):
    with pytest.raises(error, match=words):
        score_patches(**{**GOOD, **changed})


def test_the_cpu_backend_is_for_the_cpu():
    arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in GOOD.items()}
    with pytest.raises(ValueError, match="backend: 'cpu' asked for tensors on meta"):
        score_patches(**arguments, backend="cpu")
