"""``glance-fast experiment categories``: all categories below a folder, whatever happens to one of them."""

import csv
import json
import shutil

import pytest
from commands import one_line, tree
from samples import SMALL

from glance_fast.experiments import measure

SETTINGS = [f"--set={key}={value}" for key, value in SMALL.items()]


def rows_of(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def root(parts, tmp_path):
    for name in ("b10", "b2"):
        shutil.copytree(parts, tmp_path / "root" / name)
    return tmp_path / "root"


@pytest.mark.slow
def test_every_category_has_a_model_a_report_and_a_row_a_method(cli, root, tmp_path):
    out = tmp_path / "out"
    code, told, _ = cli("experiment", "categories", root, "--out", out, "--baselines", *SETTINGS)
    assert code == 0
    rows = rows_of(out)
    assert [(r["category"], r["method"]) for r in rows] == [
        (name, method) for name in ("b2", "b10") for method in ("ours", "PatchCore", "PaDiM")
    ]
    for name in ("b2", "b10"):
        whole = json.loads((out / "reports" / name / "metrics.json").read_text())
        row = next(r for r in rows if r["category"] == name)
        assert float(row["pro"]) == whole["pro"] and float(row["image_auroc"]) == whole["image_auroc"]
    assert (out / "categories.png").stat().st_size > 1000
    for text in ("PRO", "Pixel AUROC", "Image AUROC", "PatchCore", "b10", "all"):
        assert text in told
    before = tree(out)
    assert cli("experiment", "categories", root, "--out", out, "--baselines", "--resume", *SETTINGS)[0] == 0
    # Nothing is measured twice.
    assert tree(out) == before


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_results(cli, root, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli("experiment", "categories", root, "--out", whole, *SETTINGS)[0] == 0
    calls = []

    def second_stops(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_folder(*arguments, **options)

    train_folder = measure.train_folder
    monkeypatch.setattr(measure, "train_folder", second_stops)
    code, _, said = cli("experiment", "categories", root, "--out", broken, *SETTINGS)
    assert code == 130 and "--resume goes on" in said
    assert [r["category"] for r in rows_of(broken)] == ["b2"]
    assert cli("experiment", "categories", root, "--out", broken, "--resume", *SETTINGS)[0] == 0
    assert len(calls) == 3
    drop = ("seconds",)
    kept = [[{k: v for k, v in r.items() if k not in drop} for r in rows_of(o)] for o in (whole, broken)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_bad_category_is_named_and_tried_again(cli, root, tmp_path):
    out = tmp_path / "out"
    mask = root / "b2" / "ground_truth" / "punched" / "001_mask.png"
    good = mask.read_bytes()
    mask.write_bytes(good[:50])
    code, _, said = cli("experiment", "categories", root, "--out", out, *SETTINGS)
    assert code == 3 and str(mask) in said
    assert [(r["category"], bool(r["error"])) for r in rows_of(out)] == [("b2", True), ("b10", False)]
    mask.write_bytes(good)
    assert cli("experiment", "categories", root, "--out", out, "--resume", *SETTINGS)[0] == 0
    assert [(r["category"], r["error"]) for r in rows_of(out)] == [("b10", ""), ("b2", "")]


def test_wrong_calls(cli, root, tmp_path):
    out = tmp_path / "out"
    shutil.rmtree(root / "b2")
    call = ("experiment", "categories", root, "--out", out)
    assert "nothing to resume" in one_line(cli(*call, "--resume"))
    assert "is read" in one_line(cli("experiment", "categories", root, "--out", root))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert "no category in it or below it" in one_line(cli("experiment", "categories", nothing, "--out", out))
    (root / "b10" / "test" / "punched" / "000.png").write_bytes(b"no image")
    code, _, said = cli(*call, "--quiet")
    assert code == 1 and "000.png" in said and said.endswith("; no category could be measured\n")
    assert "was begun with seed = 0, not 7" in one_line(cli(*call, "--resume", "--seed", 7))
    record = out / "experiment.json"
    record.write_text(record.read_text().replace("categories", "scales", 1))
    assert "holds the experiment 'scales'" in one_line(cli(*call, "--resume"))
