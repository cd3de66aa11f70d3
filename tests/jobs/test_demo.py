"""The demo's path from end to end, with far fewer images and steps than the command takes."""

import dataclasses
import json

import pytest

from glance_fast import Glance, UserError
from glance_fast.jobs import demo
from glance_fast.jobs.demo import CONFIG, run_demo


def test_demo_trains_scores_evaluates_and_reports(tmp_path, reporter):
    config = dataclasses.replace(
        CONFIG, image_size=96, patch=32, stride=16, width=8, steps=3, finetune_steps=1, batch=4, variants=8
    )
    results = run_demo(tmp_path, reporter, config, device="cpu", train=8, good=2, per_defect=1)
    assert set(results) == {"grass", "gravel", "brick", "overall"}
    mean = sum(results[t]["pro"] for t in ("grass", "gravel", "brick")) / 3
    assert abs(results["overall"]["pro"] - mean) < 1e-9
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() == results.keys()
    page = (tmp_path / "report.html").read_text()
    for texture in ("grass", "gravel", "brick"):
        assert f"results/{texture}/report.html" in page
        assert (tmp_path / "results" / texture / "report.html").is_file()
        assert (tmp_path / "runs" / texture / "model.safetensors").is_file()


def untrained(paths, out, config, **more):
    return Glance(config)


@pytest.mark.parametrize(
    ("counts", "known"),
    [
        (
            {"good": 0, "per_defect": 1},
            {"pro", "pro_5", "pixel_auroc", "pixel_ap", "pixel_f1_max"},
        ),
        ({"good": 1, "per_defect": 0}, set()),
    ],
)
def test_means_that_cannot_be_had_are_none(tmp_path, reporter, monkeypatch, counts, known):
    monkeypatch.setattr(demo, "fit", untrained)
    config = dataclasses.replace(CONFIG, image_size=96, patch=32, stride=16, width=8)
    overall = run_demo(tmp_path, reporter, config, train=1, **counts)["overall"]
    assert {name for name, value in overall.items() if value is not None} == known
    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert written["overall"] == overall and (tmp_path / "report.html").is_file()


def test_no_test_images_are_refused_before_anything_is_trained(tmp_path, reporter, monkeypatch):
    monkeypatch.setattr(demo, "fit", lambda *_, **more: pytest.fail("must not be reached"))
    with pytest.raises(UserError, match="no folder 'test'"):
        run_demo(tmp_path, reporter, CONFIG, train=1, good=0, per_defect=0)
