"""``glance-fast experiment features`` and ``panel``."""

import json
import re
import shutil
import sys

import pytest
from commands import never, one_line


def call(cli, name, run, data, out, *more):
    return cli("experiment", name, run, data, "--out", out, "--device", "cpu", *more)


def cells(text):
    return [re.findall(r"[^\s│┃]+", line) for line in text.splitlines()]


@pytest.mark.parametrize("command", ["features", "panel"])
def test_help_teaches_with_an_example(cli, command):
    code, out, _ = cli("experiment", command, "--help")
    assert code == 0
    assert re.search(rf"^ glance-fast experiment {command} ", out, re.MULTILINE), "an example"
    assert max(map(len, out.splitlines())) <= 80
    assert "[dim]" not in out and not re.search(r"^ \S+(?: \S+)? *$", out.split("╭")[0], re.MULTILINE)
    for option in ("--out", "--overwrite", "--seed", "--device", "--threads", "--quiet", "--json"):
        assert option in out


def test_features_says_how_well_each_head_separates(cli, run_folder, parts, tmp_path):
    out = tmp_path / "out"
    code, said, err = call(cli, "features", run_folder, parts, out, "--patches", "20")
    assert code == 0 and said.endswith(f"pictures: {out}\n") and "scoring patches" in err
    rows = {row[0]: row for row in cells(said) if row and row[0] in ("IAD", "DAD")}
    assert rows.keys() == {"IAD", "DAD"} and rows["IAD"][1:3] == ["32", "px"]
    code, said, err = call(
        cli, "features", run_folder, parts, out, "--patches", "20", "--json", "--quiet", "--overwrite"
    )
    heads = json.loads(said)["heads"]
    assert (code, err) == (0, "") and [head["head"] for head in heads] == ["IAD", "DAD"]
    for head in heads:
        auroc = "-" if head["auroc"] is None else f"{head['auroc']:.3f}"
        assert rows[head["head"]][3:] == [auroc, str(head["anomalous"]), str(head["normal"])]


def test_features_without_scikit_learn(cli, run_folder, parts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    line = one_line(call(cli, "features", run_folder, parts, tmp_path / "out"))
    assert line.endswith("pip install 'glance-fast[experiments]' installs it")


def test_panel_prints_its_rows_and_the_means(cli, run_folder, parts, tmp_path):
    out = tmp_path / "out"
    code, said, _ = call(cli, "panel", run_folder, parts, out, "--rows", "2", "--json", "--quiet")
    images = json.loads(said)["images"]
    assert code == 0 and [image["row"] for image in images].count(None) == 1
    code, said, err = call(cli, "panel", run_folder, parts, out, "--rows", "2", "--overwrite")
    assert code == 0 and said.endswith(f"picture: {out / 'panel.png'}\n") and "scoring" in err
    shown = [row for row in cells(said) if row and row[0].startswith("test/")]
    assert shown == [
        [image["image"], f"{image['pro']:.3f}", f"{image['pro_local']:.3f}"]
        for image in images
        if image["row"]
    ]
    means = [sum(image[key] for image in images) / 3 for key in ("pro", "pro_local")]
    assert ["punched:", "mean", "of", "3", "images", *(f"{mean:.3f}" for mean in means)] in cells(said)
    assert "all:" not in said, "of one type of defect they are the same"


def test_panel_of_several_types_has_a_mean_of_each(cli, run_folder, parts, tmp_path):
    data = shutil.copytree(parts, tmp_path / "data")
    for folder, name in (("test", "000.png"), ("ground_truth", "000_mask.png")):
        (data / folder / "[red]").mkdir()
        (data / folder / "punched" / name).rename(data / folder / "[red]" / name)
    code, said, _ = call(cli, "panel", run_folder, data, tmp_path / "out", "--plain")
    assert code == 0 and "without Global-Net" not in said
    names = [row[:-1] for row in cells(said) if "mean" in row]
    assert [" ".join(name) for name in names] == [
        "[red]: mean of 1 image", "punched: mean of 2 images", "all: mean of 3 images"
    ]  # fmt: skip


def test_panel_takes_paths(cli, run_folder, parts, tmp_path):
    more = ("--plain", "--choose", "punched/002.png, good/000.png")
    code, said, _ = call(cli, "panel", run_folder, parts, tmp_path / "out", *more)
    assert code == 0
    rows = [row for row in cells(said) if row and row[0].startswith("test/")]
    assert [row[0] for row in rows] == ["test/punched/002.png", "test/good/000.png"] and rows[1][1] == "-"
    line = one_line(call(cli, "panel", run_folder, parts, tmp_path / "other", "--choose", "worse"))
    assert line == f"choose: {parts} has no test image worse"


@pytest.mark.parametrize("command", ["features", "panel"])
def test_the_library_is_quoted_in_flags(cli, run_folder, parts, tmp_path, monkeypatch, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.csv").write_text("of an earlier one")
    line = one_line(call(cli, command, run_folder, parts, out, "--quiet"))
    assert line == f"{out}: is not empty; --overwrite replaces what is in it, or choose another --out"
    (out / "notes.txt").touch()
    more = ("--overwrite", "--quiet")
    assert "holds 'notes.txt'" in one_line(call(cli, command, run_folder, parts, out, *more))
    # A model this small would fit into a whole MiB.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 16)
    line = one_line(call(cli, command, run_folder, parts, tmp_path / "new", "--memory-mib", "1"))
    assert line.startswith("image_size 64x64: scoring takes ") and "--memory-mib" in line


def test_panel_without_normal_images_names_the_flag(cli, run_folder, parts, tmp_path):
    data = tmp_path / "data"
    for folder in ("test", "ground_truth"):
        shutil.copytree(parts / folder, data / folder)
    line = one_line(call(cli, "panel", run_folder, data, tmp_path / "out"))
    assert line.endswith("or leave the maps without Global-Net away (--plain)")
    names = ("--choose", "punched/000.png", "--rows", "2")
    line = one_line(call(cli, "panel", run_folder, parts, tmp_path / "out", *names))
    assert line == "rows: the images that --choose names are the rows; leave --rows away"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("features", "--patches", "9"), "Invalid value for '--patches'"),
        (("panel", "--rows", "51"), "Invalid value for '--rows'"),
        (("panel", "--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_wrong_arguments(cli, run_folder, parts, tmp_path, monkeypatch, arguments, message):
    for name in ("features", "panel"):
        monkeypatch.setattr(f"glance_fast.experiments.{name}.{name}", never)
    command, *more = arguments
    code, out, err = call(cli, command, run_folder, parts, tmp_path / "out", *more)
    assert code == 2 and out == "" and message in err


@pytest.mark.parametrize("command", ["features", "panel"])
def test_ctrl_c_and_full_memory(cli, run_folder, parts, tmp_path, monkeypatch, command):
    def stop(*arguments, **more):
        raise error

    monkeypatch.setattr(f"glance_fast.experiments.{command}.{command}", stop)
    error = KeyboardInterrupt()
    assert call(cli, command, run_folder, parts, tmp_path / "out") == (130, "", "glance-fast: stopped\n")
    error = MemoryError()
    line = one_line(call(cli, command, run_folder, parts, tmp_path / "out"))
    assert line == "out of memory; use a smaller --memory-mib"
