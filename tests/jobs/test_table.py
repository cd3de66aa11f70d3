"""What a table of scores says of the folder as a whole."""

import dataclasses
import shutil

import pytest

from glance_fast import load
from glance_fast.data.table import ScoreRow
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.table import drift_remarks


def rows(*above):
    return [ScoreRow(f"{i}.png", "1", str(value), "0") for i, value in enumerate(above)]


@pytest.mark.parametrize(
    ("above", "told"),
    [
        ([0.05] * 20, "18 of 20 images"),
        ([0.05] * 19, None),  # too few to tell
        ([0.05] * 18 + [1.0, 0.5], "18 of 20 images"),
        ([0.05] * 17 + [1.0, 0.5, 0.1], None),
        ([i / 100 for i in range(1, 101)], None),  # as normal images are
        ([0.1] * 50, None),
        ([], None),
    ],
)
def test_a_folder_that_scores_higher_as_a_whole_is_told(above, told):
    found = drift_remarks([*rows(*above), ScoreRow("x.png", "", "", "", "broken")])
    assert [remark[: len(told)] for remark in found] == [told] if told else found == ()


def test_score_dir_and_joined_shards_tell_it(run_folder, parts, tmp_path):
    model = load(run_folder, "cpu")
    model.calibration = dataclasses.replace(model.calibration, scores=tuple(-9.0 - i for i in range(20)))
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        shutil.copy(parts / "train" / "good" / f"{i % 12:03}.png", images / f"{i}.png")
    whole = score_folder(model, images, tmp_path / "whole").summary.remarks
    assert len(whole) == 1 and "light, focus or pose" in whole[0]
    score_folder(model, images, tmp_path / "parts", shard="1/2")
    assert score_folder(model, images, tmp_path / "parts", shard="2/2").summary.remarks == whole
