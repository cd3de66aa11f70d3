"""Run folders: what was saved is loaded; what is damaged is named and never run."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import draw_part

from glance_fast import Config, Glance, UserError, load
from glance_fast import run as run_module
from glance_fast.calibration import Moments
from glance_fast.data.files import NOTES, read_notes
from glance_fast.run import FORMAT, save_model


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run folder, to be damaged."""
    return shutil.copytree(run_folder, tmp_path / "run")


def change_weights(run, change, metadata=None):
    tensors = load_file(run / "model.safetensors")
    change(tensors)
    save_file(tensors, run / "model.safetensors", metadata or {NOTES: json.dumps({"format": FORMAT})})


@pytest.mark.parametrize("kind", ["run_folder", "masked_run"])
def test_loaded_model_is_the_saved_one(kind, tmp_path, request):
    run_folder = request.getfixturevalue(kind)
    model = load(run_folder, "cpu")
    save_model(model, tmp_path / "copy")
    for name in ("model.safetensors", "config.toml", "calibration.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (run_folder / name).read_bytes()
    again = load(str(tmp_path / "copy"))
    images = [draw_part(np.random.default_rng(0))]
    one, other = (m.score(images) for m in (model, again))
    np.testing.assert_array_equal(one.maps, other.maps)
    assert one.scores == other.scores
    assert (again.config, again.calibration) == (model.config, model.calibration)
    assert not again.training and again.precision == "auto"


def test_files_of_two_trainings_are_told_apart(run, tmp_path):
    model = load(run, "cpu")
    with torch.no_grad():
        next(model.scales[0].distortion.parameters()).add_(1)
    save_model(model, tmp_path / "other")
    load(tmp_path / "other", "cpu")
    shutil.copy(tmp_path / "other" / "calibration.json", run)
    with pytest.raises(UserError, match=r"calibration.json: was measured with other weights than those in"):
        load(run, "cpu")
    # One of an earlier version does not say what it was measured with.
    values = json.loads((run / "calibration.json").read_text())
    del values["weights"]
    (run / "calibration.json").write_text(json.dumps(values))
    load(run, "cpu")


def test_precision_is_remembered(run_folder, monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: True)
    model, images = load(run_folder, "cpu", "bf16"), [draw_part(np.random.default_rng(0))]
    unless_told, told = (model.score(images, precision=p).scores for p in ("auto", "fp32"))
    assert unless_told == load(run_folder, "cpu").score(images, precision="bf16").scores != told


def test_weights_are_written_last(tmp_path, small, monkeypatch):
    def full(*arguments):
        raise UserError("full")

    monkeypatch.setattr(run_module, "write_tensors", full)
    with pytest.raises(UserError, match="full"):
        save_model(Glance(Config(**small)), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calibration.json", "config.toml"]
    with pytest.raises(UserError, match=r"no model\.safetensors in it; not a run folder"):
        load(tmp_path)


def test_places_that_are_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; a run folder is what"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; a run folder is what"):
        load(tmp_path / "file")
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match=r"no model\.safetensors in it; not a run folder"):
        load(tmp_path)
    (tmp_path / "checkpoint/images.json").touch()
    with pytest.raises(UserError, match="training is unfinished: go on with glance-fast train --resume"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.toml", "calibration.json"])
def test_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing.*train again"):
        load(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu9"}, "device tpu9: no such device; use auto, cpu or cuda"),
        ({"device": "meta"}, "device meta: not supported"),
        ({"precision": "int8"}, "precision: 'int8' is none of auto, fp32, bf16"),
    ],
)
def test_wrong_arguments(run_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        load(run_folder, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(run_folder):
    with pytest.raises(UserError, match=r"device cuda: this PyTorch .* finds no CUDA device"):
        load(run_folder, "cuda")


# ---------------------------------------------------------------- run folders of an earlier version


# What such a folder said of a small model, but for the sizes.
FORMER_CONFIG = """\
image_size = [64, 64]
patch = 32
stride = 16
net = "default"
width = 8
blocks = [1, 1, 1]
readout = "hole"
blend = "calibrated"
lambda_t = 0.1
shrinkage = 0.5
idw_power = 2.0
idw_neighbours = 16
smoothing = 4.0
group_spacing = 2.0
quantile = 0.99
finetune_steps = 2
steps = 6
batch = 4
pretrained = true
learning_rate = 0.01
symmetry = "auto"
shift = 6
brightness = 0.07
validation = 0.25
seed = 0
cache_mib = 2048
checkpoint_minutes = 2.0
"""


@pytest.fixture
def former(masked_run, tmp_path):
    """The masked run as an earlier version wrote it, with an image's score that is a sum as it stands."""
    run = shutil.copytree(masked_run, tmp_path / "former")
    (run / "config.toml").write_text(FORMER_CONFIG, encoding="utf-8")
    values = json.loads((run / "calibration.json").read_text(encoding="utf-8"))
    for name in ("image", "peaks", "trained_on", "distances", "largest_peaks", "false_alarms"):
        del values[name]
    del values["scales"][0]["weight"]
    # It came from what surroundings told, and stands in no settings.
    values["scales"][0]["lambda_s"] = 0.83
    values |= {"quantile": 0.99, "threshold": 2.75, "scores": [1.0, 2.0, 0.5]}
    (run / "calibration.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    return run


def test_a_run_folder_of_an_earlier_version_scores_as_the_model_in_it(former, masked_run):
    model, now = load(former, "cpu"), load(masked_run, "cpu")
    assert model.config == dataclasses.replace(now.config, variants=240) and model.config.net == "pyramid"
    calibration = model.calibration
    assert (calibration.threshold, calibration.scores) == (2.75, (1.0, 2.0, 0.5))
    assert calibration.false_alarms == pytest.approx(0.01, abs=1e-12)
    # What the earlier version did with these weights and statistics.
    (statistics,) = now.calibration.scales
    now.calibration = dataclasses.replace(
        now.calibration,
        scales=(dataclasses.replace(statistics, lambda_s=0.83),),
        image=Moments(),
        distances=False,
        largest_peaks=False,
    )
    images = [draw_part(np.random.default_rng(i), defect=i > 1) for i in range(4)]
    for engine in ("auto", "dense", "grouped", "patchwise"):
        one, other = (m.score(images, engine) for m in (model, now))
        np.testing.assert_array_equal(one.maps, other.maps)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.patch_scores, other.patch_scores)
    assert np.ptp(one.scores) > 0


def test_a_run_folder_of_an_earlier_version_is_of_this_one_once_saved(former, tmp_path):
    model = load(former, "cpu")
    save_model(model, tmp_path / "saved")
    again = load(tmp_path / "saved", "cpu")
    assert (again.config, again.calibration) == (model.config, model.calibration)
    assert "quantile" not in (tmp_path / "saved/config.toml").read_text(encoding="utf-8")
    assert (tmp_path / "saved/model.safetensors").read_bytes() == (former / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("quantile = 0.99\n", "", r"config\.toml: net: expected .* got 'default'"),
        (
            "quantile = 0.99",
            "quantile = 1.5",
            r"config\.toml: false_alarms: expected a number from .* got -0.5",
        ),
        ("quantile = 0.99", 'quantile = "most"', r"config\.toml: no setting 'quantile'"),
        ("width = 8", "width = 16", r"does not fit config\.toml"),
    ],
)
def test_a_damaged_run_folder_of_an_earlier_version_is_named(former, before, after, message):
    path = former / "config.toml"
    assert before in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(former)


# ---------------------------------------------------------------- damaged weights


@pytest.mark.parametrize("keep", [0, 5, 300, -1], ids=["empty", "no header", "half a header", "a byte less"])
def test_truncated_weights(run, keep):
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged.*train again"):
        load(run)


def test_pickled_weights_are_not_unpickled(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()
    (tmp_path / "sprung").unlink()
    for dump in (
        lambda file: torch.save({"weight": torch.ones(3), "trap": Trap()}, file),
        lambda file: pickle.dump(Trap(), file),
    ):
        with (run / "model.safetensors").open("wb") as file:
            dump(file)
        with pytest.raises(UserError, match=r"model\.safetensors: damaged, or not a safetensors file"):
            load(run)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run, value):
    def spoil(tensors):
        weights = next(t for _, t in sorted(tensors.items()) if t.dtype == torch.float32)
        weights.view(-1)[-1] = value

    change_weights(run, spoil)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged \(.*not finite\); train again"):
        load(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(sorted(tensors)[0]),
        lambda tensors: tensors.update(extra=torch.ones(1)),
        lambda tensors: tensors.update({"scales.0.residual_mean": torch.zeros(4, 128)}),
    ],
    ids=["missing", "more", "other shape"],
)
def test_weights_of_another_model(run, change):
    change_weights(run, change)
    with pytest.raises(UserError, match=r"does not fit config\.toml beside it \(.+\); train again"):
        load(run)


