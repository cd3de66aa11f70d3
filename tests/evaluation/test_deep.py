"""An evaluation of photographs of more than 8 bits."""

import numpy as np
import pytest

import glance_fast
from glance_fast.data.images import read_image
from glance_fast.errors import ImageError
from glance_fast.evaluation.evaluate import evaluate, evaluate_maps
from glance_fast.evaluation.inputs import find_category, read_photographs


def test_an_evaluation_keeps_every_bit(deep_run, deep_parts, tmp_path):
    model = glance_fast.load(deep_run, "cpu")
    found = evaluate(model, deep_parts, tmp_path / "out")
    assert found["images"] == 6 and not any("8 bits" in note for note in found["notes"])
    category = find_category(deep_parts, tmp_path / "x")
    photographs = read_photographs(category, model.prepare, (64, 64), white=4095)
    assert all(image.dtype == np.uint16 for image in photographs.prepared)
    for sample, prepared in zip(category.samples, photographs.prepared, strict=True):
        np.testing.assert_array_equal(prepared, read_image(sample.path))
    for picture, _ in photographs.shown:
        assert picture.dtype == np.uint8 and 60 < np.median(picture) < 220
    # Maps of another method, with nothing that says what is white.
    assert evaluate_maps(tmp_path / "out/maps", deep_parts, tmp_path / "again")["images"] == 6


def test_other_depths_are_said_or_refused_by_name(deep_run, run_folder, deep_parts, parts, tmp_path):
    model = glance_fast.load(deep_run, "cpu")
    notes = evaluate(model, parts, tmp_path / "out")["notes"]
    assert "6 images have 8 bits, and those in training had more: 255 was taken for their white" in notes
    both = r"000\.png: has more than 8 bits.*; and 5 more: .*punched/000\.png: has"
    with pytest.raises(ImageError, match=both):
        evaluate(glance_fast.load(run_folder, "cpu"), deep_parts, tmp_path / "not")
