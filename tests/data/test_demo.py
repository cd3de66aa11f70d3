"""The built-in data set: exact masks, texture that training has not seen, one seed, one result."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from glance_fast.data import demo
from glance_fast.data.demo import DEFECTS, LARGEST, SMALLEST, TEXTURES, build_demo
from glance_fast.data.images import read_image
from glance_fast.data.layouts import normal_images, open_category, read_sample_mask
from glance_fast.errors import UserError

FEW = {"size": 96, "train": 2, "good": 1, "per_defect": 1}


def _files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_layout_is_what_our_own_reader_wants(tmp_path):
    build_demo(tmp_path / "demo", size=96, train=3, good=2, per_defect=1)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted(TEXTURES)
    for texture in TEXTURES:
        assert len(normal_images(tmp_path / "demo" / texture)) == 3
        samples = open_category(tmp_path / "demo" / texture).samples
        assert sorted(sample.defect for sample in samples) == sorted([*DEFECTS, "good", "good"])
        for sample in samples:
            image = read_image(sample.path)
            assert image.shape == (96, 96, 3)
            assert image.std() > 10
            assert read_sample_mask(sample, image.shape[:2]).any() == (sample.defect != "good")


def test_seed_decides(tmp_path):
    build_demo(tmp_path / "a", **FEW, textures=["brick"])
    build_demo(tmp_path / "b", **FEW, textures=["brick"])
    build_demo(tmp_path / "c", **FEW, textures=["brick"], seed=1)
    a, b, c = (_files(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)
    assert len(set(a.values())) == len(a)  # no two images are the same


@pytest.mark.parametrize(("texture", "kind"), list(product(TEXTURES, DEFECTS)))
def test_defect_is_where_the_mask_says_and_can_be_seen(texture, kind):
    for index in range(8):
        clean, image, mask = demo._sample(texture, "test", kind, index, 128, 0)
        change = np.abs(image.astype(int) - clean).max(axis=2)
        assert (change[~mask] == 0).all()
        assert (change[mask] > 0).mean() > 0.9
        assert change[mask].mean() > 12
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        tall, wide = (np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (1, 0))
        assert SMALLEST - 2 <= max(tall, wide) <= LARGEST + 5


def test_place_where_a_defect_would_not_show_is_given_up():
    for index in range(24):  # smooth bricks, where wiping changes next to nothing
        clean, image, mask = demo._sample("brick", "test", "smear", index, 128, 0)
        assert np.abs(image.astype(int) - clean)[mask].mean() > 12.5


def test_sizes_cover_the_range_evenly_in_their_logarithm():
    rng = np.random.default_rng(0)
    across = np.array([demo._across(rng, "blob") for _ in range(2000)])
    assert across.min() >= SMALLEST and across.max() <= LARGEST
    share = np.histogram(np.log(across), 4, np.log([SMALLEST, LARGEST]))[0] / len(across)
    assert np.abs(share - 0.25).max() < 0.05


@pytest.mark.parametrize("size", [96, 128, 192, 255, 256])
def test_training_never_sees_test_texture(size, monkeypatch):
    # Pixels that carry their own column number show where a crop was cut.
    picture = np.tile(np.arange(512, dtype=np.float32), (512, 1))
    for texture in TEXTURES:
        monkeypatch.setattr(demo.skimage_data, texture, lambda: picture)
    columns = {"train": set(), "test": set()}
    for part, index in product(columns, range(60)):
        crop = demo._crop(np.random.default_rng(index), "grass", part, size)
        assert crop.shape == (size, size)
        columns[part] |= set(np.unique(crop).astype(int).tolist())
    assert not columns["train"] & columns["test"]
    assert max(columns["test"]) < 512


def test_earlier_images_do_not_join(tmp_path):
    build_demo(tmp_path, **FEW, textures=["grass"])
    before = _files(tmp_path)
    build_demo(tmp_path, **FEW, textures=["grass"])  # the same again is no harm
    assert _files(tmp_path) == before
    with pytest.raises(UserError, match=r"holds other images, such as .*001\.png"):
        build_demo(tmp_path, **FEW | {"train": 1}, textures=["grass"])
    assert _files(tmp_path) == before


@pytest.mark.parametrize(
    ("wrong", "phrase"),
    [
        ({"size": 257}, "size must be from 96 to 256"),
        ({"size": 95}, "size must be"),
        ({"train": 0}, "train must be at least 1"),
        ({"per_defect": -1}, "at least 0"),
        ({"textures": ["sand"]}, "unknown texture sand"),
    ],
)
def test_wrong_parameters(tmp_path, wrong, phrase):
    with pytest.raises(UserError, match=phrase):
        build_demo(tmp_path / "demo", **FEW | wrong)
    assert not (tmp_path / "demo").exists()
