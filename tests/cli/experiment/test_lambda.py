"""``glance-fast experiment lambda``: what a model says by every λ_s, without training again."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from commands import one_line, tree

from glance_fast.evaluation import metrics
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.experiments.lambda_s import SHARES
from glance_fast.experiments.study import Study
from glance_fast.model import Glance
from glance_fast.run import load


def rows_of(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photographs(parts, run_folder, tmp_path):
    model = load(run_folder, "cpu")
    return read_photographs(find_category(parts, tmp_path), model.prepare, model.config.image_size)


def test_the_models_own_share_gives_its_own_maps(cli, parts, run_folder, photographs, tmp_path):
    out = tmp_path / "out"
    assert cli("experiment", "lambda", run_folder, parts, "--out", out)[0] == 0
    rows = rows_of(out)
    assert [(r["blend"], float(r["lambda_s"])) for r in rows] == [
        (blend, share) for blend in ("raw", "calibrated") for share in SHARES
    ]
    model = load(run_folder, "cpu")
    own = next(
        r for r in rows if r["blend"] == "calibrated" and float(r["lambda_s"]) == model.config.lambda_s
    )
    pro, auroc = metrics.pro_and_auroc(model.score(photographs.prepared).maps, photographs.masks)
    # Its statistics are computed anew, and rounded otherwise.
    assert float(own["pro"]) == pytest.approx(pro, abs=5e-4)
    assert float(own["pixel_auroc"]) == pytest.approx(auroc, abs=5e-4)
    assert (out / "lambda.png").stat().st_size > 1000


def test_raw_is_eq_13_as_it_stands(cli, parts, run_folder, photographs, tmp_path):
    out = tmp_path / "out"
    assert cli("experiment", "lambda", run_folder, parts, "--out", out)[0] == 0
    model = load(run_folder, "cpu")
    for share in (0.0, 0.4, 1.0):
        paper = Glance(dataclasses.replace(model.config, blend="paper", lambda_s=share))
        state = model.scales[0].state_dict()
        paper.scales[0].load_state_dict(
            {k: v for k, v in state.items() if k not in ("residual_mean", "whitening")}
        )
        found = paper.score(photographs.prepared)
        local, other = paper.features(np.stack(photographs.prepared))[0]
        inconsistency = (local - other).square().mean(2)
        distortion = torch.sigmoid(-paper.scales[0].distortion(local, other))
        expected = share * inconsistency + (1 - share) * distortion
        torch.testing.assert_close(
            torch.from_numpy(found.patch_scores).flatten(1), expected, rtol=1e-4, atol=1e-5
        )
        row = next(r for r in rows_of(out) if r["blend"] == "raw" and float(r["lambda_s"]) == share)
        pro, _ = metrics.pro_and_auroc(found.maps, photographs.masks)
        assert float(row["pro"]) == pytest.approx(pro, abs=1e-4)


def test_all_models_of_an_experiment_and_going_on(cli, parts, run_folder, tmp_path, monkeypatch):
    root, runs, out = tmp_path / "root", tmp_path / "runs", tmp_path / "out"
    for name in ("transistor", "other"):
        shutil.copytree(parts, root / name)
        shutil.copytree(run_folder, runs / "runs" / name)
    (runs / "experiment.json").write_text("{}")
    add = Study.add

    def stop(self, row):
        if len(self.rows) == 14:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Study, "add", stop)
    call = ("experiment", "lambda", runs, root, "--out", out)
    assert cli(*call)[0] == 130 and len(rows_of(out)) == 14
    monkeypatch.setattr(Study, "add", add)
    code, told, _ = cli(*call, "--resume")
    # The paper has a row for one of them.
    assert code == 0 and "transistor, paper" in told and "other, paper" not in told and "0.999" in told
    assert len(rows_of(out)) == 24
    assert cli(*call, "--overwrite")[0] == 0 and len(tree(out)) == 3


def test_wrong_calls(cli, parts, run_folder, masked_run, tmp_path):
    out = tmp_path / "out"
    call = ("experiment", "lambda", run_folder, parts, "--out", out)
    assert "train" in one_line(cli("experiment", "lambda", parts, parts, "--out", out))
    assert "no folder 'test'" in one_line(
        cli("experiment", "lambda", run_folder, parts / "train", "--out", out)
    )
    assert cli(*call)[0] == 0
    assert "is not empty" in one_line(cli(*call))
    other = ("experiment", "lambda", masked_run, parts, "--out", out, "--resume")
    assert "was begun with model of plates" in one_line(cli(*other))
    (out / "results.csv").write_text("category,blend\n1,2\n")
    assert "results.csv: damaged" in one_line(cli(*call, "--resume"))
