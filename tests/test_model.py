"""Scoring: what goes in, what comes out, and that the numbers are those of the equations."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from samples import MASKED, SMALL, draw_part
from scipy.stats import spearmanr

from glance_fast import Config, Glance, ImageError, UserError, load
from glance_fast.calibration import Calibration, Moments, ScaleStatistics
from glance_fast.model import NO_BF16, _log_once
from glance_fast.nets.preprocess import mirrored, to_input

TWO = {**SMALL, "patch": (32, 64), "stride": (16, 32), "image_size": 128}


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture(scope="module")
def masked_model(masked_run):
    return load(masked_run, "cpu")


@pytest.fixture(scope="module", params=["surround", "masked"])
def either(request):
    return request.getfixturevalue("model" if request.param == "surround" else "masked_model")


@pytest.fixture(scope="module")
def untrained():
    """Two scales, each with statistics that are not the neutral ones."""
    model = Glance(Config(**TWO), seed=3)
    statistics = [
        ScaleStatistics(
            *(Moments(0.1 * k + i, 0.5 + 0.2 * k + i) for k in range(5)),
            inconsistency_peak=Moments(0.01, 0.0005),
            distortion_peak=Moments(0.3, 0.5),
            lambda_s=0.6 + 0.2 * i,
            weight=1 - 0.3 * i,
        )
        for i in range(2)
    ]
    model.calibration = Calibration(tuple(statistics), image=Moments(1.5, 2.5), distances=True)
    return model


def images_of(count, size=64, seed=5):
    rng = np.random.default_rng(seed)
    return [draw_part(rng, size, defect=i % 2 == 1) for i in range(count)]


def assert_same(one, other, tolerance=1e-5):
    """Equal results, up to rounding."""
    for name in ("maps", "scores", "patch_scores"):
        a, b = getattr(one, name), getattr(other, name)
        a, b = (a, b) if isinstance(a, tuple) else ((a,), (b,))
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype == np.float32 and x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


# ---------------------------------------------------------------- what goes in


def test_paths_arrays_and_pil_images_give_equal_results(model, tmp_path):
    # Of another size than the model's, so that all of them are resized.
    arrays = images_of(2, size=90)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    of_arrays = model.score(arrays)
    assert of_arrays.maps.shape == (2, 64, 64) and of_arrays.patch_scores.shape == (2, 4, 4)
    assert np.ptp(of_arrays.maps[0]) > 0 and of_arrays.scores[0] != of_arrays.scores[1]
    for others in (paths, [str(p) for p in paths], [Image.fromarray(a) for a in arrays], np.stack(arrays)):
        assert_same(model.score(others), of_arrays, 0)


def test_grey_arrays_are_grey_images(model):
    array = images_of(1)[0]
    assert_same(model.score([array[..., 0]]), model.score([array]), 0)


def test_alpha_of_an_array_is_left_out_as_that_of_a_pil_image(model):
    array = images_of(1)[0]
    with_alpha = np.dstack([array, np.random.default_rng(0).integers(0, 256, array.shape[:2], np.uint8)])
    of_array = model.score([with_alpha])
    assert_same(of_array, model.score([array]), 0)
    assert_same(of_array, model.score([Image.fromarray(with_alpha, "RGBA")]), 0)


def test_a_batch_of_tensors_scores_as_the_images_do(either):
    images = np.stack(images_of(3))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    maps, scores = either(batch)
    assert maps.dtype == scores.dtype == torch.float32 and not maps.requires_grad
    expected = either.score(images)
    np.testing.assert_allclose(maps, expected.maps, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-3, atol=1e-2)
    ((local, global_),) = either.features(batch)
    ((of_images, also),) = either.features(images)
    torch.testing.assert_close(local, of_images, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(global_, also, rtol=1e-3, atol=1e-3)


def test_a_batch_of_tensors_may_have_any_size_and_precision(model):
    batch = torch.rand(2, 3, 90, 120, generator=torch.Generator().manual_seed(0))
    maps, scores = model(batch)
    assert maps.shape == (2, 90, 120) and scores.shape == (2,)
    for dtype in (torch.float64, torch.float16):
        torch.testing.assert_close(model(batch.to(dtype))[1], scores, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(3, 64, 64), r"floating point \[B, 3, H, W\] is needed, got torch.float32 \[3, 64, 64\]"),
        (torch.zeros(1, 64, 64, 3), "floating point"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 3, 64, 64), 255.0), "values from 255 to 255; they must lie in"),
        (torch.full((1, 3, 64, 64), float("nan")), "values from nan to nan"),
    ],
)
def test_wrong_tensors_are_refused(model, batch, words):
    with pytest.raises(UserError, match=words):
        model(batch)


def test_no_images_give_empty_arrays(model, untrained):
    result = model.score([])
    assert (result.maps.shape, result.scores.shape) == ((0, 64, 64), (0,))
    assert result.patch_scores.shape == (0, 4, 4)
    assert [p.shape for p in untrained.score([]).patch_scores] == [(0, 8, 8), (0, 4, 4)]


@pytest.mark.parametrize("kind", [str, Image.fromarray])
def test_a_single_image_is_refused(model, kind):
    image = "part.png" if kind is str else Image.fromarray(images_of(1)[0])
    with pytest.raises(UserError, match=r"expected a list.*score\(\[image\]\)"):
        model.score(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "fast"}, "engine: 'fast' is none of auto, dense, patchwise, grouped"),
        ({"precision": "fp8"}, "precision: 'fp8' is none of auto, fp32, bf16"),
    ],
)
def test_unknown_engine_or_precision(either, arguments, message):
    with pytest.raises(UserError, match=message):
        either.score(images_of(1), **arguments)
    with pytest.raises(UserError, match=message):
        either.score([], **arguments)
    with pytest.raises(UserError, match=message):
        either.features(np.stack(images_of(1)), **arguments)


@pytest.mark.parametrize("engine", ["dense", "grouped", "patchwise"])
def test_engines_of_masked_nets_are_refused_for_a_net_that_needs_none(model, masked_model, engine):
    for ask in (
        lambda: model.check(engine, "auto"),
        lambda: model.score(images_of(1), engine),
        lambda: model.score([], engine),
        lambda: model.patch_scores(np.stack(images_of(1)), engine),
    ):
        with pytest.raises(
            UserError, match=rf"engine: '{engine}' is for masked nets; net 'surround' answers"
        ):
            ask()
    masked_model.check(engine, "bf16")
    model.check("auto", "bf16")


def test_a_model_in_training_mode_refuses_and_stays_as_it_was(either):
    batch = torch.rand(1, 3, 64, 64)
    state = {name: tensor.clone() for name, tensor in either.state_dict().items()}
    part = either.scales[0].distortion
    for module in (either, part):
        module.train()
        try:
            for ask in (
                lambda: either.score(images_of(1)),
                lambda: either.features(np.stack(images_of(1))),
                lambda: either(batch),
            ):
                with pytest.raises(UserError, match=r"in training mode; call model\.eval\(\)"):
                    ask()
        finally:
            either.eval()
    assert all(torch.equal(state[name], tensor) for name, tensor in either.state_dict().items())


def test_weights_of_another_type_are_refused_with_what_to_do(small):
    model = Glance(Config(**small)).to(torch.bfloat16)
    with pytest.raises(UserError, match=r'weights are bfloat16.*model\.float\(\).*precision="bf16"'):
        model.score(images_of(1))
    assert model.float().score(images_of(1)).scores.shape == (1,)


def test_a_state_dict_holds_all_that_scoring_needs(either):
    other = Glance(either.config, seed=5)
    images = images_of(2)
    before = other.score(images)
    other.load_state_dict(either.state_dict())
    assert other.calibration == either.calibration and np.isfinite(other.calibration.threshold)
    assert_same(other.score(images), either.score(images), 0)
    assert not np.array_equal(before.scores, other.score(images).scores)


def test_unreadable_path_is_named(model, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ImageError, match=r"bad\.png: is not an image"):
        model.score([tmp_path / "bad.png"])


# ---------------------------------------------------------------- what comes out


def test_one_patch_size_gives_an_array_and_a_tuple_gives_a_tuple(small):
    image = images_of(1)
    alone = Glance(Config(**small)).score(image).patch_scores
    (only,) = Glance(Config(**{**small, "patch": (32,), "stride": (16,)})).score(image).patch_scores
    np.testing.assert_array_equal(alone, only)


def test_nine_images_are_nine_single_ones_in_any_order(either):
    # One more than are in flight at a time.
    images = images_of(9)
    together = either.score(images)
    singles = [either.score([image]) for image in images]
    for i, single in enumerate(singles):
        np.testing.assert_allclose(together.maps[i], single.maps[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.scores[i], single.scores[0], rtol=1e-4, atol=1e-3)
    order = np.random.default_rng(0).permutation(9)
    shuffled = either.score([images[i] for i in order])
    np.testing.assert_allclose(shuffled.maps, together.maps[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shuffled.scores, together.scores[order], rtol=1e-4, atol=1e-3)
    assert len(np.unique(together.scores)) == 9


def test_scoring_changes_neither_images_nor_model(either):
    images = images_of(2)
    before = [image.copy() for image in images]
    state = {name: tensor.clone() for name, tensor in either.state_dict().items()}
    either.score(images)
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))
    assert all(torch.equal(state[name], tensor) for name, tensor in either.state_dict().items())
    assert not either.training


def test_seed_decides_the_initial_weights_and_nothing_else_changes(small):
    random = torch.random.get_rng_state()
    one, same, other = (Glance(Config(**small), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- engines


def test_engines_agree_where_each_group_holds_one_patch(masked_model):
    model = masked_model
    # 3x3 patches at stride 16: no two are 64 pixels apart.
    assert max(map(len, model.scales[0].grid.lattices(64))) == 1
    images = images_of(2)
    by_patch = model.score(images, "patchwise")
    assert_same(model.score(images, "grouped"), by_patch)
    assert_same(model.score(images, "auto"), by_patch)
    assert_same(model.score(images, "dense"), by_patch, 1e-4)


def test_grouped_engine_ranks_patches_as_the_definition_does(masked_model):
    # The trained networks on images that hold several patches a group.
    large = Glance(Config(**{**MASKED, "image_size": 128, "blend": "paper"}))
    large.load_state_dict(
        {k: v for k, v in masked_model.state_dict().items() if not k.endswith(("residual_mean", "whitening"))}
    )
    assert max(map(len, large.scales[0].grid.lattices(64))) > 1
    images = images_of(2, size=128)
    exact, fast = (large.score(images, engine).patch_scores.ravel() for engine in ("patchwise", "grouped"))
    assert not np.array_equal(exact, fast)
    assert spearmanr(exact, fast).statistic > 0.9


def test_every_patch_is_hidden_from_its_own_global_feature(masked_model):
    scale = masked_model.scales[0]
    images = torch.from_numpy(np.stack(images_of(1)))
    top, left, bottom, right = scale.grid.holes[4]
    changed = images.clone()
    changed[:, top:bottom, left:right] = 255 - changed[:, top:bottom, left:right]
    with torch.inference_mode():
        for engine in ("dense", "grouped", "patchwise"):
            one, other = (scale.features(x, engine, 1 << 30)[1][0] for x in (images, changed))
            torch.testing.assert_close(one[4], other[4])
            assert not torch.allclose(one[3], other[3])


def test_every_patch_is_hidden_from_its_own_global_feature_in_one_pass(model):
    """Those at the border too, which show the mirror image of the border."""
    scale = model.scales[0]
    images = torch.from_numpy(np.stack(images_of(1)))
    with torch.inference_mode():
        before = scale.features(images, "auto", 0)[1][0]
        for p, (top, left, bottom, right) in enumerate(scale.grid.holes.tolist()):
            changed, place = images.clone(), (slice(max(top, 0), bottom), slice(max(left, 0), right))
            changed[0][place] = 255 - changed[0][place]
            after = scale.features(changed, "auto", 0)[1][0]
            assert torch.equal(after[p], before[p])
            # Every patch that shares no pixel with it sees it.
            rows, cols = np.divmod(np.arange(len(scale.grid)), scale.grid.cols)
            far = np.maximum(abs(rows - rows[p]), abs(cols - cols[p])) > scale.grid.hidden // 2
            assert far.any() and ((after - before)[far].abs().amax(1) > 0).all()


@pytest.mark.parametrize("frame", [0, 1, 3, 7])
def test_the_frame_is_the_mirror_image(frame):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), np.uint8))
    expected = np.pad(images.numpy(), ((0, 0), (frame, frame), (frame, frame), (0, 0)), mode="symmetric")
    assert torch.equal(mirrored(images, frame), torch.from_numpy(expected))


def test_local_features_are_those_of_each_patch_alone(either):
    scale, images = either.scales[0], torch.from_numpy(np.stack(images_of(2)))
    with torch.inference_mode():
        found = scale.local_features(images)
        assert found.shape == (2, scale.grid.rows, scale.grid.cols, scale.local.features)
        shown = mirrored(images, scale.grid.frame)
        for p, (top, left, bottom, right) in enumerate((scale.grid.holes + scale.grid.frame).tolist()):
            alone = scale.local(to_input(shown[:, top:bottom, left:right]))[:, :, 0, 0]
            torch.testing.assert_close(found.flatten(1, 2)[:, p], alone, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the equations


@pytest.mark.parametrize("net", ["surround", "pyramid"])
def test_paper_blend_is_eq_13_as_it_stands(net):
    # Two scales and a distortion head whose normalisation is not the identity.
    model = Glance(Config(**TWO, net=net, blend="paper", idw_neighbours=0, smoothing=0.0), seed=7)
    for scale in model.scales:
        torch.nn.init.uniform_(scale.distortion.norm.running_mean, -1, 1)
        torch.nn.init.uniform_(scale.distortion.norm.running_var, 0.5, 2)
    images = images_of(2, size=128)
    result = model.score(images)
    assert model.config.lambda_s == 0.8
    pairs = model.features(np.stack(images))
    for scale, (local, global_), found in zip(model.scales, pairs, result.patch_scores, strict=True):
        inconsistency = ((local - global_) ** 2).mean(-1)
        with torch.inference_mode():
            clean = torch.sigmoid(scale.distortion(local, global_))
        expected = (0.8 * inconsistency + 0.2 * (1 - clean)).numpy().reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.ptp(expected) > 1e-3 and 0 < float(clean.min()) < float(clean.max()) < 1
    # Of two scales the map is the mean, and the image's score its maximum.
    singles = [_only(model, i).score(images).maps for i in range(2)]
    np.testing.assert_allclose(result.maps, np.mean(singles, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result.scores, result.maps.max((1, 2)))


def _only(model, index):
    """The model that one scale makes alone."""
    config = model.config
    scale = {"patch": config.patches[index], "stride": config.strides[index], "frame": config.frames[index]}
    scale["finetune_steps"] = None
    alone = Glance(dataclasses.replace(config, **scale))
    alone.scales[0].load_state_dict(model.scales[index].state_dict())
    return alone


def test_calibrated_scales_are_standardised_and_the_largest_counts(untrained):
    images = np.stack(images_of(2, size=128))
    result = untrained.score(images)
    heads = untrained.head_maps(untrained.patch_scores(images))
    maps, score = [], 0
    for head, s in zip(heads, untrained.calibration.scales, strict=True):
        blend = (head.inconsistency - s.inconsistency_map.mean) / s.inconsistency_map.std
        blend = s.lambda_s * blend + (1 - s.lambda_s) * (
            (head.distortion - s.distortion_map.mean) / s.distortion_map.std
        )
        maps.append(s.weight * (blend - s.map.mean) / s.map.std)
        for values, peak in (
            (head.inconsistency, s.inconsistency_peak),
            (head.distortion, s.distortion_peak),
        ):
            score = score + (values.amax((1, 2)) - peak.mean) / peak.std
    score = (score - 1.5) / 2.5
    np.testing.assert_allclose(result.maps, torch.maximum(*maps), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.scores, score, rtol=1e-5)
    assert isinstance(result.patch_scores, tuple)
    assert [p.shape for p in result.patch_scores] == [(2, 8, 8), (2, 4, 4)]


def test_calibrated_inconsistency_is_whitened_by_position(either):
    images = np.stack(images_of(2))
    ((local, global_),) = either.features(images)
    scale = either.scales[0]
    found = either.patch_scores(images)[0].inconsistency
    for b in range(2):
        for p in range(len(scale.grid)):
            centred = local[b, p] - global_[b, p] - scale.residual_mean[p]
            expected = (scale.whitening[p].float() @ centred).square().mean()
            torch.testing.assert_close(found[b, p], expected, rtol=1e-3, atol=1e-5)


def test_lower_precision_ranks_alike(either, monkeypatch):
    # A machine without its instructions computes it all the same when it is told to.
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: True)
    images = images_of(4)
    one, other = (either.score(images, precision=p).maps.ravel() for p in ("fp32", "bf16"))
    assert not np.array_equal(one, other)
    assert spearmanr(one, other).statistic > 0.95


def test_bf16_that_the_machine_has_not_is_logged_once(model, monkeypatch, caplog):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: False)
    _log_once.cache_clear()
    for _ in range(2):
        model.score(images_of(2), precision="bf16")
    assert [(r.name, r.levelname) for r in caplog.records] == [("glance_fast.model", "WARNING")]
    assert NO_BF16 in caplog.text
    model.score(images_of(1), precision="fp32")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
def test_a_single_array_is_refused_as_a_single_path_is(model, shape):
    with pytest.raises(UserError, match="single image"):
        model.score(np.zeros(shape, np.uint8))
