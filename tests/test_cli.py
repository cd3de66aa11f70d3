"""The command line as a person meets it: one clear line, an exit code that tells, nothing lost."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from PIL import Image
from samples import draw_part

import glance_fast
from glance_fast import UserError
from glance_fast.cli import main
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.teacher import Teacher, save_teacher
from glance_fast.scoring.table import Summary

COMMANDS = ("train", "score-dir", "calibrate", "evaluate", "bench", "distill", "demo")
# These write a file or a folder of their own.
WRITING = tuple(command for command in COMMANDS if command != "calibrate")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line here; gives its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glance-fast", *map(str, arguments)])
        # Wide enough that no line of ours or Typer's is broken.
        monkeypatch.setenv("COLUMNS", "80" if "--help" in arguments else "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return stop.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def photos(tmp_path):
    """Two images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(draw_part(rng, defect=bool(i))).save(folder / f"{i}.png")
    return folder


def one_line(result):
    """The one line of a failure."""
    code, out, err = result
    assert code == 1 and out == "" and err.count("\n") == 1, result
    assert err.startswith("glance-fast: ")
    return err.removeprefix("glance-fast: ").rstrip("\n")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- help, version, wrong arguments


def test_version(cli):
    assert cli("--version") == (0, f"glance-fast {glance_fast.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert re.search(rf"^ glance-fast {command} ", out, re.MULTILINE), "an example"
    assert max(map(len, out.splitlines())) <= 80
    # Neither a paragraph that a narrow terminal breaks anew, nor markup that shows.
    assert "[dim]" not in out and not re.search(r"^ \S+(?: \S+)? *$", out.split("╭")[0], re.MULTILINE)
    if command in WRITING:
        assert all(option in out for option in ("--out", "--overwrite"))


def test_help_of_all_names_commands_and_exit_codes(cli):
    code, out, _ = cli("--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    text = " ".join(out.split())
    for meaning in ("0 done", "1 failed", "2 wrong arguments", "3 some images", "130 stopped"):
        assert meaning in text
    assert "glance-fast train photos/good --out run" in text


def test_the_command_line_does_not_wait_for_pytorch():
    code = "import sys, glance_fast.cli, glance_fast\n"
    code += "slow = {'torch', 'numpy', 'numba', 'scipy', 'matplotlib', 'skimage'} & set(sys.modules)\n"
    code += "assert not slow, slow\n"
    # ... and gets it as soon as something is asked for.
    code += "assert set(glance_fast.__all__) <= set(dir(glance_fast)) and 'torch' not in sys.modules\n"
    code += "assert glance_fast.load.__module__ == 'glance_fast.checkpoint' and 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_all_public_names_are_there():
    for name in glance_fast.__all__:
        assert getattr(glance_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'glance_fast' has no attribute 'scores'"):
        _ = glance_fast.scores
    assert not hasattr(glance_fast, "scores")


def test_no_arguments_show_help(cli):
    code, out, err = cli()
    assert code in (0, 2) and "score-dir" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument 'DATA'"),
        (["train", "x"], "Missing option '--out' / '-o'"),
        (["train", "x", "--out", "y", "--steps", "abc"], "Invalid value for '--steps'"),
        (["train", "x", "--out", "y", "--steps", "0"], "Invalid value for '--steps'"),
        (["train", "x", "--out", "y", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "x", "--out", "y", "--bogus"], "No such option: --bogus"),
        (["score-dir", "x"], "Missing argument 'IMAGES'"),
        (["score-dir", "x", "y", "--out", "z", "--engine", "fast"], "'fast' is not one of"),
        (["score-dir", "x", "y", "z", "--out", "z"], "unexpected extra argument"),
        (["demo", "--steps", "3"], "No such option: --steps"),
    ],
)
def test_wrong_arguments_are_explained_shortly(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and message in err
    assert len(err.splitlines()) <= 6


# ---------------------------------------------------------------- train


def never(*arguments, **more):
    raise AssertionError("must not be reached")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nonsense"], "--set nonsense: expected key=value"),
        (["--set", "colour=3"], "--set: no setting 'colour'; there are image_size, patch"),
        (["--set", "patch=33", "--set", "stride=8"], "patch: 33 is not supported; use one of 32, 64"),
        (
            ["--set", "patch=32", "--set", "stride=5"],
            "stride: 5 does not go with patch 32; use a multiple of",
        ),
        (["--set", "image_size=8"], "image_size: "),
        (["--set", "width=wide"], "width: expected int, got 'wide'"),
        (["--set", "net=default"], "net: 'default' is none of surround, pyramid, paper"),
        (["--set", "image_size=64"], "image_size: 64x64 leaves no surrounding beside a patch of 64"),
        (["--set", "quantile=0.95"], "--set: no setting 'quantile'; there are image_size"),
        (["--config", "{tmp}/none.toml"], "{tmp}/none.toml: no such file"),
        (["--config", "{tmp}/broken.toml"], "{tmp}/broken.toml: no readable TOML file"),
        (["--config", "{tmp}/odd.toml"], "{tmp}/odd.toml: no setting 'colour'"),
        (["--device", "tpu9"], "device tpu9: no such device; use auto, cpu or cuda"),
        (["--resume"], "{tmp}/run: nothing to resume there; leave --resume away to begin"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["--local-net", "{tmp}/broken.toml"], "{tmp}/broken.toml: not a Local-Net"),
        (["--teacher-weights", "{tmp}/broken.toml"], "{tmp}/broken.toml: not a readable .safetensors file"),
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
    written = glance_fast.config.load_config(tmp_path / "run/config.toml")
    assert glance_fast.Config(**written) == config


def test_an_unfinished_training_is_neither_lost_nor_mixed(cli, parts, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []

    def fit(paths, out, config, **more):
        seen.append(config)
        (out / "checkpoint").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("glance_fast.training.fit.fit", fit)
    command = ("train", parts, "--out", run)
    code, _, err = cli(*command, "--set", "width=16")
    assert code == 130
    assert err == "glance-fast: stopped; the same command with --resume goes on\n"
    assert "an unfinished training is there; --resume goes on with it" in one_line(cli(*command))
    line = one_line(cli(*command, "--resume", "--set", "width=24"))
    assert "--resume goes on with the settings in config.toml" in line
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
    assert [p.name for p in run.iterdir()] == ["config.toml"]


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
    assert code == 1 and err.splitlines()[-1].startswith("glance-fast: 7 usable images: at least 8")


# ---------------------------------------------------------------- score-dir


def score_dir(cli, run, images, out, *more):
    return cli("score-dir", run, images, "--out", out, "--device", "cpu", *more)


def test_score_dir_tells_what_it_did(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    code, said, err = score_dir(cli, run_folder, photos, out)
    assert code == 0 and re.fullmatch(rf"2 images scored, \d anomalous: {out}/scores.csv\n", said)
    assert all(line.startswith("scoring: ") for line in err.splitlines())
    (photos / "bad.png").write_text("no image")
    code, said, err = score_dir(cli, run_folder, photos, out, "--resume", "--overlays")
    assert code == 3 and said.startswith("2 images scored")
    assert err.endswith(f"1 image could not be scored; column error of {out}/scores.csv says why\n")
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["0.png.png", "1.png.png"]
    Image.fromarray(draw_part(np.random.default_rng(0))).resize((64, 40)).save(photos / "bad.png")
    code, said, err = score_dir(cli, run_folder, photos, out, "--resume")
    assert code == 0 and said.startswith("3 images scored")
    assert "1 image has another shape than those in training" in err


@pytest.mark.parametrize("engine", ["dense", "grouped", "patchwise"])
def test_score_dir_with_an_engine(cli, run_folder, masked_run, photos, tmp_path, engine):
    out = tmp_path / "out"
    line = one_line(score_dir(cli, run_folder, photos, out, "--engine", engine))
    assert line.startswith(f"engine: '{engine}' is for masked nets; net 'surround'") and not out.exists()
    code, said, _ = score_dir(cli, masked_run, photos, out, "--engine", engine)
    assert code == 0 and said.startswith("2 images scored")
    before = tree(out)
    one_line(score_dir(cli, run_folder, photos, out, "--engine", engine, "--overwrite"))
    assert tree(out) == before


def test_score_dir_with_wrong_folders(cli, run_folder, photos, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for run, images, where, message in (
        (
            tmp_path / "none",
            photos,
            out,
            "none: no such folder; a run folder is what glance-fast train wrote",
        ),
        (tmp_path / "file", photos, out, "file: is a file; a run folder is what"),
        (photos, photos, out, "photos: no model.safetensors in it; not a run folder"),
        (run_folder, tmp_path / "none", out, "none: no such folder"),
        (run_folder, tmp_path / "file", out, "file: is a file, not a folder"),
        (run_folder, photos / "0.png", out, "0.png: is a file, not a folder"),
        (run_folder, tmp_path / "empty", out, "empty: no image in this folder"),
        (run_folder, photos, photos, "is the folder that is read; choose another"),
        (run_folder, photos, run_folder, "is the folder that is read; choose another"),
        (run_folder, photos, tmp_path, f"holds {photos}, which is read; choose another"),
        (run_folder, photos, photos / "out", "would be taken for photographs; choose another"),
        (run_folder, photos, tmp_path / "file", "file: is a file; --out names a folder"),
    ):
        assert message in one_line(score_dir(cli, run, images, where))
    assert "nothing to resume there" in one_line(score_dir(cli, run_folder, photos, out, "--resume"))
    assert not out.exists()


def test_score_dir_replaces_only_what_it_wrote_and_only_when_told(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    score_dir(cli, run_folder, photos, out)
    before = tree(out)
    assert "is not empty; --overwrite replaces" in one_line(score_dir(cli, run_folder, photos, out))
    # What is wrong is found before anything is removed.
    one_line(score_dir(cli, run_folder, tmp_path / "none", out, "--overwrite"))
    one_line(score_dir(cli, tmp_path / "none", photos, out, "--overwrite"))
    (out / "notes.txt").write_text("mine")
    line = one_line(score_dir(cli, run_folder, photos, out, "--overwrite"))
    assert line == (
        f"{out}: holds 'notes.txt', which this command did not write; move it away or choose another --out"
    )
    (out / "notes.txt").unlink()
    assert tree(out) == before
    (photos / "0.png").unlink()
    assert score_dir(cli, run_folder, photos, out, "--overwrite")[0] == 0
    assert [p.name for p in (out / "maps").iterdir()] == ["1.png.tiff"]


def test_folders_whose_names_look_like_markup(cli, run_folder, photos, tmp_path):
    out = tmp_path / "[bold]x[/y] :smile:"
    code, said, _ = score_dir(cli, run_folder, photos, out)
    assert code == 0 and f"{out}/scores.csv" in said


def test_damaged_run_is_named(cli, run_folder, photos, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "calibration.json").write_text("{}")
    line = one_line(score_dir(cli, run, photos, tmp_path / "out"))
    assert line.startswith(f"{run}/calibration.json: damaged") and not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_written(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.cli.output.os.access", lambda path, mode: not mode & os.W_OK)
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "out"))
    assert line.endswith("out: cannot be written to; change its permissions or choose another --out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- score-dir in shards


def test_shards_become_one_table(cli, run_folder, photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert score_dir(cli, run_folder, photos, whole, "--overlays")[0] == 0
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "2/3", "--overlays")
    assert code == 0 and re.fullmatch(
        rf"shard 2/3: 1 image scored, \d anomalous: {out}/scores-2-of-3.csv\n", said
    )
    assert err.startswith("scoring shard 2/3: ")
    # Nothing to do is no error.
    code, said, _ = score_dir(cli, run_folder, photos, out, "--shard", "3/3")
    assert code == 0 and said == f"shard 3/3: 0 images scored, 0 anomalous: {out}/scores-3-of-3.csv\n"
    line = one_line(score_dir(cli, run_folder, photos, out, "--shard", "2/3"))
    assert line.startswith(f"{out}: is not empty: shard 2/3 was begun there; --resume goes on with it")
    (photos / "bad.png").write_text("no image")
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3")
    assert code == 1 and said == "" and "photographs came or went between the shards; --resume" in err
    (photos / "bad.png").unlink()
    code, said, _ = score_dir(cli, run_folder, photos, out, "--shard", "1/3", "--resume", "--overlays")
    assert code == 0 and re.fullmatch(rf"2 images scored, \d anomalous: {out}/scores.csv\n", said)
    check_same(out, whole)
    before = tree(out)
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3", "--resume")
    assert (code, said) == (0, f"shard 1/3 is done, and joined: {out}/scores.csv\n") and tree(out) == before
    assert err == "for what is new or failed, give --resume without --shard\n"


def check_same(out, whole):
    """The same files, names in the same order, and scores but for digits that follow what a batch holds."""
    files = [{p.relative_to(folder) for p in folder.rglob("*")} for folder in (out, whole)]
    assert files[0] == files[1]
    ours, theirs = (
        [line.split(",") for line in (folder / "scores.csv").read_text().splitlines()[1:]]
        for folder in (out, whole)
    )
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    scores = np.array([[float(row[1]) for row in rows] for rows in (ours, theirs)])
    # Rounding is that of the largest scores: small ones are differences of large numbers.
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6 * np.abs(scores).max())


def test_a_shard_and_the_whole_tell_of_images_that_failed(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    (photos / "bad.png").write_text("no image")
    assert score_dir(cli, run_folder, photos, out, "--shard", "2/3")[0] == 0
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "3/3")
    assert code == 3 and said.startswith("shard 3/3: 0 images scored")
    assert f"1 image could not be scored; column error of {out}/scores-3-of-3.csv says why\n" in err
    code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/3")
    assert code == 3 and said.startswith("2 images scored")
    assert f"1 image could not be scored; column error of {out}/scores.csv says why\n" in err


def test_one_shard_of_one_is_the_plain_command(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    for more in ((), ("--resume",), ("--overwrite",)):
        code, said, err = score_dir(cli, run_folder, photos, out, "--shard", "1/1", *more)
        assert code == 0 and said.endswith(f" anomalous: {out}/scores.csv\n") and "shard" not in err
    assert "is not empty; --overwrite" in one_line(score_dir(cli, run_folder, photos, out, "--shard", "1/1"))


def test_shards_that_are_refused(cli, run_folder, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0
    before = tree(out)
    monkeypatch.setattr("glance_fast.scoring.directory.score_directory", never)
    for shard in ("0/4", "5/4", "a/b", "3"):
        line = one_line(score_dir(cli, run_folder, photos, out, "--shard", shard))
        assert line == f"--shard {shard}: expected K/N with K from 1 to N, such as 2/4"
    for more, message in (
        (["--shard", "2/2", "--overwrite"], "--overwrite would delete what other shards did; choose another"),
        (["--shard", "1/2", "--overwrite", "--resume"], "--overwrite would delete what other shards did"),
        (["--shard", "2/3"], f"{out}: holds shard 1/2; give --shard K/2 there, or choose another --out"),
        (["--shard", "2/2", "--resume"], f"{out}: nothing of shard 2/2 to resume there; leave --resume away"),
        ([], f"{out}: is not empty; --overwrite replaces what is in it"),
    ):
        assert one_line(score_dir(cli, run_folder, photos, out, *more)).startswith(message)
    (tmp_path / "file").touch()
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "file", "--shard", "1/2"))
    assert line == f"{tmp_path}/file: is a file; --out names a folder"
    assert tree(out) == before


def test_without_shard_the_work_of_shards_is_gone_on_with_or_replaced(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    for more in ("--resume", "--overwrite"):
        shutil.rmtree(out, ignore_errors=True)
        assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0
        kept = (out / "maps/0.png.tiff").stat().st_mtime_ns
        code, said, _ = score_dir(cli, run_folder, photos, out, more)
        assert code == 0 and said.startswith("2 images scored")
        assert {p.name for p in out.iterdir()} == {"scores.csv", "run.json", "maps"}
        assert ((out / "maps/0.png.tiff").stat().st_mtime_ns == kept) == (more == "--resume")


def test_a_shard_leaves_what_others_are_writing(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    (out / "maps").mkdir(parents=True)
    (out / "run-2-of-2.json").write_text("{}")
    # A shard that is damaged is told of before anything is written.
    line = one_line(score_dir(cli, run_folder, photos, out, "--shard", "1/2"))
    assert line.startswith(f"{out}/run-2-of-2.json: damaged")
    (out / "run-2-of-2.json").unlink()
    (out / "scores-2-of-2.csv").touch()
    writing = out / "maps/.tmp-0123456789abcdef.tiff"
    writing.touch()
    assert score_dir(cli, run_folder, photos, out, "--shard", "1/2")[0] == 0 and writing.exists()


# What torchrun starts in place of the command: an accident in the second process, at its second image.
ACCIDENT = """
import os, signal, sys
from glance_fast import UserError
from glance_fast.cli import main
from glance_fast.model import Glance
from glance_fast.scoring import directory
kind, calls, score_chunk = sys.argv.pop(), [], directory._score_chunk
def accident(*arguments):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("disk/file: is odd")
    return score_chunk(*arguments)
Glance.at_once, directory._score_chunk = 1, accident
main()
"""


@pytest.fixture
def torchrun(run_folder):
    """Run score-dir as several processes; gives the exit code, stdout and stderr of torchrun."""

    def run(images, out, *more, processes=2, start=("-m", "glance_fast.cli")):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", processes, *start, "score-dir", run_folder, images, "--out", out]
        done = subprocess.run(
            [*map(str, command), "--device", "cpu", *map(str, more)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def ours(text):
    """What the command itself said, of all that torchrun says when one of its processes fails."""
    return [line for line in text.splitlines() if line.startswith("glance-fast: ")]


@pytest.mark.slow
def test_processes_of_torchrun_share_the_work(cli, torchrun, run_folder, parts, tmp_path):
    images = shutil.copytree(parts / "test", tmp_path / "test")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert score_dir(cli, run_folder, images, whole)[0] == 0
    code, said, err = torchrun(images, out)
    assert code == 0 and re.fullmatch(rf"6 images scored, \d anomalous: {out}/scores.csv\n", said), err
    assert len(re.findall("^scoring shard 1/2: .* s$", err, re.MULTILINE)) == 1 and "2/2" not in err
    check_same(out, whole)
    run = json.loads((out / "run.json").read_text())
    assert (run["scored"], run["errors"], run["shards"], run["device"]) == (6, 0, 2, "cpu")
    # One command has all of it: it may replace what is there, and speaks with one voice.
    code, said, err = torchrun(images, out)
    assert code == 1 and said == ""
    assert ours(err) == [
        f"glance-fast: {out}: is not empty; --overwrite replaces what is in it, or choose another --out"
    ]
    (images / "good/bad.png").write_text("no image")
    command = ("--no-python", Path(sys.executable).with_name("glance-fast"))
    code, said, err = torchrun(images, out, "--overwrite", start=command)
    # torchrun has one code for all failures, and names that of the process.
    assert code == 1 and re.search(r"exitcode +: 3 ", err) and said.startswith("6 images scored")
    assert f"1 image could not be scored; column error of {out}/scores.csv says why" in err
    rows = [line for line in (out / "scores.csv").read_text().splitlines() if "bad.png" in line]
    assert len(rows) == 1 and rows[0].startswith('good/bad.png,,,,"is not an image')


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error", "killed"])
def test_torchrun_ends_with_any_of_its_processes_and_goes_on_with_any_number(
    cli, torchrun, run_folder, parts, tmp_path, kind
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    code, said, err = torchrun(
        parts / "test", out, kind, start=("--no-python", sys.executable, "-c", ACCIDENT)
    )
    assert code == 1 and said == ""
    assert ours(err) == ["glance-fast: disk/file: is odd"] * (kind == "error")
    kept = {p: p.stat().st_mtime_ns for p in (out / "maps").rglob("*.tiff")}
    done = len((out / "scores-2-of-2.csv").read_text().splitlines())
    assert done == 2 and not (out / "scores.csv").exists(), "a header and one image"
    code, said, err = torchrun(parts / "test", out, "--resume", processes=3)
    assert code == 0 and said.startswith("6 images scored"), err
    assert score_dir(cli, run_folder, parts / "test", whole)[0] == 0
    check_same(out, whole)
    assert sum(p.stat().st_mtime_ns == time for p, time in kept.items()) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error", "killed", "shard"])
def test_processes_end_with_each_other_where_nobody_kills_them(run_folder, parts, tmp_path, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["score-dir", run_folder, parts / "test", "--out", tmp_path / "out"]
    command += ["--shard=1/2"] * (kind == "shard")
    processes = []
    for rank in ("0", "1"):
        # What torchrun says to them.
        environment = {
            **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        process = subprocess.Popen(
            [sys.executable, "-c", ACCIDENT, *map(str, command), "--device", "cpu", kind],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL if kind == "killed" else 1]
    if kind == "shard":
        line = "glance-fast: --shard: torchrun's processes share the work by themselves; leave it away\n"
        assert said == [line, ""] and not (tmp_path / "out").exists()
    else:
        assert said == ["", "glance-fast: disk/file: is odd\n" * (kind == "error")]


def test_one_process_of_torchrun_is_the_plain_command(cli, run_folder, photos, tmp_path, monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    code, said, err = score_dir(cli, run_folder, photos, tmp_path / "out")
    assert code == 0 and said.startswith("2 images scored") and "shard" not in err
    assert "leave it away" in one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--shard", "1/1"))


# ---------------------------------------------------------------- what goes wrong on the way

FULL = OSError(errno.ENOSPC, "No space left on device", "disk/file")


def full_disk(*arguments, **more):
    raise UserError("disk/file: cannot be written: No space left on device") from FULL


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory; use a smaller --memory-mib"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory; use a smaller --memory-mib"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "out of memory; use a smaller"),
        (
            PermissionError(errno.EACCES, "Permission denied", "disk/file"),
            "disk/file: Permission denied; change its permissions or choose another folder",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "disk/file"),
            "disk/file: Read-only file system; choose another folder",
        ),
        (FULL, "disk/file: No space left on device; make room there, then the same command with --resume"),
        (UserError("model: is odd"), "model: is odd"),
    ],
    ids=["memory", "CUDA memory", "CPU memory", "permission", "read-only", "full disk", "user"],
)
def test_one_line_for_what_the_machine_does(cli, run_folder, photos, tmp_path, monkeypatch, error, line):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr("glance_fast.scoring.directory.score_directory", fail)
    assert one_line(score_dir(cli, run_folder, photos, tmp_path / "out")).startswith(line)


def test_a_mistake_of_ours_is_not_hidden(cli, run_folder, photos, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("a bug")

    monkeypatch.setattr("glance_fast.scoring.directory.score_directory", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        score_dir(cli, run_folder, photos, tmp_path / "out")


def test_advice_after_a_full_disk_fits_the_command(cli, run_folder, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", full_disk)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", full_disk)
    monkeypatch.setattr("glance_fast.evaluation.demo.run_demo", full_disk)
    told = (
        "disk/file: cannot be written: No space left on device; make room there, then the same command with"
    )
    assert one_line(cli("train", parts, "--out", tmp_path / "a")) == f"{told} --resume goes on"
    anew = f"{told} --overwrite begins anew"
    assert one_line(cli("evaluate", run_folder, parts, "--out", tmp_path / "b")) == anew
    assert one_line(cli("demo", "--out", tmp_path / "c")) == anew


def test_ctrl_c_promises_a_resume_only_where_there_is_one(cli, run_folder, parts, tmp_path, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", stop)
    result = cli("evaluate", run_folder, parts, "--out", tmp_path / "out")
    assert result == (130, "", "glance-fast: stopped\n")


def test_what_fails_before_it_wrote_leaves_no_folder(cli, run_folder, parts, photos, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise UserError("nothing came of it")

    monkeypatch.setattr("glance_fast.training.fit.fit", fail)
    monkeypatch.setattr("glance_fast.scoring.directory.score_directory", fail)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", fail)
    monkeypatch.setattr("glance_fast.evaluation.demo.run_demo", fail)
    (tmp_path / "there").mkdir()
    for command in (
        ("train", parts),
        ("score-dir", run_folder, photos),
        ("evaluate", run_folder, parts),
        ("demo",),
    ):
        for out in (tmp_path / "new/deeper/out", tmp_path / "there/out", tmp_path / "there"):
            assert one_line(cli(*command, "--out", out)) == "nothing came of it"
            assert not (tmp_path / "new").exists() and list((tmp_path / "there").iterdir()) == []


def test_output_among_what_is_read_leaves_nothing_there(cli, run_folder, parts, tmp_path):
    data = shutil.copytree(parts, tmp_path / "data")
    before = sorted(data.rglob("*"))
    old = data / "test/old"
    for out in (data / "test/x", data / "test/good/x/y"):
        line = one_line(cli("evaluate", run_folder, data, "--out", out))
        assert (
            line == f"{out}: lies among the test images, and maps would be taken for images; choose another"
        )
        assert "would be taken for photographs" in one_line(score_dir(cli, run_folder, data, out))
    assert sorted(data.rglob("*")) == before
    # It is refused before anything is removed.
    old.mkdir()
    (old / "metrics.json").touch()
    assert "lies among" in one_line(cli("evaluate", run_folder, data, "--out", old, "--overwrite"))
    assert (old / "metrics.json").exists()


def test_half_written_files_of_a_killed_process_go(cli, run_folder, parts, photos, tmp_path, monkeypatch):
    def done(*arguments, **more):
        return Summary(0, 0, 0, ())

    monkeypatch.setattr("glance_fast.scoring.directory.score_directory", done)
    monkeypatch.setattr("glance_fast.training.fit.fit", done)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", lambda *arguments, **more: {})
    stale = ".tmp-0123456789abcdef"
    for command, begun, inner in (
        (("train", parts, "--resume"), "config.toml", "checkpoint"),
        (("train", parts, "--overwrite"), "config.toml", "checkpoint"),
        (("score-dir", run_folder, photos, "--resume"), "run.json", "maps/deep"),
        (("evaluate", run_folder, parts, "--overwrite"), "metrics.json", "maps/deep"),
    ):
        out = tmp_path / "-".join((command[0], command[-1]))
        for name in (begun, f"{stale}.json", f"{inner}/{stale}.tiff", ".tmp-notes"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        assert cli(*command, "--out", out)[0] == 0
        left = {p.name for p in out.rglob("*") if p.is_file()}
        assert ".tmp-notes" in left and not any(name.startswith(stale) for name in left)


# ---------------------------------------------------------------- the other commands


def test_evaluate_with_wrong_folders(cli, run_folder, parts, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", never)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    assert "is not empty" in one_line(cli("evaluate", run_folder, parts, "--out", out))
    for run, data, message in (
        (run_folder, photos, "no folder 'test' in it"),
        (photos, parts, "no model.safetensors in it"),
        (run_folder, tmp_path / "none", "no such folder"),
    ):
        assert message in one_line(cli("evaluate", run, data, "--out", out, "--overwrite"))
    assert (out / "metrics.json").exists(), "kept until something better can be made"


def test_evaluate_prints_its_metrics(cli, run_folder, parts, tmp_path, monkeypatch):
    found = {"pro": 0.875, "pixel_auroc": None, "image_auroc": 1.0}
    found["defects"] = {"[red]": {"pro": 0.25, "pixel_auroc": 0.5, "image_auroc": 0.75}}
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", lambda *arguments, **more: found)
    code, out, _ = cli("evaluate", run_folder, parts, "--out", tmp_path / "out")
    assert code == 0
    cells = [re.findall(r"[^\s│]+", line) for line in out.splitlines()]
    assert [parts.name, "0.875", "-", "1.000"] in cells and ["[red]", "0.250", "0.500", "0.750"] in cells
    assert out.endswith(f"report: {tmp_path}/out/report.html\n")


def test_evaluate_refuses_an_engine_that_the_net_has_not(cli, run_folder, parts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    line = one_line(cli("evaluate", run_folder, parts, "--out", out, "--overwrite", "--engine", "dense"))
    assert line.startswith("engine: 'dense' is for masked nets")
    assert (out / "metrics.json").read_text() == "{}"


def test_distill_takes_the_built_in_teacher_unless_told(cli, photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "glance_fast.training.distill.distill",
        lambda paths, out, work, teacher, kind, **more: seen.append((len(paths), kind, teacher)) or "done",
    )
    for kind in ("local-32", "local-64", "global"):
        assert cli("distill", photos, "--student", kind, "--out", tmp_path / f"{kind}.safetensors")[0] == 0
    assert [(count, kind) for count, kind, _ in seen] == [(2, "local-32"), (2, "local-64"), (2, "global")]
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
    code, _, err = cli("distill", photos, "--student", "assistant", "--out", tmp_path / "c.safetensors")
    assert code == 2 and "'assistant' is not one of" in err


def test_distill_with_wrong_places(cli, photos, tmp_path):
    weights, out = tmp_path / "weights", tmp_path / "out.safetensors"
    weights.write_text("no weights")
    command = ("distill", photos, "--teacher-weights", weights, "--out")
    assert one_line(cli(*command, out)).startswith(f"{weights}: not a readable .safetensors file")
    assert "--out names a file, such as" in one_line(cli(*command, photos))
    assert "nothing to resume there" in one_line(cli(*command, out, "--resume"))
    assert "exclude each other" in one_line(cli(*command, out, "--resume", "--overwrite"))
    assert "exists already; --overwrite replaces it" in one_line(cli(*command, weights))
    (tmp_path / "out.safetensors.checkpoint").mkdir()
    assert "an unfinished one is there; --resume goes on" in one_line(cli(*command, out))
    assert (tmp_path / "out.safetensors.checkpoint").is_dir()


def test_demo_keeps_what_is_there(cli, photos, monkeypatch):
    monkeypatch.setattr("glance_fast.evaluation.demo.run_demo", never)
    before = tree(photos)
    assert "is not empty" in one_line(cli("demo", "--out", photos))
    assert "holds '0.png'" in one_line(cli("demo", "--out", photos, "--overwrite"))
    assert tree(photos) == before


# ---------------------------------------------------------------- as a process of its own

# Sends itself a signal while the third image is scored.
STOPPING = """
import os, sys
from glance_fast.cli import main
from glance_fast.model import Glance
from glance_fast.scoring import directory
number, calls, score_chunk = int(sys.argv.pop()), [], directory._score_chunk
def stop(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), number)
    return score_chunk(*arguments)
Glance.at_once, directory._score_chunk = 1, stop
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_score_dir_stopped_by_a_signal_goes_on(cli, run_folder, parts, tmp_path, number):
    images, whole, out = parts / "test", tmp_path / "whole", tmp_path / "out"
    arguments = ["score-dir", run_folder, images, "--out", out, "--device", "cpu"]
    process = subprocess.run(
        [sys.executable, "-c", STOPPING, *map(str, arguments), str(int(number))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert process.stderr == "glance-fast: stopped; the same command with --resume goes on\n"
    else:
        assert process.returncode == -signal.SIGKILL
    assert len((out / "scores.csv").read_text().splitlines()) == 3, "a header and two images"
    kept = {path: path.stat().st_mtime_ns for path in (out / "maps").rglob("*.tiff")}
    assert len(kept) >= 2
    assert score_dir(cli, run_folder, images, out, "--resume")[0] == 0
    assert score_dir(cli, run_folder, images, whole)[0] == 0
    scored = (out / "scores.csv").read_text(), (whole / "scores.csv").read_text()
    rows = [[line.split(",") for line in text.splitlines()] for text in scored]
    assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]
    ours, theirs = (np.array([float(row[1]) for row in table[1:]]) for table in rows)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # Nothing is scored twice.
    first = sorted(kept)[:2]
    assert all(path.stat().st_mtime_ns == kept[path] for path in first)
    assert len(list((out / "maps").rglob("*.tiff"))) == 6


# ---------------------------------------------------------------- threads, memory, precision


@pytest.fixture
def threads():
    """Numbers of threads of PyTorch and Numba, put back afterwards."""
    before = torch.get_num_threads(), numba.get_num_threads()
    yield lambda: (torch.get_num_threads(), numba.get_num_threads())
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def test_one_setting_for_all_threads(cli, run_folder, photos, tmp_path, threads):
    assert score_dir(cli, run_folder, photos, tmp_path / "out", "--threads", "1")[0] == 0
    assert threads() == (1, 1)
    code, _, err = score_dir(cli, run_folder, photos, tmp_path / "none", "--threads", "0")
    assert code == 2 and "--threads" in err and not (tmp_path / "none").exists()


def test_waiting_threads_give_their_processor_up_soon(cli, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "7", "who has set it knows why"


def test_memory_that_does_not_suffice(cli, run_folder, photos, tmp_path, monkeypatch):
    # A model this small would fit into a whole one.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 16)
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--memory-mib", "1"))
    assert line.startswith("image_size 64x64: scoring takes ") and "--memory-mib" in line
    code, said, _ = score_dir(cli, run_folder, photos, tmp_path / "out", "--memory-mib", "100", "--overwrite")
    assert code == 0 and "2 images scored" in said


def test_bf16_where_it_would_be_slower_is_fp32_and_said(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: False)
    code, _, err = score_dir(cli, run_folder, photos, tmp_path / "out", "--precision", "bf16")
    assert code == 0 and "no bf16 instructions on this machine" in err and "scoring in fp32" in err
    assert json.loads((tmp_path / "out/run.json").read_text())["precision"] == "fp32"


def test_images_too_large_to_be_calibrated_are_refused_before_training(cli, photos, tmp_path):
    for i in range(2, 8):
        shutil.copy(photos / "0.png", photos / f"{i}.png")
    command = ("train", photos, "--out", tmp_path / "run", "--device", "cpu")
    line = one_line(cli(*command, "--memory-mib", "20"))
    assert line.startswith("image_size 256x256: scoring takes") and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- bench


def test_bench_measures_and_writes(cli, masked_run, photos, tmp_path):
    out = tmp_path / "new" / "bench.json"
    out.parent.mkdir()
    code, said, _ = cli("bench", masked_run, photos, "--out", out, "--device", "cpu")
    assert code == 0 and max(map(len, said.splitlines())) <= 100
    for text in ("64x64 pixels", "dense fp32", "grouped fp32", "patchwise fp32", "patches/s", "windows"):
        assert text in said
    found = json.loads(out.read_text())
    assert {row["engine"] for row in found["engines"]} == {"dense", "grouped", "patchwise"}
    line = one_line(cli("bench", masked_run, photos, "--out", out))
    assert line == f"{out}: exists already; --overwrite replaces it"
    assert "is a folder" in one_line(cli("bench", masked_run, "--out", tmp_path))
    assert "no image in this folder" in one_line(cli("bench", masked_run, out.parent))


def test_bench_of_a_net_of_one_engine(cli, run_folder, photos, tmp_path):
    out = tmp_path / "bench.json"
    code, said, _ = cli("bench", run_folder, photos, "--out", out, "--device", "cpu")
    assert code == 0 and "auto fp32" in said and "dense" not in said and "patchwise" not in said
    assert {row["engine"] for row in json.loads(out.read_text())["engines"]} == {"auto"}


def test_bench_without_photographs_says_so(cli, masked_run):
    code, said, err = cli("bench", masked_run, "--no-patchwise", "--device", "cpu")
    assert code == 0 and "agreement is that on noise" in err and "patchwise" not in said