def test_weights_of_another_type(run):
    change_weights(run, lambda t: t.update({"scales.0.whitening": t["scales.0.whitening"].float()}))
    with pytest.raises(UserError, match=r"damaged \(scales\.0\.whitening has another type"):
        load(run)


@pytest.mark.parametrize(
    "metadata", [{NOTES: '{"format": 999}'}, {NOTES: "{"}, {NOTES: "[]"}, {"other": "tool"}]
)
def test_weights_of_another_version_or_tool(run, metadata):
    assert read_notes(run / "model.safetensors") == {"format": FORMAT}
    change_weights(run, lambda tensors: None, metadata)
    with pytest.raises(UserError, match="not a model of this version of glance-fast"):
        load(run)


# ---------------------------------------------------------------- damaged texts


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("width = 8", "width = 16", r"does not fit config\.toml"),
        ("width = 8", "width = ", r"config\.toml: no readable TOML file"),
        ("width = 8", "width = 1", r"config\.toml: width: expected an integer from 4 to 4096, got 1"),
        ("width = 8", 'width = "8"', r"config\.toml: width: expected an integer from 4 to 4096, got '8'"),
        ("width = 8", "breadth = 8", r"config\.toml: no setting 'breadth'"),
    ],
)
def test_changed_settings(run, before, after, message):
    path = run / "config.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=message):
        load(run)


@pytest.mark.parametrize("text", ["", "{", '{"scales": []}', "\xff\xfe"])
def test_damaged_calibration(run, text):
    (run / "calibration.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"calibration\.json: .*train again"):
        load(run)


def test_calibration_of_another_model(run):
    values = json.loads((run / "calibration.json").read_text())
    values["scales"] *= 2
    (run / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"calibration\.json: holds 2 scales, the model has 1"):
        load(run)
