"""A large photograph and its files: the map as it comes, and a picture that can be looked at."""

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast import load
from glance_fast.data.images import read_image
from glance_fast.data.resolution import resolution_of
from glance_fast.data.score_maps import read_map, write_tiff
from glance_fast.errors import ImageError
from glance_fast.evaluation import tiled
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.evaluation.tiled import Picture, score_by_tiles
from glance_fast.model import NOT_FINITE, Glance, ScoreResult
from glance_fast.tiles import score_photograph


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture
def path(tmp_path):
    Image.fromarray(draw_part(np.random.default_rng(0), 150, defect=True)[:, :131]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_files_are_those_of_the_photograph(model, path, tmp_path):
    score, shape, _ = score_by_tiles(model, path, (48, 48), tmp_path / "m.tiff", tmp_path / "o.png")
    expected, highest = score_photograph(model, path, 48)
    assert score == highest and shape == (150, 131)
    np.testing.assert_array_equal(read_map(tmp_path / "m.tiff"), expected)
    # To the byte what is written of a map as a whole.
    write_tiff(tmp_path / "whole.tiff", expected)
    assert (tmp_path / "m.tiff").read_bytes() == (tmp_path / "whole.tiff").read_bytes()
    picture = overlay(read_image(path), expected, *display_range(model.calibration))
    np.testing.assert_array_equal(read_image(tmp_path / "o.png"), picture)


def test_a_photograph_that_is_read_in_parts_hands_its_resolution_on(model, path, tmp_path, monkeypatch):
    pytest.importorskip("pyvips")
    with Image.open(path) as image:
        image.save(tmp_path / "a.tif", dpi=(300, 150))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    score_by_tiles(model, tmp_path / "a.tif", (48, 48), tmp_path / "m.tiff")
    assert resolution_of(tmp_path / "m.tiff") == (300, 150, "INCH")


@pytest.mark.parametrize("most", [150 * 131, 5000, 700])
def test_a_picture_is_reduced_by_a_whole_number(model, path, tmp_path, monkeypatch, most):
    monkeypatch.setattr(tiled, "MOST_SHOWN", most)
    score_by_tiles(model, path, (48, 48), tmp_path / "m.tiff", tmp_path / "o.png")
    height, width = read_image(tmp_path / "o.png").shape[:2]
    step = round(150 / height)
    assert height * width <= most + 150 + 131
    assert (height, width) == (-(-150 // step), -(-131 // step)) and (step == 1) == (most == 150 * 131)


def test_a_reduced_picture_has_the_mean_colours_and_the_highest_scores():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    scores = rng.normal(size=(23, 31)).astype(np.float32)
    picture = Picture((23, 31), 100)
    for top in range(0, 23, 5):
        picture.add(top, image[top : top + 5], scores[top : top + 5])
    small, highest = picture.reduced()
    assert small.shape == (8, 11, 3) and small.dtype == np.uint8
    for y in range(8):
        for x in range(11):
            block = slice(3 * y, 3 * y + 3), slice(3 * x, 3 * x + 3)
            np.testing.assert_array_equal(small[y, x], np.rint(image[block].mean((0, 1), dtype=np.float32)))
            assert highest[y, x] == scores[block].max()


def test_nothing_is_left_of_scores_that_are_not_finite(model, path, tmp_path, monkeypatch):
    for bad in ("map", "score"):

        def broken(self, images, *how, bad=bad):
            maps = np.zeros((len(images), *self.config.image_size), np.float32)
            scores = np.zeros(len(images), np.float32)
            (maps if bad == "map" else scores)[-1] = np.inf
            return ScoreResult(maps, scores, maps)

        monkeypatch.setattr(Glance, "score", broken)
        with pytest.raises(ImageError) as error:
            score_by_tiles(model, path, (48, 48), tmp_path / "m.tiff", tmp_path / "o.png")
        assert error.value.reason == NOT_FINITE and error.value.path == path
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]


def test_nothing_is_left_of_a_photograph_that_is_cut_short(model, path, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageError, match="damaged or truncated"):
        score_by_tiles(model, path, (48, 48), tmp_path / "m.tiff", tmp_path / "o.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]
