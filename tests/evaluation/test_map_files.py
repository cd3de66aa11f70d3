"""Maps as files, ours and others', against what MVTec publishes of its evaluation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from glance_fast.config import Config
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.evaluate import evaluate, evaluate_maps
from glance_fast.evaluation.inputs import find_category
from glance_fast.evaluation.map_files import find_maps, read_maps
from glance_fast.model import Glance

SIZES = [(64, 64), (48, 80), (91, 33)]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def build(data, sizes=SIZES):
    """A category with two kinds of defects, several regions in a mask, and images of different sizes."""
    rng = np.random.default_rng(5)
    for defect, count in {"good": 3, "cut": 3, "two spots": 2}.items():
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            image = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
            if defect != "good":
                mask = np.zeros((height, width), np.uint8)
                mask[5:11, 4:20] = mask[20:24, 8:14] = 255
                image[mask > 0] = 250
                save(data / "ground_truth" / defect / f"{i:03}_mask.png", mask)
            save(data / "test" / defect / f"{i:03}.png", image)
    return data


def other_maps(data, folder, write):
    """Maps of another method, rounded so that there are ties."""
    for path in sorted((data / "test").rglob("*.png")):
        image = np.asarray(Image.open(path), np.float32)[..., 0]
        score_map = np.round(ndimage.gaussian_filter(image, 1.5) / 8, 1)
        target = folder / path.relative_to(data.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target.with_suffix(".tiff"), score_map)
    return folder


def plain(path, score_map):
    tifffile.imwrite(path, score_map)


def trapezoids(x, y, limit):
    """Area up to the limit, over the limit; the curve is a straight line between its points."""
    inside = x <= limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / limit)


def mvtec(anomaly_maps_dir, data):
    """PRO up to 0.3, pixel and image AUROC, from files as MVTec publishes them, and by its definitions.

    A map has its image's size. Regions are 8-connected. All distinct scores are thresholds. The score of an
    image is the maximum of its map.
    """
    scores, false, overlap, pixels, image_scores, labels = [], [], [], [], [], []
    for folder in sorted((data / "test").iterdir()):
        for path in sorted(folder.glob("*.png")):
            file = anomaly_maps_dir / data.name / "test" / folder.name / f"{path.stem}.tiff"
            score_map = tifffile.imread(file).astype(np.float64)
            mask = np.zeros(score_map.shape, bool)
            if folder.name != "good":
                truth = data / "ground_truth" / folder.name / f"{path.stem}_mask.png"
                mask = np.asarray(Image.open(truth)) > 0
            assert mask.shape == score_map.shape == Image.open(path).size[::-1]
            regions, _ = ndimage.label(mask, np.ones((3, 3)))
            share = np.zeros(mask.shape)
            for number in np.unique(regions[mask]):
                share[regions == number] = 1 / (regions == number).sum()
            for values, per_pixel in ((scores, score_map), (false, ~mask), (overlap, share), (pixels, mask)):
                values.append(per_pixel.ravel())
            image_scores.append(score_map.max())
            labels.append(bool(mask.any()))

    def curve(ranked, steps):
        order = np.argsort(-ranked, kind="stable")
        last = np.append(np.diff(ranked[order]) != 0, True)
        found = np.cumsum(steps.astype(np.float64)[order])[last]
        return np.concatenate([[0], found / found[-1]])

    scores, false, overlap, pixels = map(np.concatenate, (scores, false, overlap, pixels))
    image_scores, labels = np.array(image_scores), np.array(labels)
    fpr = curve(scores, false)
    return {
        "pro": trapezoids(fpr, curve(scores, overlap), 0.3),
        "pixel_auroc": trapezoids(fpr, curve(scores, pixels), 1.0),
        "image_auroc": trapezoids(curve(image_scores, ~labels), curve(image_scores, labels), 1.0),
    }


def of_these(found):
    return {name: found[name] for name in ("pro", "pixel_auroc", "image_auroc")}


@pytest.fixture
def data(tmp_path):
    return build(tmp_path / "part")


def test_our_maps_by_its_definition(tmp_path):
    data = build(tmp_path / "part", SIZES[:1])
    model = Glance(Config(image_size=64, patch=32, stride=16, width=8))
    ours = evaluate(model, data, tmp_path / "ours")
    expected = mvtec(tmp_path / "ours" / "maps", data)
    # Photographs of the model's size: what it decides by is what the files hold, but for an image's score.
    assert expected["pro"] == pytest.approx(ours["pro"], abs=1e-6) and 0 < ours["pro"] < 1
    assert expected["pixel_auroc"] == pytest.approx(ours["pixel_auroc"], abs=1e-6)
    assert of_these(evaluate_maps(tmp_path / "ours" / "maps", data, tmp_path / "again")) == pytest.approx(
        expected, abs=1e-6
    )


def deflated_tiles(path, score_map):
    tifffile.imwrite(path, score_map, compression="zlib", tile=(16, 16))


def half(path, score_map):
    tifffile.imwrite(path, score_map.astype(np.float16))


def deflated_half(path, score_map):
    tifffile.imwrite(path, score_map.astype(np.float16), compression="zlib")


def double(path, score_map):
    # A tenth is no float32: its neighbours must not become equal.
    tifffile.imwrite(path, np.round(score_map.astype(np.float64), 1) + 1e-12 * (score_map > 14))


def big_endian(path, score_map):
    tifffile.imwrite(path, score_map, byteorder=">")


@pytest.mark.parametrize("write", [plain, deflated_tiles, half, deflated_half, double, big_endian])
def test_its_maps_by_our_function(data, tmp_path, write):
    folder = other_maps(data, tmp_path / "maps", write)
    found = evaluate_maps(folder, data, tmp_path / "out")
    expected = mvtec(folder, data)
    assert of_these(found) == pytest.approx(expected, abs=1e-6)
    assert all(0 < value <= 1 for value in expected.values()) and expected["pro"] < 1


@pytest.mark.parametrize("lzw", [{}, {"tiffinfo": {317: 3}}], ids=["LZW", "LZW with predictor"])
def test_compressions_that_tifffile_does_not_decode_by_itself(data, tmp_path, lzw):
    def write(path, score_map):
        Image.fromarray(score_map).save(path, compression="tiff_lzw", **lzw)

    found = evaluate_maps(other_maps(data, tmp_path / "lzw", write), data, tmp_path / "out")
    expected = mvtec(other_maps(data, tmp_path / "plain", plain), data)
    assert of_these(found) == pytest.approx(expected, abs=1e-6)


def test_what_is_written_of_maps(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    calls = []
    found = evaluate_maps(
        folder, data, tmp_path / "out", bootstrap=50, progress=lambda *call: calls.append(call)
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")) == found
    assert found["maps"] == folder.as_posix() and not {"engine", "precision", "seconds"} & set(found)
    assert found["threshold"] == {"value": None, "false_positives": None, "missed": None, "f1": None}
    assert list(found["defects"]) == ["cut", "two spots"]
    assert found["defects"]["cut"]["missed"] is None and 0 < found["defects"]["cut"]["pro"] <= 1
    assert found["notes"] == ["Map files have no threshold: nothing is called anomalous or missed."]
    assert found["bootstrap"] == 50
    for name, (low, high) in found["intervals"].items():
        assert 0 <= low <= high <= 1, name
    assert calls == [(i, 8) for i in range(9)]

    lines = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,score,above,anomalous,error,defect,label"
    first = tifffile.imread(folder / "part" / "test" / "cut" / "000.tiff").max()
    assert lines[1] == f"test/cut/000.png,{first:.9g},,,,cut,1" and len(lines) == 9
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "curves.png", "metrics.json", "report.html", "scores.csv"
    ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"maps of {folder.as_posix()}" in page and "Settings of the model" not in page
    assert "50 resamples" in page and page.count("no verdict") == 3 + 2 + 2
    low, high = found["intervals"]["pro"]
    assert f"{low:.3f} to {high:.3f}" in page
    # Maps are as large as the pictures beside them, not as their files.
    tiles = re.findall(r'aspect-ratio:(\d+)/(\d+)"', page)
    assert max(int(side) for tile in tiles for side in tile) == 384


def test_the_category_folder_itself_and_short_suffixes(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    expected = evaluate_maps(folder, data, tmp_path / "first")
    for path in list(folder.rglob("*.tiff"))[::2]:
        path.rename(path.with_suffix(".TIF"))
    found = evaluate_maps(folder / "part", data, tmp_path / "second")
    assert found | {"maps": ""} == expected | {"maps": ""}


def test_a_map_without_an_image_is_told_and_left_out(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    expected = evaluate_maps(folder, data, tmp_path / "first")
    stray = folder / "part" / "test" / "cut" / "777.tiff"
    plain(stray, np.full((9, 9), np.nan, np.float32))
    (stray.parent / "notes.png").touch()
    found = evaluate_maps(folder, data, tmp_path / "second")
    assert found["notes"][0] == f"Map files without a test image: 1, the first {stray.as_posix()}. Left out."
    assert of_these(found) == of_these(expected)


def test_a_missing_map_is_named_with_what_was_expected(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    gone = folder / "part" / "test" / "cut" / "001.tiff"
    gone.unlink()
    line = f"{data}/test/cut/001.png: has no map; expected {gone}"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        evaluate_maps(folder, data, tmp_path / "out")
    (gone.parent / "002.tiff").unlink()
    with pytest.raises(UserError, match=re.escape(f"{line} (1 more like it)")):
        evaluate_maps(folder, data, tmp_path / "out")


def test_two_maps_of_one_image_are_refused(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    plain(folder / "part" / "test" / "cut" / "001.tif", np.zeros((9, 9), np.float32))
    with pytest.raises(UserError, match=r"001\.tiff?: beside it lies 001\.tiff?; an image has one map"):
        evaluate_maps(folder, data, tmp_path / "out")


def test_a_folder_that_holds_no_maps(data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a run folder .* nor a folder of maps \(neither part/test"):
        evaluate_maps(tmp_path / "empty", data, tmp_path / "out")
    # The photographs themselves are no maps.
    with pytest.raises(UserError, match=r"has no map; expected .*part/test/cut/000\.tiff \(7 more"):
        evaluate_maps(data, data, tmp_path / "out")


def test_bad_files_are_all_named_before_anything_is_written(data, tmp_path):
    folder = other_maps(data, tmp_path / "maps", plain)
    test = folder / "part" / "test"
    nan = tifffile.imread(test / "good" / "000.tiff")
    nan[3, 4] = np.nan
    plain(test / "good" / "000.tiff", nan)
    plain(test / "cut" / "000.tiff", np.zeros((80, 48), np.float32))
    (test / "cut" / "001.tiff").write_bytes(b"II*\0 damaged")
    (data / "test" / "cut" / "002.png").write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        evaluate_maps(folder, data, tmp_path / "out")
    said = str(caught.value)
    assert "\n" not in said and "3 more" in said
    assert f"{test / 'good' / '000.tiff'}: holds NaN" in said
    assert f"{test / 'cut' / '000.tiff'}: the map is 48x80, its image 64x64" in said
    assert f"{test / 'cut' / '001.tiff'}: damaged" in said and "002.png: is not an image" in said
    assert not (tmp_path / "out").exists()


def test_a_set_without_defects_has_no_metrics(tmp_path):
    data = tmp_path / "part"
    save(data / "test" / "good" / "0.png", np.zeros((20, 30, 3), np.uint8))
    folder = other_maps(data, tmp_path / "maps", plain)
    found = evaluate_maps(folder, data, tmp_path / "out", bootstrap=10)
    assert found["pro"] is None and found["intervals"] == dict.fromkeys(found["intervals"])
    assert "No defective images" in found["notes"][0]


def test_maps_are_read_once(data, tmp_path):
    category = find_category(data, tmp_path / "out")
    folder = other_maps(data, tmp_path / "maps", half)
    maps = read_maps(find_maps(folder, category, tmp_path / "out"), category)
    assert {score_map.dtype for score_map in maps.maps} == {np.dtype(np.float16)}
    for path in folder.rglob("*.tiff"):
        path.unlink()
    assert evaluate_maps(maps, category, tmp_path / "out")["images"] == 8
