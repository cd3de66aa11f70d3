"""``--json``: one object on stdout and nothing else; ``--quiet``: no progress, no remarks."""

import json
import shutil

import pytest
from commands import one_line, score_dir


def as_json(result):
    code, out, _ = result
    return code, json.loads(out)


def test_score_dir(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    code, found = as_json(score_dir(cli, run_folder, photos, out, "--json"))
    lines = (out / "scores.csv").read_text().splitlines()[1:]
    anomalous = sum(line.split(",")[3] == "1" for line in lines)
    assert code == 0 and found == {
        "table": str(out / "scores.csv"),
        "shard": "1/1",
        "scored": 2,
        "anomalous": anomalous,
        "errors": 0,
        "remarks": [],
    }


def test_score_dir_with_images_that_failed(cli, run_folder, photos, tmp_path):
    (photos / "broken.png").write_text("no image")
    code, out, err = score_dir(cli, run_folder, photos, tmp_path / "out", "--json", "--quiet")
    assert code == 3 and json.loads(out)["errors"] == 1
    assert err == f"1 image could not be scored; column error of {tmp_path}/out/scores.csv says why\n"


def test_shards(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    code, first = as_json(score_dir(cli, run_folder, photos, out, "--json", "--shard", "1/2"))
    assert (code, first["shard"], first["scored"]) == (0, "1/2", 1)
    assert first["table"] == str(out / "scores-1-of-2.csv")
    code, last = as_json(score_dir(cli, run_folder, photos, out, "--json", "--shard", "2/2"))
    assert (code, last["scored"], last["table"]) == (0, 2, str(out / "scores.csv"))
    code, again = as_json(score_dir(cli, run_folder, photos, out, "--json", "--shard", "2/2", "--resume"))
    assert (code, again) == (0, last)


def test_bench(cli, run_folder, photos, tmp_path):
    code, found = as_json(cli("bench", run_folder, photos, "--json", "--out", tmp_path / "bench.json"))
    assert code == 0 and found == json.loads((tmp_path / "bench.json").read_text())


def test_evaluate(cli, run_folder, parts, tmp_path, monkeypatch):
    metrics = {"pro": 0.875, "pixel_auroc": None, "defects": {}}
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", lambda *arguments, **more: metrics)
    assert as_json(cli("evaluate", run_folder, parts, "--out", tmp_path / "out", "--json")) == (0, metrics)


def test_calibrate(cli, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    code, found = as_json(cli("calibrate", tmp_path / "run", "--false-alarms", "0.05", "--json"))
    written = json.loads((tmp_path / "run/calibration.json").read_text())
    assert code == 0 and found.pop("promise").startswith("threshold: ")
    assert found.pop("photographs") == len(written["scores"])
    assert found == {name: written[name] for name in ("threshold", "pixel_threshold", "false_alarms")}


def test_demo(cli, tmp_path, monkeypatch):
    results = {"overall": {"pro": 0.5}}
    monkeypatch.setattr("glance_fast.jobs.demo.run_demo", lambda out, reporter, **more: results)
    assert as_json(cli("demo", "--out", tmp_path / "demo", "--json")) == (0, results)


def test_quiet_scoring_tells_the_result_alone(cli, run_folder, photos, tmp_path):
    told = "2 images scored"
    code, out, err = score_dir(cli, run_folder, photos, tmp_path / "loud")
    assert code == 0 and told in out and "scoring: " in err
    code, out, err = score_dir(cli, run_folder, photos, tmp_path / "quiet", "--quiet")
    assert code == 0 and told in out and err == ""
    code, out, err = score_dir(cli, run_folder, photos, tmp_path / "again")
    assert code == 0 and told in out and "scoring: " in err, "as loud as ever without it"


def test_quiet_training_tells_the_result_alone(cli, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "glance_fast.training.fit.fit", lambda *arguments, reporter, **how: reporter.say("progress")
    )
    code, out, err = cli("train", parts, "--out", tmp_path / "run", "-q", "--set", "image_size=250")
    assert (code, err) == (0, "") and out.startswith(f"{tmp_path}/run: trained in ")


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_errors_are_told_all_the_same(cli, run_folder, tmp_path, option):
    assert "no such folder" in one_line(score_dir(cli, run_folder, tmp_path / "none", tmp_path / "o", option))
