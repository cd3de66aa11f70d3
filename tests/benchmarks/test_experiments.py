"""docs/experiments.md: what is kept of the experiments, and no other figures."""

import json
import shutil

from benchmarks import experiments


def test_the_page_says_what_is_kept(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    shutil.copyfile(experiments.PAGE, page)
    monkeypatch.setattr(experiments, "PAGE", page)
    experiments.main([])
    assert page.read_text() == (experiments.ROOT / "docs/experiments.md").read_text()


def test_an_experiment_is_kept_and_shown(monkeypatch, tmp_path):
    out, page = tmp_path / "out", tmp_path / "page.md"
    out.mkdir()
    page.write_text("before\n<!-- lambda -->\nold\n<!-- /lambda -->\nafter\n")
    monkeypatch.setattr(experiments, "PAGE", page)
    monkeypatch.setattr(experiments, "KEPT", tmp_path / "kept")
    (out / "experiment.json").write_text(json.dumps({"experiment": "lambda", "settings": {}}))
    (out / "results.csv").write_text(
        "category,blend,lambda_s,pro,pixel_auroc,image_auroc\nscrew,raw,0.4,0.25,0.5,\nscrew,raw,1.0,0.5,0.5,\n"
    )
    experiments.main([str(out)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| screw, raw | - | - | 0.250 | - | - | 0.500 |" in text
    # Beside it, what the paper prints.
    assert "| screw, paper | 0.948 | 0.986 | 0.996 | 0.999 | 1.000 | 1.000 |" in text
    assert (tmp_path / "kept/lambda/results.csv").is_file()
