"""``glance-fast export``."""

import importlib.util
import json
import re

import pytest
from commands import never, one_line

FORMATS = [("onnx", "ONNX Runtime", "model.onnx"), ("torch-export", "torch.export", "model.pt2")]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "runtime", "name"), FORMATS)
def test_a_file_and_what_is_told_of_it(cli, run_folder, photos, tmp_path, format, runtime, name):
    out = tmp_path / name
    command = ("export", run_folder, "--out", out, "--format", format, "--check", photos)
    code, said, err = cli(*command, "--quiet")
    assert (code, err) == (0, "") and out.is_file()
    first, second = said.splitlines()
    assert re.fullmatch(
        rf"{re.escape(str(out))}: \d+\.\d MiB; on 2 photographs maps differ from the model's by at most "
        r"\d\.\de-\d\d of their spread",
        first,
    )
    assert re.match(
        rf"an image: \d+\.\d ms with {runtime}, \d+\.\d ms with glance-fast \(fp32, \d+ th", second
    )
    assert "exists already; --overwrite replaces it" in one_line(cli(*command))
    code, said, _ = cli(*command, "--overwrite", "--json")
    found = json.loads(said)
    assert code == 0 and found["images"] == 2 and found["bytes"] == out.stat().st_size
    assert found["map_difference"] < 1e-4 and found["score_difference"] < 1e-4


def test_what_is_wrong_is_said_before_anything_is_read(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.jobs.export.load", never)
    command = ("export", run_folder, "--out")
    line = one_line(cli(*command, tmp_path / "model.pb"))
    assert line == f"{tmp_path}/model.pb: --format onnx makes files that end in .onnx; name it so"
    line = one_line(cli(*command, tmp_path / "model.onnx", "--format", "torch-export"))
    assert line == f"{tmp_path}/model.onnx: --format torch-export makes files that end in .pt2; name it so"
    assert "--out names a file, such as" in one_line(cli(*command, tmp_path))
    line = one_line(cli(*command, tmp_path / "model.onnx", "--check", tmp_path / "none"))
    assert "none: no such" in line
    code, _, err = cli(*command, tmp_path / "model.onnx", "--format", "tflite")
    assert code == 2 and "'tflite' is not one of" in err


def test_missing_packages_are_named_with_what_brings_them(cli, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.jobs.export.load", never)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "script" in name else found(name))
    line = one_line(cli("export", run_folder, "--out", tmp_path / "model.onnx"))
    assert line == "onnxscript: not installed; pip install 'glance-fast[export]' brings it"
    with pytest.raises(AssertionError, match="must not be reached"):
        cli("export", run_folder, "--out", tmp_path / "model.pt2", "--format", "torch-export")


def test_a_masked_net_is_refused_in_a_sentence(cli, masked_run, tmp_path):
    line = one_line(cli("export", masked_run, "--out", tmp_path / "model.onnx"))
    assert line.startswith("net 'pyramid' cannot be exported: ") and not any(tmp_path.iterdir())


def test_no_run_and_no_photograph(cli, run_folder, photos, tmp_path):
    out = tmp_path / "model.onnx"
    assert "no model.safetensors in it" in one_line(cli("export", photos, "--out", out))
    for photo in photos.iterdir():
        photo.write_text("no image")
    assert "no image can be read" in one_line(cli("export", run_folder, "--out", out, "--check", photos))
    assert not out.exists()
