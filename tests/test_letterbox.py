"""A photograph of another shape keeps its aspect, and takes a part of the model's image."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from samples import MASKED, SMALL, draw_deep_part, draw_part

import glance_fast
from glance_fast import Config, Glance, ImageError, UserError, load
from glance_fast.data.score_maps import read_map, resize_map
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.jobs.explain import explain_images
from glance_fast.jobs.export import export_run
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.recalibrate import calibrate_run
from glance_fast.jobs.update import update_run
from glance_fast.letterbox import Box, window_of
from glance_fast.run import settings_of
from glance_fast.serving.batcher import Batcher
from glance_fast.tiles import prepared, score_images, score_photograph

# Four to three is exact there.
WIDE = {**SMALL, "image_size": 96, "stride": 8}
CPU = torch.device("cpu")
TWO = {"image_size": 256, "patch": (32, 64), "stride": (8, 16)}


def wide(rng, height=48, width=64, defect=False):
    """A band out of a part, uint8 [height, width, 3], as a camera of another format shows it."""
    return np.ascontiguousarray(draw_part(rng, width, defect)[(width - height) // 2 :][:height])


@pytest.fixture(scope="module")
def wide_parts(tmp_path_factory):
    """An MVTec category of photographs of 96x128 pixels; the test images have three shapes."""
    root = tmp_path_factory.mktemp("wide") / "plates"
    rng = np.random.default_rng(0)

    def save(image, *place):
        path = root.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for i in range(12):
        save(wide(rng, 96, 128), "train", "good", f"{i:03}.png")
    for i, (height, width) in enumerate([(96, 128), (96, 96), (64, 128)]):
        image = np.ascontiguousarray(draw_part(rng, 128)[:height, :width])
        save(image, "test", "good", f"{i:03}.png")
        image[30:50, 40:60] = 10
        save(image, "test", "punched", f"{i:03}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[30:50, 40:60] = 255
        save(mask, "ground_truth", "punched", f"{i:03}_mask.png")
    return root


@pytest.fixture(scope="module")
def wide_run(wide_parts, tmp_path_factory):
    """A run folder of a model that keeps aspects; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "wide"
    glance_fast.fit(wide_parts, Config(**WIDE, aspect="letterbox"), run, device="cpu")
    return run


@pytest.fixture
def model(run_folder):
    """One of square photographs that keeps the aspect of others."""
    model = load(run_folder, "cpu")
    model.config = dataclasses.replace(model.config, aspect="letterbox")
    return model


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        (256, (1000, 1000), (256, 256)),
        (256, (600, 800), (192, 256)),
        (256, (800, 600), (256, 192)),
        (256, (30, 40), (192, 256)),
        (256, (1000, 1020), (256, 256)),
        # 170.7 rows: patches cover 176.
        (256, (1000, 1500), (176, 256)),
        ((192, 256), (600, 800), (192, 256)),
        ((192, 256), (800, 800), (192, 192)),
        ((192, 256), (500, 1000), (128, 256)),
    ],
)
def test_a_photograph_keeps_its_aspect(size, shape, expected):
    config = Config(**TWO | {"image_size": size}, aspect="letterbox")
    assert config.size_for(shape) == expected
    # What is prepared stays as it is, and so does the size of a model that is made for such photographs.
    assert config.size_for(expected) == expected
    assert dataclasses.replace(config, image_size=expected).size_for(shape) == expected
    assert dataclasses.replace(config, aspect="stretch").size_for(shape) == config.image_size


def test_one_side_is_the_models_and_the_other_off_by_half_a_step_at_most():
    rng = np.random.default_rng(0)
    for size in (256, (192, 256), (320, 144)):
        config = Config(**TWO | {"image_size": size}, aspect="letterbox")
        for height, width in rng.integers(100, 1000, (200, 2)).tolist():
            try:
                rows, cols = config.size_for((height, width))
            except UserError:
                assert not 0.4 < width / height / (config.image_size[1] / config.image_size[0]) < 2.5
                continue
            assert rows == config.image_size[0] or cols == config.image_size[1]
            assert rows <= config.image_size[0] and cols <= config.image_size[1]
            off = min(abs(rows * width / height - cols), abs(cols * height / width - rows))
            assert off <= config.step / 2 + 0.5
            assert config.size_for((rows, cols)) == (rows, cols)


