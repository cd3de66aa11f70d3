"""Evaluation of data sets in the layouts that people have."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import tifffile
import trees
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.images import read_image
from glance_fast.data.layouts import open_category, read_sample_mask
from glance_fast.data.score_maps import resize_map
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.evaluation.summary import METRICS, SATURATED
from glance_fast.model import Glance

PIXELS = [key for key in METRICS if key.startswith(("pro", "pixel"))]


@pytest.fixture(scope="module")
def untrained():
    return Glance(Config(image_size=64, patch=32, stride=16, width=8))


@pytest.fixture
def model(untrained):
    """With thresholds that some pixels pass and some do not."""
    before = untrained.calibration
    untrained.calibration = dataclasses.replace(before, threshold=1.5, pixel_threshold=1.5)
    yield untrained
    untrained.calibration = before


def read_json(out):
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def maps_of(category, out):
    """Written maps, in the order of the samples; those of 64x64 pixels are as they were scored."""
    return [tifffile.imread(target) for target in category.targets(out)]


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("MVTec AD", trees.mvtec_ad),
        ("VisA", lambda data: trees.visa(data.parent, data.name)),
        ("BTAD", trees.btad),
        ("CSV table", lambda data: trees.table(data.with_suffix(".csv"), *trees.TABLE)),
        ("MVTec AD 2", lambda data: trees.mvtec_ad2(data, private=False)),
    ],
)
def test_every_layout_is_evaluated_against_its_own_masks(model, tmp_path, name, build):
    data, out = build(tmp_path / "part"), tmp_path / "out"
    found = evaluate(model, data, out)
    assert found == read_json(out) and found["layout"] == name and found["notes"] == []
    category = open_category(data)
    maps = maps_of(category, out)
    masks = [read_sample_mask(sample, (64, 64)) for sample in category.samples]
    assert sum(mask.any() for mask in masks) == 2
    assert found.items() >= metrics.pixel_metrics(maps, masks).items()
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [category.place(s.path).as_posix() for s in category.samples]
    assert [row["label"] for row in rows] == [str(int(mask.any())) for mask in masks]
    assert not any(key in found for key in SATURATED) and "mean_of_defects" not in found
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "part" in page and page.count("Truth") >= 2


def test_loco_has_saturated_pro_by_kind_and_their_mean(model, tmp_path):
    data, out = trees.mvtec_loco(tmp_path / "box"), tmp_path / "out"
    found = evaluate(model, data, out, shown=["spro_5", "image_auroc"])
    category = open_category(data)
    maps = maps_of(category, out)
    box, low = trees.box() > 0, trees.box(part=(slice(28, 40), slice(8, 24))) > 0
    logical, structural = [(box, 30)], [(box, int(box.sum()))]
    # Below half of a saturation threshold that is relative.
    truth = [[], [], logical, [*logical, (low, int(low.sum()) // 2)], structural, structural]
    assert found.items() >= metrics.spro_metrics(maps, truth).items()
    by_kind = found["defects"]
    for kind, which in (("logical_anomalies", [0, 1, 2, 3]), ("structural_anomalies", [0, 1, 4, 5])):
        expected = metrics.spro_metrics([maps[i] for i in which], [truth[i] for i in which])
        assert by_kind[kind].items() >= expected.items()
    for key in (*METRICS, *SATURATED):
        assert found["mean_of_defects"][key] == pytest.approx(np.mean([d[key] for d in by_kind.values()]))
    # The regions of PRO are those of all masks together.
    masks = [np.any([box & False, *(mask for mask, _ in defects)], axis=0) for defects in truth]
    assert found["pro"] == metrics.pro_auc(maps, masks)
    assert (out / "maps/box/test/logical_anomalies/001.tiff").is_file()
    assert "sPRO 5 %" in (out / "report.html").read_text(encoding="utf-8")


def test_saturation_thresholds_keep_their_share_at_the_models_size(tmp_path):
    data = trees.mvtec_loco(tmp_path / "box")
    category = find_category(data, tmp_path / "out")
    halved = read_photographs(category, lambda image: image[::2, ::2], (32, 32))
    # Of 192 pixels 30, or half of them, or all; a quarter of the pixels are left.
    assert [[saturation for _, saturation in found] for found in halved.defects] == [
        *([], []),
        *([8], [8, 24]),
        *([48], [48]),
    ]
    assert all(int(mask.sum()) == 48 for found in halved.defects for mask, _ in found)


def test_loco_without_its_config_and_without_defects(model, tmp_path):
    data = trees.mvtec_loco(tmp_path / "box")
    (data / "defects_config.json").unlink()
    found = evaluate(model, data, tmp_path / "out")
    assert found["layout"] == "MVTec LOCO" and found["pro"] is not None and "spro_5" not in found
    with pytest.raises(UserError, match=r"got spro_5; sPRO needs MVTec LOCO's defects_config\.json"):
        evaluate(model, data, tmp_path / "other", shown=["spro_5"])
    (data / "defects_config.json").write_text(json.dumps(trees.LOCO_CONFIG))
    for kind in ("logical", "structural"):
        (data / f"test/{kind}_anomalies").rename(tmp_path / kind)
    found = evaluate(model, data, tmp_path / "good")
    assert found["spro_5"] is None and found["mean_of_defects"]["spro_5"] is None
    assert "No defective images" in found["notes"][0]


def test_masks_of_loco_are_all_named_before_anything_is_scored(model, tmp_path, monkeypatch):
    data = trees.mvtec_loco(tmp_path / "box")
    monkeypatch.setattr(type(model), "score", lambda *_: pytest.fail("scored in spite of bad files"))
    trees.save(data / "ground_truth/logical_anomalies/000/000.png", trees.box(7))
    trees.save(data / "ground_truth/structural_anomalies/001/000.png", trees.box(254, (64, 60)))
    with pytest.raises(
        ImageError, match=r"holds the value 7, but .*; and 1 more: .*the mask is 60x64"
    ) as caught:
        evaluate(model, data, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "test"])
def test_a_plain_folder_has_metrics_of_images_alone_and_says_why(model, tmp_path, below):
    trees.sorted_folder(tmp_path / "part" / below, "ok", "cut")
    found = evaluate(model, tmp_path / "part", tmp_path / "out")
    assert found["layout"] == "plain folder" and found["image_auroc"] is not None
    assert [found[key] for key in PIXELS] == [None] * len(PIXELS)
    assert found["defects"]["cut"]["image_auroc"] == found["image_auroc"]
    [note] = found["notes"]
    assert note.startswith("No masks: where the defects are is not known, and PRO")
    assert (tmp_path / "out/maps/part" / below / "ok/1.tiff").is_file()
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Truth" not in page and "No masks: where" in page


def test_a_table_without_splits_says_what_that_means(model, tmp_path):
    path = trees.table(tmp_path / "t.csv", "path,label", "photos/0.png,good", "photos/4.png,cut")
    found = evaluate(model, path, tmp_path / "out")
    assert [note[:30] for note in found["notes"]] == [
        "No masks: where the defects ar",
        "t.csv has no column 'split': g",
    ]
    assert found["defects"].keys() == {"cut"}


# ---------------------------------------------------------------- MVTec AD 2's private splits


def check_submission(folder):
    """What MVTec's own checker asks of one object: these files and no others, in this form."""
    for kind, ending in (("anomaly_images", ".tiff"), ("anomaly_images_thresholded", ".png")):
        splits = {path.name: path for path in (folder / kind / "can").iterdir()}
        assert set(splits) == {"test_private", "test_private_mixed"}
        for split, suffix in (("test_private", "regular"), ("test_private_mixed", "mixed")):
            assert {p.name for p in splits[split].iterdir()} == {f"{i:03}_{suffix}{ending}" for i in range(2)}
        assert [path.name for path in (folder / kind).iterdir()] == ["can"]
    for path in (folder / "anomaly_images").rglob("*.tiff"):
        values = tifffile.imread(path)
        assert values.ndim == 2 and values.dtype == np.float16 and np.isfinite(values).all()
    for path in (folder / "anomaly_images_thresholded").rglob("*.png"):
        values = np.asarray(Image.open(path))
        assert values.ndim == 2 and np.isin(values, (0, 255)).all()


