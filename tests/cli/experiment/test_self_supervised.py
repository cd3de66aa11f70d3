"""``glance-fast experiment self-supervised``: one category by Local-Nets of several origins."""

import csv
import json
import shutil

import numpy as np
import pytest
from commands import one_line, tree
from PIL import Image
from samples import SMALL, draw_part

from glance_fast.data.files import read_notes
from glance_fast.experiments import self_supervised as experiment
from glance_fast.run import load

SETTINGS = [f"--set={key}={value}" for key, value in SMALL.items()]
ALL = ["distilled, fine-tuned", "distilled", "own images", "photographs", "random"]


def rows_of(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def plates(parts, tmp_path):
    """The category with as many normal images as a distillation takes."""
    shutil.copytree(parts, tmp_path / "plates")
    rng = np.random.default_rng(1)
    for i in range(4):
        Image.fromarray(draw_part(rng)).save(tmp_path / "plates" / "train" / "good" / f"more{i}.png")
    return tmp_path / "plates"


@pytest.mark.slow
def test_a_row_an_origin_and_a_killed_one_goes_on(cli, plates, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    # Fewer pixels than the normal images have, so that the two cannot be mistaken.
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(2)
    for i in range(17):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    call = ("experiment", "self-supervised", plates, "--photos", photos, "--steps", 2, *SETTINGS)
    code, told, _ = cli(*call, "--out", whole)
    assert code == 0 and all(name in told for name in (*ALL, "PRO", "Pixel AUROC", "Image AUROC"))
    rows = rows_of(whole)
    assert [(row["category"], row["local_net"]) for row in rows] == [("plates", name) for name in ALL]
    assert all(0 <= float(row[metric]) <= 1 for row in rows for metric in experiment.METRICS)
    assert (whole / "self-supervised.png").stat().st_size > 1000
    notes = {p.name: read_notes(p) for p in (whole / "local-nets").iterdir()}
    assert {name: (n["steps"], n.get("photographs")) for name, n in notes.items()} == {
        "own-images-32.safetensors": (2, 16),
        "photographs-32.safetensors": (2, 17),
        "random-32.safetensors": (0, None),
    }
    models = {name: load(whole / "runs" / name, "cpu") for name in ("distilled-fine-tuned", "own-images")}
    assert {name: model.config.finetune_steps for name, model in models.items()} == {
        "distilled-fine-tuned": 2,
        "own-images": 0,
    }
    firsts = {
        float(load(run, "cpu").scales[0].local.conv1.weight[0, 0, 0, 0]) for run in (whole / "runs").iterdir()
    }
    assert len(firsts) == 5

    train_folder, calls = experiment.train_folder, []

    def fourth_stops(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train_folder(*arguments, **options)

    monkeypatch.setattr(experiment, "train_folder", fourth_stops)
    code, _, said = cli(*call, "--out", out)
    assert code == 130 and "--resume goes on" in said
    assert [row["local_net"] for row in rows_of(out)] == ALL[:3]
    assert cli(*call, "--out", out, "--resume")[0] == 0
    assert len(calls) == 6
    kept = [[{**row, "seconds": ""} for row in rows_of(folder)] for folder in (whole, out)]
    assert kept[0] == kept[1]
    before = tree(out)
    code, told, _ = cli(*call, "--out", out, "--resume", "--json")
    assert code == 0 and [row["local_net"] for row in json.loads(told)["rows"]] == ALL
    assert tree(out) == before


def test_without_photographs_there_are_four(cli, plates, tmp_path, monkeypatch):
    asked = []

    class Result:
        maps, scores = np.zeros((6, 64, 64), np.float32), np.zeros(6, np.float32)

    class Model:
        def score(self, images):
            assert len(images) == 6
            return Result

    def trained(data, run, config, *, local_nets, **options):
        asked.append((run.name, [path.name for path in local_nets], config.finetune_steps))

    monkeypatch.setattr(experiment, "train_folder", trained)
    monkeypatch.setattr(experiment, "load", lambda *arguments, **options: Model())
    out = tmp_path / "out"
    assert cli("experiment", "self-supervised", plates, "--out", out, "--steps", 1, *SETTINGS)[0] == 0
    assert asked == [
        ("distilled-fine-tuned", [], 2),
        ("distilled", [], 0),
        ("own-images", ["own-images-32.safetensors"], 0),
        ("random", ["random-32.safetensors"], 0),
    ]


def test_wrong_calls(cli, plates, parts, photos, tmp_path):
    out = tmp_path / "out"
    call = ("experiment", "self-supervised", plates, "--out", out, *SETTINGS)
    assert "nothing to resume" in one_line(cli(*call, "--resume"))
    assert "is read" in one_line(cli("experiment", "self-supervised", plates, "--out", plates))
    assert "finetune_steps: 0 leaves nothing" in one_line(cli(*call, "--set=finetune_steps=0"))
    few = one_line(cli("experiment", "self-supervised", parts, "--out", out))
    assert few == f"{parts}: 12 images; at least 16 are needed to distill"
    assert one_line(cli(*call, "--photos", photos)).startswith(f"{photos}: 2 images; at least 16")
    assert "no such folder" in one_line(cli(*call, "--photos", tmp_path / "none"))
    assert "no folder 'test'" in one_line(
        cli("experiment", "self-supervised", plates / "train", "--out", out)
    )
    assert not out.exists()
    (plates / "test" / "punched" / "000.png").write_bytes(b"no image")
    code, _, said = cli(*call, "--quiet")
    assert code == 1 and "000.png" in said and "Traceback" not in said
    assert "was begun with distill_steps = 500, not 9" in one_line(cli(*call, "--resume", "--steps", 9))
    code, _, said = cli("experiment", "self-supervised", plates, "--out", out, "--steps", 0)
    assert code == 2 and "--steps" in said
