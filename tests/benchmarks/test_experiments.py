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


def test_an_experiment_of_several_categories_is_kept_by_category(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- self-supervised -->\n<!-- /self-supervised -->\n")
    monkeypatch.setattr(experiments, "PAGE", page)
    monkeypatch.setattr(experiments, "KEPT", tmp_path / "kept")
    for category, pro in (("tile", 0.5), ("wood", 0.7)):
        out = tmp_path / category
        out.mkdir()
        settings = {"category": category, "photos": "/home/somebody/photos"}
        (out / "experiment.json").write_text(
            json.dumps({"experiment": "self-supervised", "settings": settings})
        )
        (out / "results.csv").write_text(
            "category,local_net,pro,pixel_auroc,image_auroc,seconds\n"
            f"{category},own images,{pro},0.5,0.5,1\n{category},random,0.1,0.5,0.5,1\n"
        )
    experiments.main([str(tmp_path / "tile"), str(tmp_path / "wood")])
    text = page.read_text()
    assert "| PRO | tile | wood | mean |" in text
    assert "| own images | 0.500 | 0.700 | 0.600 |" in text and "| random | 0.100 | 0.100 | 0.100 |" in text
    kept = json.loads((tmp_path / "kept/self-supervised/tile/experiment.json").read_text())
    assert kept["settings"]["photos"] == "photos"


def test_classes_stand_beside_the_papers(monkeypatch, tmp_path):
    out, page = tmp_path / "out", tmp_path / "page.md"
    out.mkdir()
    page.write_text("<!-- cifar10 -->\n<!-- /cifar10 -->\n")
    monkeypatch.setattr(experiments, "PAGE", page)
    monkeypatch.setattr(experiments, "KEPT", tmp_path / "kept")
    (out / "experiment.json").write_text(json.dumps({"experiment": "cifar10", "settings": {}}))
    (out / "results.csv").write_text(
        "class,seed,auroc,auroc_paper,auroc_iad,auroc_dad,cpu_seconds\n"
        "cat,0,0.6,0.5,0.4,0.3,1\ndog,0,0.8,0.7,0.6,0.5,1\n"
    )
    experiments.main([str(out)])
    assert "| cat | 0.600 | 0.500 | 0.400 | 0.300 | 0.561 | 0.586 |" in page.read_text()
    assert "| mean | 0.700 | 0.600 | 0.500 | 0.400 | 0.600 | 0.595 |" in page.read_text()
