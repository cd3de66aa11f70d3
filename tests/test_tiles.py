"""Photographs scored by tiles: the blend by its definition, tiles as images, crops as the whole."""

import dataclasses

import numpy as np
import pytest
import tifffile
from PIL import Image
from samples import SMALL, draw_deep_part, draw_part

import glance_fast
from glance_fast import Config, load
from glance_fast.data.images import resize
from glance_fast.data.score_maps import resize_map
from glance_fast.data.strips import Held
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.evaluation.tiled import score_by_tiles
from glance_fast.geometry import TileGrid
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.train import train_folder
from glance_fast.model import Glance, ScoreResult
from glance_fast.tiles import (
    no_region,
    prepared,
    score_images,
    score_photograph,
    score_tiles,
    tile_of,
    whole_only,
)


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


def of_tiles(model, tile=48):
    """The model as if it had been trained on tiles."""
    model.config = dataclasses.replace(model.config, tile=tile)
    return model


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(Glance, "at_once", lambda *_: 3)


def photograph(height, width):
    rng = np.random.default_rng(0)
    return resize(draw_part(rng, 160, defect=True), (height, width))


def by_definition(model, image, tile):
    """Every tile by itself; their maps at every pixel averaged by their weights."""
    grid = TileGrid(*image.shape[:2], tile)
    (height, width), total, weights, scores = (
        grid.sides,
        np.zeros(image.shape[:2]),
        np.zeros(image.shape[:2]),
        [],
    )
    reach = -(-height // 10), -(-width // 10)
    for top in grid.tops:
        for left in grid.lefts:
            found = model.score([image[top : top + height, left : left + width]])
            full = resize_map(found.maps[0], (height, width))
            scores.append(float(found.scores[0]))
            for y in range(height):
                for x in range(width):
                    # Half a pixel from the tile's border at least, level from a tenth of its side on.
                    down = min(1, (min(y, height - 1 - y) + 0.5) / reach[0])
                    across = min(1, (min(x, width - 1 - x) + 0.5) / reach[1])
                    total[top + y, left + x] += down * across * full[y, x]
                    weights[top + y, left + x] += down * across
    return total / weights, max(scores)


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(64, 64, (64, 64)), (97, 131, (48, 48)), (70, 33, (64, 64)), (40, 150, (50, 41)), (20, 21, (64, 64))],
)
def test_the_map_is_the_blend_of_the_tiles(model, height, width, tile):
    image, parts = photograph(height, width), []
    score = score_tiles(model, Held(image), tile, lambda rows: parts.append(rows.copy()))
    expected, highest = by_definition(model, image, tile)
    found = np.concatenate(parts)
    assert found.shape == (height, width) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))
    assert score == pytest.approx(highest, rel=1e-4, abs=1e-4)


def test_one_tile_is_the_image(model):
    image = photograph(90, 70)
    found = model.score([image])
    score_map, score = score_photograph(model, image, None)
    np.testing.assert_array_equal(score_map, resize_map(found.maps[0], (90, 70)))
    assert score == found.scores[0]


def test_a_crop_agrees_where_it_has_the_same_tiles(model):
    image = photograph(260, 250)
    whole, _ = score_photograph(model, image, 48)
    step = int(TileGrid(260, 250, (48, 48)).tops[1])
    # Three rows and two columns of tiles further: the same ones but for those at the far border.
    crop, _ = score_photograph(model, image[3 * step :, 2 * step :], 48)
    inner = crop[48:-48, 48:-48]
    assert inner.size > 500
    same = whole[3 * step :, 2 * step :][48:-48, 48:-48]
    np.testing.assert_allclose(inner, same, rtol=1e-4, atol=1e-4 * np.ptp(same))


def test_no_seam_where_tiles_say_the_same(model, monkeypatch):
    def level(self, images, *how):
        maps = np.full((len(images), *self.config.image_size), 3, np.float32)
        return ScoreResult(maps, np.arange(len(images), dtype=np.float32), maps)

    monkeypatch.setattr(Glance, "score", level)
    score_map, score = score_photograph(model, photograph(123, 77), 40)
    np.testing.assert_allclose(score_map, 3, rtol=1e-6)
    assert score == 2


def test_a_defect_shows_where_it_is(model):
    image = np.tile(draw_part(np.random.default_rng(0)), (3, 3, 1))
    clean, _ = score_photograph(model, image, 64)
    image[140:156, 75:91] = 255 - image[140:156, 75:91]
    found, _ = score_photograph(model, image, 64)
    y, x = np.unravel_index((found - clean).argmax(), found.shape)
    assert abs(y - 148) < 24 and abs(x - 83) < 24


def test_scores_that_are_not_finite_stay_so(model, monkeypatch):
    def broken(self, images, *how):
        maps = np.zeros((len(images), *self.config.image_size), np.float32)
        return ScoreResult(maps, np.array([np.nan, *[1.0] * (len(images) - 1)], np.float32), maps)

    monkeypatch.setattr(Glance, "score", broken)
    assert np.isnan(score_photograph(model, photograph(100, 100), 48)[1])