def test_private_splits_are_written_as_the_server_takes_them(model, tmp_path):
    data, out = trees.mvtec_ad2(tmp_path / "can"), tmp_path / "out"
    trees.save(data / "test_private/001_regular.png", np.full((40, 70, 3), 90, np.uint8))
    calls = []
    photographs = [read_image(path) for path in open_category(data).unlabelled]
    maps = [model.score([model.prepare(image)]).maps[0] for image in photographs]
    middle = float(np.median(maps))
    model.calibration = dataclasses.replace(model.calibration, pixel_threshold=middle)
    found = evaluate(model, data, out, progress=lambda *call: calls.append(call))
    check_submission(out)
    for path, image, scores in zip(open_category(data).unlabelled, photographs, maps, strict=True):
        full = resize_map(scores, image.shape[:2])
        place = path.relative_to(data.parent)
        written = tifffile.imread(out / "anomaly_images" / place.with_suffix(".tiff"))
        assert written.shape == image.shape[:2]
        np.testing.assert_allclose(written, full, rtol=2e-3, atol=1e-3)
        called = np.asarray(Image.open(out / "anomaly_images_thresholded" / place.with_suffix(".png"))) > 0
        # Scored in other company, a map may differ in its last digits.
        assert called.any() and (called == (full > middle))[np.abs(full - middle) > 1e-3].all()
    # They count for nothing else.
    assert found["images"] == 4 and calls == [(0, 8), (4, 8), (8, 8)]
    assert len(list((out / "maps").rglob("*.tiff"))) == 4


def test_values_beyond_float16_stay_finite_and_a_model_without_thresholds_writes_maps_alone(
    untrained, tmp_path, monkeypatch
):
    data, score = trees.mvtec_ad2(tmp_path / "can"), Glance.score

    def huge(self, *arguments, **more):
        result = score(self, *arguments, **more)
        result.maps[:] = 1e6
        return result

    monkeypatch.setattr(Glance, "score", huge)
    evaluate(untrained, data, tmp_path / "out")
    written = [tifffile.imread(path) for path in (tmp_path / "out/anomaly_images").rglob("*.tiff")]
    assert len(written) == 4 and all((values == np.finfo(np.float16).max).all() for values in written)
    assert not (tmp_path / "out/anomaly_images_thresholded").exists()


def test_a_private_image_that_cannot_be_scored_is_named(model, tmp_path, monkeypatch):
    data, score = trees.mvtec_ad2(tmp_path / "can"), Glance.score
    bad = data / "test_private_mixed/001_mixed.png"

    def broken(self, images, *arguments, **more):
        result = score(self, images, *arguments, **more)
        for image, values in zip(images, result.maps, strict=True):
            if (image == read_image(bad)).all():
                values[3, 3] = np.nan
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Glance, "score", broken)
        with pytest.raises(UserError, match=r"001_mixed\.png: its scores are not finite"):
            evaluate(model, data, tmp_path / "out")
    bad.write_text("no image")
    with pytest.raises(ImageError, match=r"001_mixed\.png"):
        evaluate(model, data, tmp_path / "out")
    assert not (tmp_path / "out/metrics.json").exists()
