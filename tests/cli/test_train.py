"""``glance-fast train``: settings, folders, trainings that were broken off."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import never, one_line, score_dir, tree
from PIL import Image
from samples import draw_part

import glance_fast
from glance_fast import UserError
from glance_fast.data.score_maps import read_map


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nonsense"], "--set nonsense: expected key=value"),
        (["--set", "colour=3"], "--set: no setting 'colour'; there are image_size, aspect, tile, patch"),
        (["--set", "patch=33", "--set", "stride=8"], "patch: 33 is not supported; use one of 32, 64"),
        (
            ["--set", "patch=32", "--set", "stride=5"],
            "stride: 5 does not go with patch 32; use a multiple of",
        ),
        (["--set", "image_size=8"], "image_size: "),
        (["--set", "width=wide"], "width: expected an integer from 4 to 4096, got 'wide'"),
        (["--set", "net=default"], "net: expected surround, pyramid or paper, got 'default'"),
        (["--set", "image_size=64"], "image_size: 64x64 leaves no surrounding beside a patch of 64"),
        (["--set", "quantile=0.95"], "--set: no setting 'quantile'; there are image_size"),
        (["--config", "{tmp}/none.toml"], "{tmp}/none.toml: no such file"),
        (["--config", "{tmp}/broken.toml"], "{tmp}/broken.toml: no readable TOML file"),
        (["--config", "{tmp}/odd.toml"], "{tmp}/odd.toml: no setting 'colour'"),
        (["--device", "tpu9"], "device tpu9: no such device; use auto, cpu or cuda"),
        (["--resume"], "{tmp}/run: nothing to resume there; leave --resume away to begin"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["--local-net", "{tmp}/broken.toml"], "{tmp}/broken.toml: damaged, or not a safetensors file"),
        (["--teacher-weights", "{tmp}/broken.toml"], "{tmp}/broken.toml: damaged, or not a safetensors file"),
    ],
)
def test_train_with_wrong_settings(cli, parts, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    (tmp_path / "broken.toml").write_text("= [")
    (tmp_path / "odd.toml").write_text("colour = 3")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    line = one_line(cli("train", parts, "--out", tmp_path / "run", *arguments))
    assert line.startswith(message.replace("{tmp}", str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_train_on_wrong_folders(cli, parts, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for data, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "empty", "no image in this folder"),
        (photos, "2 images; at least 8 are needed to train"),
        (parts.parent, f"holds several categories ({parts.name})"),
    ):
        line = one_line(cli("train", data, "--out", tmp_path / "run"))
        assert line.startswith(f"{data}: {message}")
    for out, message in (
        (tmp_path / "file", "is a file; --out names a folder"),
        (tmp_path / "file/run", "cannot be made (Not a directory); choose another --out"),
        (photos, "is not empty; --overwrite replaces what is in it, or choose another --out"),
    ):
        assert one_line(cli("train", parts, "--out", out)) == f"{out}: {message}"


def test_train_takes_settings_in_order(cli, parts, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "glance_fast.training.fit.fit", lambda paths, out, config, **more: seen.append((paths, out, config))
    )
    (tmp_path / "base.toml").write_text("width = 16\nbatch = 6\nsteps = 9\nimage_size = 100\n")
    arguments = ["--config", tmp_path / "base.toml", "--set", "batch=7", "--set", "patch=[32]"]
    arguments += ["--set", "stride = [16]", "--steps", "11", "--seed", "3"]
    code, out, err = cli("train", parts, "--out", tmp_path / "run", *arguments)
    assert code == 0 and "trained in" in out
    ((paths, folder, config),) = seen
    assert (len(paths), folder) == (12, tmp_path / "run")
    assert (config.width, config.batch, config.steps, config.seed) == (16, 7, 11, 3)
    assert (config.patch, config.stride, config.image_size) == ((32,), (16,), (96, 96))
    assert (config.net, config.frame) == ("surround", (8,))
    assert "image_size 100 rounded to 96x96" in err


def test_an_unfinished_training_is_neither_lost_nor_mixed(cli, parts, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []

    def fit(paths, out, config, **more):
        seen.append(config)
        (out / "checkpoint").mkdir(exist_ok=True)
        (out / "checkpoint/images.json").touch()
        (out / "config.toml").write_text(config.to_toml())
        raise KeyboardInterrupt

    monkeypatch.setattr("glance_fast.training.fit.fit", fit)
    command = ("train", parts, "--out", run)
    code, _, err = cli(*command, "--set", "width=16")
    assert code == 130
    assert err == "glance-fast: stopped; the same command with --resume goes on\n"
    assert "an unfinished training is there; --resume goes on with it" in one_line(cli(*command))
    line = one_line(cli(*command, "--resume", "--set", "width=24"))
    assert line == (
        f"{run}: was begun with other settings, those in config.toml; give the same, or "
        "--overwrite begins anew"
    )
    assert len(seen) == 1
    for same in ([], ["--set", "width=16"]):
        assert cli(*command, "--resume", *same)[0] == 130
    assert seen == [seen[0]] * 3 and seen[0].width == 16
    assert cli(*command, "--overwrite")[0] == 130 and seen[3].width == 64


def test_a_training_that_could_not_begin_leaves_nothing_behind(cli, parts, tmp_path, monkeypatch):
    def fit(*arguments, **more):
        raise UserError("3 usable images: at least 8 are needed to train")

    monkeypatch.setattr("glance_fast.training.fit.fit", fit)
    for _ in range(2):
        line = one_line(cli("train", parts, "--out", tmp_path / "run"))
        assert line.startswith("3 usable images")
    assert not (tmp_path / "run").exists()


def test_a_finished_training_is_replaced_only_when_told(cli, parts, run_folder, tmp_path, monkeypatch):
    run = shutil.copytree(run_folder, tmp_path / "run")
    before = tree(run)
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    assert "is not empty; --overwrite replaces" in one_line(cli("train", parts, "--out", run))
    assert "this training is finished" in one_line(cli("train", parts, "--out", run, "--resume"))
    # Wrong arguments are found before anything is removed.
    for wrong in (["--device", "tpu9"], ["--local-net", tmp_path / "none"], ["--config", tmp_path / "none"]):
        one_line(cli("train", parts, "--out", run, "--overwrite", *wrong))
    one_line(cli("train", tmp_path / "none", "--out", run, "--overwrite"))
    (run / "notes.txt").write_text("mine")
    assert "holds 'notes.txt', which this command did not write" in one_line(
        cli("train", parts, "--out", run, "--overwrite")
    )
    (run / "notes.txt").unlink()
    assert tree(run) == before
    monkeypatch.setattr("glance_fast.training.fit.fit", lambda *arguments, **more: None)
    assert cli("train", parts, "--out", run, "--overwrite")[0] == 0
    assert list(run.iterdir()) == []


def test_a_local_net_for_a_patch_that_is_not_used(cli, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    file = Path(glance_fast.__file__).parent / "nets/weights/local-64.safetensors"
    settings = ["--set", "patch=32", "--set", "stride=16", "--local-net", file]
    line = one_line(cli("train", parts, "--out", tmp_path / "run", *settings))
    assert line == f"{file}: made for patches of 64 pixels; this model uses 32"


@pytest.mark.parametrize("net", ["surround", "pyramid"])
def test_train_names_every_unreadable_image_and_goes_on(cli, parts, tmp_path, small, net):
    data = shutil.copytree(parts / "train/good", tmp_path / "good")
    (data / "text.png").write_text("no image")
    (data / "empty.jpg").touch()
    small |= {"net": net, "steps": 1, "finetune_steps": 0}
    settings = [f"--set={key}={value}" for key, value in small.items()]
    code, _, err = cli("train", data, "--out", tmp_path / "run", "--device", "cpu", *settings)
    assert code == 0 and (tmp_path / "run/model.safetensors").is_file()
    left_out = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in left_out] == [str(data / "empty.jpg"), str(data / "text.png")]
    for i in range(5):
        (data / f"{i:03}.png").write_text("no image")
    code, _, err = cli("train", data, "--out", tmp_path / "other", "--device", "cpu", *settings)
    assert code == 1 and err.splitlines()[-1].startswith("glance-fast: 7 usable images; at least 8")


def test_train_and_score_by_tiles(cli, tmp_path, small):
    data, out = tmp_path / "data", tmp_path / "out"
    rng = np.random.default_rng(0)
    for i in range(8):
        image = draw_part(rng, 100)
        for folder in ("train/good", "test/good"):
            (data / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(data / folder / f"{i}.png")
        image[40:60, 30:50] = 10
        (data / "test/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(data / "test/hole" / f"{i}.png")
        (data / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        mask = np.zeros((100, 100), np.uint8)
        mask[40:60, 30:50] = 255
        Image.fromarray(mask).save(data / "ground_truth/hole" / f"{i}_mask.png")
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    line = one_line(cli("train", data, "--out", run, "--tile", "wide", *settings))
    assert line == "--tile wide: expected auto or a number of pixels"
    code, _, err = cli("train", data, "--out", run, "--tile", "auto", "--device", "cpu", *settings)
    assert code == 0 and "tiles of 64 pixels to train on" in err
    line = one_line(score_dir(cli, run, data / "test", out, "--tile", "50"))
    assert line.startswith("--tile 50: the model was trained on tiles of 64 pixels") and not out.exists()
    code, said, _ = score_dir(cli, run, data / "test", out, "--regions")
    assert code == 0 and said.startswith("16 images scored")
    assert read_map(out / "maps" / "hole" / "0.png.tiff").shape == (100, 100)
    code, said, _ = cli("evaluate", run, data, "--out", tmp_path / "report", "--device", "cpu", "--json")
    assert code == 0 and json.loads(said)["images"] == 16 and 0 < json.loads(said)["pro"] <= 1
    # The same maps, measured as those of another method are.
    maps = cli("evaluate", tmp_path / "report" / "maps", data, "--out", tmp_path / "again", "--json")[1]
    for metric in ("pro", "pixel_auroc", "pixel_ap"):
        assert json.loads(maps)[metric] == json.loads(said)[metric]
    line = one_line(cli("export", run, "--out", tmp_path / "m.onnx"))
    assert line.startswith("export: sees whole photographs, and this model tiles of 64 pixels")
