"""regions.jsonl: what stands out in each map, however the folder was scored."""

import json

import numpy as np
import pytest
import tifffile

from glance_fast import UserError, load
from glance_fast.data.score_maps import write_tiff
from glance_fast.data.table import ScoreRow
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.regions import write_regions
from glance_fast.jobs.table import write_rows


def read(out):
    return [json.loads(line) for line in (out / "regions.jsonl").read_text().splitlines()]


@pytest.fixture
def maps(tmp_path):
    """Two maps with scores, one without regions, and an image that has no score."""
    first = np.zeros((20, 30), np.float32)
    first[2:5, 4:10], first[3, 5] = 2, 7
    first[10:12, 20:21], first[12, 21] = 3, 2.5  # touches at a corner
    first[19, 0] = 1  # not above the threshold
    write_tiff(tmp_path / "maps/b/ä.png.tiff", first)
    write_tiff(tmp_path / "maps/a.png.tiff", np.zeros((5, 6), np.float32))
    rows = [ScoreRow("b/ä.png", "9", "0.1", "1"), ScoreRow("x.png", "", "", "", "broken")]
    write_rows(tmp_path / "scores.csv", [*rows, ScoreRow("a.png", "0", "1", "0")])
    return tmp_path


def test_regions_are_those_of_the_maps(maps):
    assert write_regions(maps, maps / "scores.csv", 1.0, coco=True) == 2
    first, second = read(maps)
    assert second == {"path": "a.png", "height": 5, "width": 6, "regions": []}
    assert (first["path"], first["height"], first["width"]) == ("b/ä.png", 20, 30)
    assert first["regions"] == [
        {
            "box": {"top": 2, "left": 4, "bottom": 5, "right": 10},
            "area": 18,
            "peak": 7.0,
            "centroid": {"y": 3.0, "x": 6.5},
        },
        {
            "box": {"top": 10, "left": 20, "bottom": 13, "right": 22},
            "area": 3,
            "peak": 3.0,
            "centroid": {"y": 11.0, "x": 20.33},
        },
    ]
    coco = json.loads((maps / "regions.coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["b/ä.png", "a.png"]
    assert [a["bbox"] for a in coco["annotations"]] == [[4, 2, 6, 3], [20, 10, 2, 3]]
    assert {a["image_id"] for a in coco["annotations"]} == {coco["images"][0]["id"]}


def test_what_cannot_be_had(maps):
    with pytest.raises(UserError, match="not calibrated"):
        write_regions(maps, maps / "scores.csv", None)
    (maps / "maps/a.png.tiff").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"a\.png\.tiff: .*`resume=True`"):
        write_regions(maps, maps / "scores.csv", 1.0)
    assert not (maps / "regions.jsonl").exists()


def test_whole_resumed_and_in_shards_they_are_the_same(run_folder, parts, tmp_path):
    model, images = load(run_folder, "cpu"), parts / "test"
    whole, late, shards = (tmp_path / name for name in ("whole", "late", "shards"))
    score_folder(model, images, whole, coco=True)
    score_folder(model, images, late)
    assert not (late / "regions.jsonl").exists()
    score_folder(model, images, late, resume=True, regions=True)
    for part in ("1/2", "2/2"):
        score_folder(model, images, shards, regions=True, shard=part)
    assert read(whole) == read(late) == read(shards) and len(read(whole)) == 6
    assert not (late / "regions.coco.json").exists()
    above = model.calibration.pixel_threshold
    for line in read(whole):
        values = tifffile.imread(whole / "maps" / f"{line['path']}.tiff")
        assert sum(region["area"] for region in line["regions"]) == (values > above).sum()
        assert values.shape == (line["height"], line["width"])