def test_a_long_photograph_is_refused(model):
    config = Config(**TWO, aspect="letterbox")
    with pytest.raises(
        UserError, match=r"^3000x300: too few patches are left in its own aspect within 256x256 "
    ):
        config.size_for((300, 3000))
    with pytest.raises(ImageError, match=r"^a\.png: 300x60: too few patches .* image_size$"):
        model.prepare(np.zeros((60, 300, 3), np.uint8), "a.png")


@pytest.mark.parametrize("size", [(192, 256), (256, 144), (256, 256), (112, 256)])
def test_patches_are_the_models_own_moved(size):
    config = Config(**TWO, aspect="letterbox")
    window = window_of(config, size, CPU)
    top, left, bottom, right = window.box
    assert (bottom - top, right - left) == size
    for axis in (0, 1):
        beyond = window.box[axis], 256 - window.box[axis + 2]
        assert 0 <= beyond[1] - beyond[0] <= config.step
    for grid, whole, places in zip(window.grids, config.grids, window.places, strict=True):
        np.testing.assert_array_equal(grid.holes + np.array([top, left] * 2), whole.holes[places.numpy()])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"aspect": "pad"}, "aspect: expected stretch or letterbox, got 'pad'"),
        (
            {**MASKED, "aspect": "letterbox"},
            "aspect: net 'pyramid' tells where a patch lies by the whole image",
        ),
        ({"aspect": "letterbox", "tile": 256}, "aspect: a tile is square and never stretched"),
    ],
)
def test_settings_that_do_not_go_together(more, words):
    with pytest.raises(UserError, match=words):
        Config(**more)


def test_settings_of_before_are_known_by_their_text():
    assert (
        "aspect" not in Config().to_toml() and 'aspect = "letterbox"' in Config(aspect="letterbox").to_toml()
    )


# ---------------------------------------------------------------- scores


