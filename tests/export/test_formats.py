"""Files of a graph: any size and number of images, what they keep, what they are refused for."""

import json

import numpy as np
import onnx
import pytest
import torch

import glance_fast
from glance_fast import UserError
from glance_fast.data.images import read_image, resize
from glance_fast.export import formats
from glance_fast.export.graph import ScoringGraph
from glance_fast.jobs.export import notes_of

FORMATS = tuple(formats.SUFFIXES)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_what_the_model_says(exported_files, run_folder, format):
    model = glance_fast.load(run_folder, "cpu")
    score = formats.scorer(exported_files[format], format)
    rng = np.random.default_rng(0)
    for batch, *size in ((1, 64, 64), (3, 50, 117), (2, 300, 64), (1, 400, 390), (1, 1, 1)):
        images = rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        maps, scores, anomalous = score(images)
        ours = model.score(list(images))
        assert maps.dtype == scores.dtype == np.float32 and anomalous.dtype == bool
        # Noise is as far from normal as can be; its log odds hang on the last digits.
        np.testing.assert_allclose(maps, ours.maps, atol=1e-4 * np.ptp(ours.maps))
        np.testing.assert_allclose(scores, ours.scores, atol=1e-4 * np.ptp(ours.maps))
        assert (anomalous == (scores > model.calibration.threshold)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_resized_to_the_bit(exported_files, format):
    score = formats.scorer(exported_files[format], format)
    image = np.random.default_rng(1).integers(0, 256, (333, 417, 3), dtype=np.uint8)
    for large, small in zip(score(image[None]), score(resize(image, (64, 64))[None]), strict=True):
        np.testing.assert_array_equal(large, small)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_keeps_what_is_to_be_known(exported_files, run_folder, format):
    calibration = glance_fast.load(run_folder, "cpu").calibration
    if format == "onnx":
        properties = onnx.load(exported_files[format]).metadata_props
        notes = {entry.key: entry.value for entry in properties}
    else:
        notes = {"glance_fast": ""}
        torch.export.load(exported_files[format], extra_files=notes)
    assert json.loads(notes["glance_fast"]) == {
        "version": glance_fast.__version__,
        "image_size": [64, 64],
        "white": None,
        "threshold": calibration.threshold,
        "pixel_threshold": calibration.pixel_threshold,
        "outputs": ["maps", "scores", "anomalous"],
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_a_deep_model_takes_stored_values(deep_run, deep_parts, tmp_path, format):
    model = glance_fast.load(deep_run, "cpu")
    path = tmp_path / f"model{formats.SUFFIXES[format]}"
    formats.write(ScoringGraph(model).eval(), path, format, notes_of(model))
    assert notes_of(model)["white"] == 4095
    score = formats.scorer(path, format)
    rng = np.random.default_rng(0)
    large = rng.integers(0, 5000, (2, 401, 390, 3)).astype(np.uint16)
    stored = read_image(deep_parts / "test/punched/000.png")
    for images in (stored[None], stored[None, :50, :40] ^ 7, large):
        maps, scores, anomalous = score(images)
        ours = model.score(list(images))
        np.testing.assert_allclose(maps, ours.maps, atol=1e-4 * np.ptp(ours.maps))
        np.testing.assert_allclose(scores, ours.scores, atol=1e-4 * np.ptp(ours.maps))
        assert (anomalous == (scores > model.calibration.threshold)).all()


def test_a_file_has_no_operator_of_ours(exported_files):
    model = onnx.load(exported_files["onnx"])
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [put.name for put in model.graph.input] == ["images"]
    assert [put.name for put in model.graph.output] == ["maps", "scores", "anomalous"]
    program = torch.export.load(exported_files["torch-export"])
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and not any("glance_fast" in name for name in names)


def test_what_a_file_of_onnx_does_not_hold_is_refused(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MOST_BYTES", 1 << 10)
    graph = ScoringGraph(glance_fast.load(run_folder, "cpu")).eval()
    with pytest.raises(
        UserError,
        match=r"^the model takes .* MiB, and a file of ONNX .*; use `format=torch-e",
    ):
        formats.write(graph, tmp_path / "model.onnx", "onnx", {})
