"""Evaluation of data sets in the layouts that people have."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import tifffile
import trees

from glance_fast.config import Config
from glance_fast.data.layouts import open_category, read_sample_mask
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