def test_a_photograph_of_the_models_shape_scores_to_the_bit_as_if_stretched(model, run_folder):
    images = [draw_part(np.random.default_rng(0), 90), draw_part(np.random.default_rng(1), 64, True)]
    found, expected = model.score(images), load(run_folder, "cpu").score(images)
    for name in ("maps", "scores", "patch_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.boxes == [Box(0, 0, 64, 64)] * 2 and expected.boxes is None


def cut_out(model, size):
    """A model of a smaller image size: the same nets, and what is normal in the middle of the larger."""
    window = window_of(model.config, size, CPU)
    part = Glance(dataclasses.replace(model.config, image_size=size, aspect="stretch"))
    for own, given, cells, places in zip(part.scales, model.scales, window.cells, window.places, strict=True):
        own.local.load_state_dict(given.local.state_dict())
        own.distortion.load_state_dict(given.distortion.state_dict())
        own.global_net.load_state_dict(given.global_net.state_dict())
        own.global_net.position = given.global_net.position[cells]
        own.residual_mean, own.whitening = given.residual_mean[places], given.whitening[places]
    part.calibration = model.calibration
    return part


@pytest.mark.parametrize("shape", [(48, 64), (32, 64), (64, 48), (96, 130)])
def test_a_letterboxed_photograph_scores_as_by_a_model_of_its_size(model, shape):
    image = wide(np.random.default_rng(3), *shape, True) if shape[0] < shape[1] else None
    image = draw_part(np.random.default_rng(3), 64, True)[:, :48] if image is None else image
    size = model.config.size_for(image.shape[:2])
    found, expected = model.score([image]), cut_out(model, size).score([image])
    score_map, _ = found.seen(0)
    assert score_map.shape == size != model.config.image_size
    np.testing.assert_allclose(score_map, expected.maps[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    rows, cols = window_of(model.config, size, CPU).cells[0]
    np.testing.assert_allclose(found.patch_scores[0, rows, cols], expected.patch_scores[0], rtol=1e-3)


def test_local_features_are_those_of_the_photograph_padded_by_hand(model):
    """At the same scale, whatever it is padded with, of patches that lie wholly within it."""
    image = wide(np.random.default_rng(3))
    padded = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    padded[:48] = image
    own, whole = (model.features(batch[None])[0][0] for batch in (image, padded))
    own, whole = own.view(3, 4, -1), whole.view(4, 4, -1)
    # The first and the last row and column reach into the frame.
    np.testing.assert_allclose(own[1:2, 1:3], whole[1:2, 1:3], rtol=1e-4, atol=1e-5)


def test_what_lies_beyond_counts_nowhere(model):
    rng = np.random.default_rng(5)
    images = [draw_part(rng), wide(rng, defect=True), wide(rng), draw_part(rng)[:, :48], draw_part(rng)]
    found = model.score(images)
    lowest = min(0.0, model.calibration.pixel_threshold)
    assert np.isfinite(found.maps).all() and np.isfinite(found.scores).all()
    assert [box.bottom - box.top for box in found.boxes] == [64, 48, 48, 64, 64]
    for i, (image, (top, left, bottom, right)) in enumerate(zip(images, found.boxes, strict=True)):
        score_map, inside = found.seen(i)
        assert score_map.shape == image.shape[:2] and inside is None
        beyond = np.ones((64, 64), bool)
        beyond[top:bottom, left:right] = False
        assert (found.maps[i][beyond] <= min(lowest, score_map.min())).all()
        cells = window_of(model.config, image.shape[:2], CPU).cells[0]
        none = np.isnan(found.patch_scores[i])
        assert not none[cells].any() and none.sum() == none.size - none[cells].size
        # One by one as together.
        alone = model.score([image])
        np.testing.assert_allclose(alone.maps[0], found.maps[i], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(alone.scores[0], found.scores[i], rtol=1e-4, atol=1e-4)
    assert model.score([]).boxes == []


def test_a_spot_is_found_where_it_is(wide_run):
    model = load(wide_run, "cpu")
    for shape in ((96, 128), (96, 96), (128, 96), (64, 128)):
        image = np.ascontiguousarray(draw_part(np.random.default_rng(6), 128)[: shape[0], : shape[1]])
        spoilt = image.copy()
        spoilt[30:54, 40:64] = 10
        (good, _, _), (bad, _, _) = score_images(model, [model.prepare(i) for i in (image, spoilt)])
        full = resize_map(bad - good, shape)
        y, x = np.unravel_index(full.argmax(), shape)
        assert 22 <= y < 62 and 32 <= x < 72, (shape, y, x)


def test_photographs_of_more_than_8_bits_keep_their_aspect(deep_run):
    model = load(deep_run, "cpu")
    model.config = dataclasses.replace(model.config, aspect="letterbox")
    image = np.ascontiguousarray(draw_deep_part(np.random.default_rng(3), defect=True)[8:56])
    ready = model.prepare(image)
    assert ready.dtype == np.uint16 and ready.shape == (48, 64, 3)
    np.testing.assert_array_equal(ready[..., 0], image)
    assert np.isfinite(model.score([image]).seen(0)[0]).all()


def test_tensors_are_letterboxed_too(model):
    image = wide(np.random.default_rng(3), defect=True)
    maps, scores = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    expected = model.score([image])
    np.testing.assert_allclose(maps[0], expected.seen(0)[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-3, atol=1e-3)
    larger, _ = model(torch.rand(1, 3, 96, 128))
    assert larger.shape == (1, 96, 128)


def test_who_serves_and_watches_gets_the_photographs_part(model):
    image = wide(np.random.default_rng(3), 96, 128)
    (seen,) = score_images(model, [prepared(model, image)])
    assert seen.map.shape == (48, 64) and seen.inside is None
    np.testing.assert_array_equal(seen.map, model.score([image]).seen(0)[0])
    batcher = Batcher(model)
    # Of several shapes at once, in their order.
    others = [batcher.submit(prepared(model, i)) for i in (draw_part(np.random.default_rng(1)), image)]
    assert [other.result().map.shape for other in others] == [(64, 64), (48, 64)]
    batcher.close()


# ---------------------------------------------------------------- commands


def table(out):
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_score_dir_writes_maps_of_photographs_of_all_shapes(wide_run, tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(8)
    photos.mkdir()
    shapes = {"a.png": (96, 128), "b.png": (100, 100), "c.png": (70, 140), "d.png": (130, 100)}
    for name, (height, width) in shapes.items():
        Image.fromarray(draw_part(rng, 140)[:height, :width]).save(photos / name)
    Image.fromarray(draw_part(rng, 400)[:60]).save(photos / "long.png")
    done = score_folder(wide_run, photos, tmp_path / "out", overlays=True, device="cpu")
    assert (done.summary.scored, done.summary.errors) == (4, 1)
    assert not any("stretched" in remark for remark in done.summary.remarks)
    rows, model = table(tmp_path / "out"), load(wide_run, "cpu")
    assert rows["long.png"]["error"].startswith(
        "400x60: too few patches are left in its own aspect within 96x72"
    )
    for name, shape in shapes.items():
        found = read_map(tmp_path / "out/maps" / f"{name}.tiff")
        result = model.score([photos / name])
        assert found.shape == shape
        np.testing.assert_allclose(found, resize_map(result.seen(0)[0], shape), rtol=1e-3, atol=1e-3)
        assert float(rows[name]["score"]) == pytest.approx(float(result.scores[0]), abs=2e-3)


def test_evaluate_measures_at_the_photographs_own_sizes(wide_run, wide_parts, tmp_path):
    found = evaluate(load(wide_run, "cpu"), wide_parts, tmp_path / "out")
    sizes = [read_map(p).shape for p in sorted((tmp_path / "out/maps").rglob("*.tiff"))]
    assert sizes == [(96, 128), (96, 96), (64, 128)] * 2
    # The same as of the maps that it wrote.
    again = glance_fast.evaluation.evaluate.evaluate_maps(
        tmp_path / "out/maps", wide_parts, tmp_path / "again"
    )
    assert found["pixel_auroc"] == again["pixel_auroc"] > 0.5 and found["pro"] == again["pro"]
    assert json.loads((tmp_path / "out/metrics.json").read_text())["images"] == 6


def test_training_takes_the_shape_of_its_photographs(wide_run, wide_parts, tmp_path):
    assert settings_of(wide_run).image_size == (72, 96)
    assert load(wide_run, "cpu").calibration.aspect == pytest.approx(4 / 3)
    # To the byte as by a size of that shape, but for what is said of the aspect.
    glance_fast.fit(wide_parts, Config(**WIDE | {"image_size": (72, 96)}), tmp_path / "run", device="cpu")
    for name in ("model.safetensors", "calibration.json", "normal.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (wide_run / name).read_bytes()


def test_a_training_that_was_broken_off_goes_on(wide_parts, wide_run, tmp_path):
    def listen(event):
        if event.name == "global-32":
            raise KeyboardInterrupt

    config = Config(**WIDE, aspect="letterbox")
    with pytest.raises(KeyboardInterrupt):
        glance_fast.fit(wide_parts, config, tmp_path / "run", device="cpu", callback=listen)
    glance_fast.fit(wide_parts, config, tmp_path / "run", device="cpu")
    for name in ("model.safetensors", "config.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (wide_run / name).read_bytes()


def test_photographs_of_several_shapes_are_not_trained_on(wide_parts, wide_run, tmp_path):
    good = shutil.copytree(wide_parts / "train/good", tmp_path / "good")
    Image.fromarray(draw_part(np.random.default_rng(0), 96)).save(good / "z.png")
    said = r"z\.png: is 96x96, another shape than the 96x72 of the model; with aspect = letterbox, it is"
    with pytest.raises(UserError, match=said):
        glance_fast.fit(good, Config(**WIDE, aspect="letterbox"), device="cpu")
    run = shutil.copytree(wide_run, tmp_path / "run")
    before = (run / "model.safetensors").read_bytes()
    # A model is not lost to them.
    with pytest.raises(UserError, match=said):
        glance_fast.fit(good, Config(**WIDE, aspect="letterbox"), run, overwrite=True, device="cpu")
    assert (run / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match=said):
        calibrate_run(run, good, device="cpu")


def test_what_is_for_one_shape_says_so(model, wide_run, wide_parts, tmp_path):
    mask, good = tmp_path / "mask.png", wide_parts / "train/good"
    Image.fromarray(np.full((96, 128), 255, np.uint8)).save(mask)
    one_shape = "a region of interest is for photographs of one shape, and aspect is 'letterbox'"
    config = Config(**WIDE, aspect="letterbox")
    for said, call in (
        (one_shape, lambda: model.score([np.zeros((64, 64, 3), np.uint8)], roi=np.ones((64, 64), bool))),
        (one_shape, lambda: glance_fast.fit(good, config, roi=mask, device="cpu")),
        (one_shape, lambda: score_folder(wide_run, good, tmp_path / "out", roi=mask, device="cpu")),
        (one_shape, lambda: evaluate(load(wide_run, "cpu"), wide_parts, tmp_path / "out", roi=mask)),
        ("`tile=48`: the model keeps", lambda: score_folder(wide_run, good, tmp_path / "out", tile=48)),
        ("`tile=auto`: the model keeps", lambda: score_photograph(model, np.zeros((64, 64, 3), np.uint8))),
        ("^export: sees photographs of the model's shape", lambda: export_run(wide_run, tmp_path / "m.onnx")),
        (
            "^explain: sees photographs of the model's",
            lambda: explain_images(wide_run, [good], mask),
        ),
        ("^update: sees photographs of the model's shape", lambda: update_run(wide_run, good)),
    ):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
