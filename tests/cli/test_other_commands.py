"""``glance-fast evaluate``, ``distill`` and ``demo``."""

import io
import json
import re
import shutil

import pytest
import torch
from commands import never, one_line, tree
from rich.console import Console

from glance_fast import UserError
from glance_fast.cli.console import print_intervals
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.teacher import Teacher, save_teacher


def test_evaluate_with_wrong_folders(cli, run_folder, parts, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", never)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    assert "is not empty" in one_line(cli("evaluate", run_folder, parts, "--out", out))
    for run, data, message in (
        (run_folder, photos, "no folder 'test' in it"),
        (photos, parts, "neither a run folder (no model.safetensors in it) nor a folder of maps"),
        (run_folder, tmp_path / "none", "no such folder"),
    ):
        assert message in one_line(cli("evaluate", run, data, "--out", out, "--overwrite"))
    assert (out / "metrics.json").exists(), "kept until something better can be made"


def test_evaluate_tells_what_could_not_be_had_and_on_one_line(cli, run_folder, parts, tmp_path):
    data = tmp_path / "da\nta"
    shutil.copytree(parts / "test/good", data / "test/good")
    code, _, err = cli("evaluate", run_folder, data, "--out", tmp_path / "out")
    assert code == 0 and "No defective images" in err
    (data / "test/good/bad.png").write_text("no image")
    line = one_line(cli("evaluate", run_folder, data, "--out", tmp_path / "other"))
    assert r"da\nta/test/good/bad.png" in line


def test_a_mask_that_cannot_be_read_replaces_no_evaluation(cli, run_folder, parts, tmp_path):
    data, out = shutil.copytree(parts, tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("of an earlier one")
    mask = next((data / "ground_truth").rglob("*.png"))
    mask.write_text("no image")
    line = one_line(cli("evaluate", run_folder, data, "--out", out, "--overwrite"))
    assert mask.name in line and (out / "metrics.json").read_text() == "of an earlier one"


def test_evaluate_prints_its_metrics(cli, run_folder, parts, tmp_path, monkeypatch):
    found = {"pro": 0.875, "pixel_auroc": None, "image_auroc": 1.0, "notes": []}
    found["defects"] = {"[red]": {"pro": 0.25, "pixel_auroc": 0.5, "image_auroc": 0.75}}
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", lambda *arguments, **more: found)
    code, out, _ = cli("evaluate", run_folder, parts, "--out", tmp_path / "out")
    assert code == 0
    cells = [re.findall(r"[^\s│]+", line) for line in out.splitlines()]
    assert [parts.name, "0.875", "-", "1.000"] in cells and ["[red]", "0.250", "0.500", "0.750"] in cells
    assert out.endswith(f"report: {tmp_path}/out/report.html\n")


def test_evaluate_shows_the_metrics_that_are_asked_for(cli, run_folder, parts, tmp_path):
    out = tmp_path / "out"
    code, said, _ = cli("evaluate", run_folder, parts, "--out", out, "--metrics", "pixel_ap, pro_5")
    found = json.loads((out / "metrics.json").read_text())
    assert code == 0 and "Pixel AP" in said and "PRO 5 %" in said and "AUROC" not in said
    assert f"{found['pixel_ap']:.3f}" in said and found["image_auroc"] is not None
    code, said, _ = cli("evaluate", run_folder, parts, "--out", out, "--overwrite", "--metrics", "all")
    assert code == 0 and all(
        f"{v:.3f}" in said for k, v in found.items() if k.startswith(("pixel", "image_"))
    )
    line = one_line(cli("evaluate", run_folder, parts, "--out", out, "--overwrite", "--metrics", "pro,ap"))
    assert "metrics: expected some of pro, pro_5" in line and line.endswith("got ap")
    assert (out / "metrics.json").is_file(), "an earlier one stays"


def test_evaluate_shows_intervals_where_they_are_asked_for(cli, run_folder, parts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    code, without, _ = cli("evaluate", run_folder, parts, "--out", out)
    assert code == 0 and "95 %" not in without
    assert not {"bootstrap", "intervals"} & set(json.loads((out / "metrics.json").read_text()))
    command = ("evaluate", run_folder, parts, "--out", out, "--overwrite", "--metrics", "all")
    code, said, _ = cli(*command, "--bootstrap", 40)
    found = json.loads((out / "metrics.json").read_text())
    assert code == 0 and found["bootstrap"] == 40 and "95 % interval of 40 resamples" in said
    lines = [re.findall(r"[^│]+", line) for line in said.splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines]
    for key, name in (("pro", "PRO"), ("image_f1_max", "Image F1-max")):
        assert [name, *(f"{end:.3f}" for end in found["intervals"][key])] in cells
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr("glance_fast.cli.console.out_console", console)
    print_intervals(found, list(found["intervals"]))
    assert max(map(len, console.file.getvalue().splitlines())) <= 80
    code, _, err = cli(*command, "--bootstrap", -1)
    assert code == 2 and "--bootstrap" in err


def test_evaluate_takes_maps_of_another_method(cli, run_folder, parts, tmp_path):
    assert cli("evaluate", run_folder, parts, "--out", tmp_path / "ours")[0] == 0
    maps, out = tmp_path / "ours" / "maps", tmp_path / "out"
    code, said, err = cli("evaluate", maps, parts, "--out", out, "--bootstrap", 20)
    found, ours = (json.loads((f / "metrics.json").read_text()) for f in (out, tmp_path / "ours"))
    assert code == 0 and said.endswith(f"report: {out}/report.html\n") and "95 % interval" in said
    # The photographs have the model's size: the same maps and masks.
    assert found["pro"] == ours["pro"] and found["pixel_auroc"] == ours["pixel_auroc"]
    assert found["maps"] == maps.as_posix() and "Map files have no threshold" in err
    code, said, _ = cli("evaluate", maps / parts.name, parts, "--out", out, "--overwrite", "--json")
    assert code == 0 and json.loads(said)["pro"] == ours["pro"]


def test_evaluate_refuses_options_of_a_model_for_maps(cli, run_folder, parts, tmp_path):
    assert cli("evaluate", run_folder, parts, "--out", tmp_path / "ours")[0] == 0
    maps = tmp_path / "ours" / "maps"
    for option, value in (
        ("--engine", "dense"), ("--precision", "bf16"), ("--device", "cpu"), ("--memory-mib", 9)
    ):  # fmt: skip
        line = one_line(cli("evaluate", maps, parts, "--out", tmp_path / "out", option, value))
        assert line == f"{option}: {maps} holds maps, which no model is to compute; leave it out"
    assert not (tmp_path / "out").exists()


def test_evaluate_replaces_nothing_where_maps_are_bad(cli, run_folder, parts, tmp_path):
    maps, out = tmp_path / "maps", tmp_path / "out"
    assert cli("evaluate", run_folder, parts, "--out", tmp_path / "ours")[0] == 0
    (tmp_path / "ours" / "maps").rename(maps)
    bad = maps / parts.name / "test" / "good" / "001.tiff"
    bad.write_text("no map")
    out.mkdir()
    (out / "metrics.json").write_text("of an earlier one")
    command = ("evaluate", maps, parts, "--out", out, "--overwrite")
    assert one_line(cli(*command)).startswith(f"{bad}: damaged or truncated")
    bad.unlink()
    assert "001.png: has no map; expected" in one_line(cli(*command))
    assert one_line(cli("evaluate", maps, parts, "--out", maps)).startswith(
        f"{maps}: is the folder that is read"
    )
    assert (out / "metrics.json").read_text() == "of an earlier one"


def test_evaluate_refuses_an_engine_that_the_net_has_not(cli, run_folder, parts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    line = one_line(cli("evaluate", run_folder, parts, "--out", out, "--overwrite", "--engine", "dense"))
    assert line.startswith("engine: 'dense' is for masked nets")
    assert (out / "metrics.json").read_text() == "{}"


def test_evaluate_that_fits_no_memory_is_refused_before_a_report_is_replaced(
    cli, run_folder, parts, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    # A model this small would fit into a whole one.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 16)
    command = ("evaluate", run_folder, parts, "--out", out, "--device", "cpu", "--memory-mib", "1")
    assert one_line(cli(*command, "--overwrite")).startswith("image_size 64x64: scoring takes ")
    assert (out / "metrics.json").exists()


def test_distill_takes_the_built_in_teacher_unless_told(cli, photos, tmp_path, monkeypatch):
    seen = []
    module = "glance_fast.training.distill"
    monkeypatch.setattr(
        f"{module}.distill_local",
        lambda paths, out, work, patch, teacher, **more: seen.append((len(paths), patch, teacher)) or "done",
    )
    monkeypatch.setattr(
        f"{module}.distill_global_start",
        lambda paths, out, work, **more: seen.append((len(paths), "global", None)) or "done",
    )
    for kind in ("local-32", "local-64", "global"):
        assert cli("distill", photos, "--student", kind, "--out", tmp_path / f"{kind}.safetensors")[0] == 0
    assert [(count, kind) for count, kind, _ in seen] == [(2, 32), (2, 64), (2, "global")]
    built_in = builtin_teacher().state_dict()
    for _, kind, teacher in seen:
        if kind == "global":
            assert teacher is None
        else:
            assert all(torch.equal(built_in[name], t) for name, t in teacher.state_dict().items())
    own = tmp_path / "own.safetensors"
    torch.manual_seed(0)
    save_teacher(Teacher(), own, {})
    assert cli("distill", photos, "--teacher-weights", own, "--out", tmp_path / "a.safetensors")[0] == 0
    assert not torch.equal(seen[-1][2].conv1.weight, built_in["conv1.weight"])
    refused = ("--student", "global", "--teacher-weights", own, "--out", tmp_path / "b.safetensors")
    assert "learns from the built-in Local-Nets" in one_line(cli("distill", photos, *refused))
    code, _, err = cli("distill", photos, "--student", "local-16", "--out", tmp_path / "c.safetensors")
    assert code == 2 and "'local-16' is not one of" in err


def test_distill_without_a_teacher(cli, photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("glance_fast.nets.builtin.builtin_teacher", never)
    monkeypatch.setattr(
        "glance_fast.training.self_supervised.distill_self_supervised",
        lambda paths, out, work, patch, **more: seen.append((len(paths), patch, more["steps"])) or "done",
    )
    command = ("distill", photos, "--self-supervised", "--out", tmp_path / "a.safetensors")
    assert cli(*command, "--steps", 7)[0] == 0
    assert cli(*command, "--student", "local-64")[0] == 0
    assert seen == [(2, 32, 7), (2, 64, 2000)]
    assert "makes a Local-Net: --student local-32" in one_line(cli(*command, "--student", "global"))
    assert "has no teacher" in one_line(cli(*command, "--teacher-weights", tmp_path / "b.safetensors"))


def test_distill_with_wrong_places(cli, photos, tmp_path):
    weights, out = tmp_path / "weights", tmp_path / "out.safetensors"
    weights.write_text("no weights")
    command = ("distill", photos, "--teacher-weights", weights, "--out")
    assert one_line(cli(*command, out)).startswith(f"{weights}: damaged, or not a safetensors file")
    assert "--out names a file, such as" in one_line(cli(*command, photos))
    assert "nothing to resume there" in one_line(cli(*command, out, "--resume"))
    assert "exclude each other" in one_line(cli(*command, out, "--resume", "--overwrite"))
    assert "exists already; --overwrite replaces it" in one_line(cli(*command, weights))
    (tmp_path / "out.safetensors.checkpoint").mkdir()
    assert "an unfinished one is there; --resume goes on" in one_line(cli(*command, out))
    assert (tmp_path / "out.safetensors.checkpoint").is_dir()


def test_demo_keeps_what_is_there(cli, photos, monkeypatch):
    monkeypatch.setattr("glance_fast.jobs.demo.run_demo", never)
    before = tree(photos)
    assert "is not empty" in one_line(cli("demo", "--out", photos))
    assert "holds '0.png'" in one_line(cli("demo", "--out", photos, "--overwrite"))
    assert tree(photos) == before


@pytest.mark.parametrize(
    ("command", "entry", "picker"),
    [
        (["distill", "{photos}", "--out", "{out}.safetensors"], "training.distill.distill_local", "device"),
        (["demo", "--out", "{out}"], "jobs.demo.run_demo", "device"),
        (["train", "{parts}", "--out", "{out}"], "training.fit.fit", "jobs.train"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--device", "cuda"]])
def test_what_trains_trains_on_the_device_that_is_picked(
    cli, photos, parts, tmp_path, monkeypatch, command, entry, picker, more
):
    asked, reached = [], []

    def picked(name):
        asked.append(name)
        return torch.device("cuda")

    def stop(*arguments, device, **how):
        reached.append(device)
        raise UserError("stopped")

    monkeypatch.setattr(f"glance_fast.{picker}.pick_device", picked)
    monkeypatch.setattr("glance_fast.training.fit.untrained", lambda *arguments: None)
    monkeypatch.setattr(f"glance_fast.{entry}", stop)
    places = {"photos": photos, "parts": parts, "out": tmp_path / "out"}
    assert one_line(cli(*(argument.format(**places) for argument in command), *more)) == "stopped"
    assert asked == [more[-1] if more else "auto"] and reached == [torch.device("cuda")]