def test_which_tiles(run_folder):
    model = load(run_folder, "cpu")
    assert model.calibration.shape == (64, 64)
    assert tile_of(model) is None and tile_of(model, "auto") == (64, 64) and tile_of(model, 100) == (100, 100)
    for wrong in (0, -3, "wide"):
        with pytest.raises(UserError, match=rf"`tile={wrong}`: expected auto or a number of pixels"):
            tile_of(model, wrong)
    model.calibration = dataclasses.replace(model.calibration, shape=None)
    with pytest.raises(UserError, match="`tile=auto`: the model is of an earlier version"):
        tile_of(model, "auto")
    of_tiles(model)
    assert tile_of(model) == tile_of(model, "auto") == tile_of(model, 48) == (48, 48)
    with pytest.raises(UserError, match="`tile=64`: the model was trained on tiles of 48 pixels"):
        tile_of(model, 64)


def test_a_photograph_that_cannot_be_read(model, tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ImageError, match=r"a\.png: is not an image"):
        score_photograph(model, tmp_path / "a.png")
    Image.fromarray(photograph(80, 90)).save(tmp_path / "b.png")
    score_map, _ = score_photograph(model, tmp_path / "b.png")
    assert score_map.shape == (80, 90)


def test_images_as_the_model_sees_them(run_folder):
    model, images = load(run_folder, "cpu"), [photograph(90, 70), photograph(64, 130)]
    small = [prepared(model, image) for image in images]
    assert [image.shape for image in small] == [(64, 64, 3)] * 2
    whole = model.score(images)
    for (score_map, score, _), expected, value in zip(
        score_images(model, small), whole.maps, whole.scores, strict=True
    ):
        np.testing.assert_array_equal(score_map, expected)
        assert score == value
    of_tiles(model)
    for image, (score_map, score, inside) in zip(images, score_images(model, images), strict=True):
        assert inside is None
        assert prepared(model, image) is image
        expected, value = score_photograph(model, image)
        np.testing.assert_array_equal(score_map, expected)
        assert score == value


def test_what_sees_whole_photographs_refuses_a_model_of_tiles(run_folder):
    model = load(run_folder, "cpu")
    whole_only(model.config, "export")
    with pytest.raises(UserError, match="export: sees whole photographs, and this model tiles of 48 pixels"):
        whole_only(of_tiles(model).config, "export")


def test_no_region_of_interest_beside_tiles(run_folder, tmp_path, parts):
    no_region(Config(), None, "mask.png")
    no_region(Config(), (48, 48), None)
    mask, out, said = tmp_path / "mask.png", tmp_path / "out", "`roi`: a region of interest is for whole"
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    with pytest.raises(UserError, match=said):
        score_folder(run_folder, parts / "test", out, tile=48, roi=mask)
    with pytest.raises(UserError, match=said):
        glance_fast.fit(parts, Config(**SMALL, tile=48), roi=mask)
    with pytest.raises(UserError, match=said):
        evaluate(of_tiles(load(run_folder, "cpu")), parts, out, roi=mask)
    assert not out.exists()


def deep_photograph(height, width):
    return photograph(height, width).astype(np.uint16) * 16


@pytest.mark.parametrize("white", [4095, 2047])
def test_tiles_of_photographs_of_more_than_8_bits(model, white):
    model.calibration = dataclasses.replace(model.calibration, white=white)
    try:
        image = deep_photograph(97, 131)
        found, score = score_photograph(model, image, 48)
        expected, highest = by_definition(model, image, (48, 48))
    finally:
        model.calibration = dataclasses.replace(model.calibration, white=None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))
    assert score == pytest.approx(highest, rel=1e-4, abs=1e-4)


def test_for_a_model_of_8_bits_deeper_photographs_are_refused(model, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, deep_photograph(90, 100), photometric="rgb")
    for how in (
        lambda: score_photograph(model, path, 48),
        lambda: score_by_tiles(model, path, (48, 48), tmp_path / "map.tiff"),
    ):
        with pytest.raises(ImageError, match=r"a\.tif: has more than 8 bits"):
            how()
    assert not (tmp_path / "map.tiff").exists()


@pytest.mark.slow
def test_a_model_of_tiles_learns_and_scores_more_than_8_bits(tmp_path, reporter, monkeypatch):
    said, photos = [], tmp_path / "photos"
    monkeypatch.setattr(reporter, "say", said.append)
    photos.mkdir()
    for i in range(9):
        part = draw_deep_part(np.random.default_rng(i), 128, defect=i == 8)
        tifffile.imwrite(photos / f"{i}.tif", part)
    bad = photos / "8.tif"
    bad = bad.rename(tmp_path / "bad.tif")
    model = train_folder(photos, tmp_path / "run", Config(**SMALL, tile=48), device="cpu", reporter=reporter)
    assert model.calibration.white == 4095
    assert any(line.startswith("more than 8 bits: values from 0 to 4095 (12 bits) are used") for line in said)
    test = tmp_path / "test"
    test.mkdir()
    bad.rename(test / "bad.tif")
    Image.fromarray(draw_part(np.random.default_rng(20), 128)).save(test / "8-bits.png")
    found = score_folder(model, test, tmp_path / "out", overlays=True)
    assert found.summary.scored == 2
    assert "1 image has 8 bits, and those in training had more" in found.summary.remarks[0]
    shown = np.asarray(Image.open(tmp_path / "out/overlays/bad.tif.png"))
    assert shown.shape[:2] == (128, 128) and np.mean(shown > 60) > 0.3
