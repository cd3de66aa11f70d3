"""glance-fast calibrate: the threshold anew, whole or not at all, from photographs new to the model."""

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

import glance_fast
from glance_fast import Config, UserError, load
from glance_fast.calibration import Calibration, promise, upper_threshold
from glance_fast.cli import main
from glance_fast.device import has_bf16
from glance_fast.jobs import recalibrate as recalibration
from glance_fast.jobs.recalibrate import calibrate_run
from glance_fast.jobs.train import CallbackReporter
from glance_fast.tiles import score_photograph


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def good(tmp_path):
    """Ten photographs of good parts that no model was trained on."""
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(10):
        Image.fromarray(draw_part(rng)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command here; gives its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["glance-fast", "calibrate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80" if "--help" in arguments else "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return stop.value.code or 0, said.out, said.err

    return call


def calibration_of(run):
    scales = 1
    return Calibration.from_json((run / "calibration.json").read_text(), scales, "test")


def others(run):
    """All that the command must leave alone."""
    return {p.name: p.read_bytes() for p in run.iterdir() if p.name != "calibration.json"}


def refused(run, *arguments, **more):
    """The line that refuses, and nothing changed."""
    before = (run / "calibration.json").read_bytes()
    with pytest.raises(UserError) as caught:
        calibrate_run(run, *arguments, **more)
    assert (run / "calibration.json").read_bytes() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def earlier(run):
    """Make it one of a version that kept neither peaks nor the names of images."""
    path = run / "calibration.json"
    values = json.loads(path.read_text())
    for name in ("image", "peaks", "trained_on", "distances", "largest_peaks", "false_alarms"):
        del values[name]
    for scale in values["scales"]:
        del scale["weight"]
    path.write_text(json.dumps(values | {"quantile": 0.95}))
    return run


# ---------------------------------------------------------------- with photographs


def test_new_photographs_set_the_threshold(cli, run, good):
    before, files = calibration_of(run), others(run)
    code, said, err = cli(run, good, "--device", "cpu")
    after = calibration_of(run)
    assert code == 0 and said == promise(after) + "\n" and "left out" not in err
    assert len(after.scores) == len(after.peaks) == 10 and after.scores != before.scores
    assert (after.false_alarms, after.aspect, after.trained_on) == (0.01, before.aspect, before.trained_on)
    assert after.threshold == upper_threshold(np.array(after.scores), 0.01) != before.threshold
    assert others(run) == files
    # The photographs themselves score what is kept: their mean is 0, their deviation 1.
    model = load(run, "cpu")
    precision = "bf16" if has_bf16(model.device) else "fp32"
    scores = model.score(sorted(good.iterdir()), precision=precision).scores
    np.testing.assert_allclose(np.sort(scores), np.sort(after.scores), atol=1e-3)
    assert abs(scores.mean()) < 1e-3 and abs(scores.std() - 1) < 1e-3


def test_the_same_photographs_give_the_same_file(run, good):
    files = []
    for false_alarms in (0.2, None):
        # The second time by the run's own.
        assert calibrate_run(run, good, false_alarms, device="cpu").false_alarms == 0.2
        files.append((run / "calibration.json").read_bytes())
    assert files[0] == files[1]


def test_photographs_that_were_trained_on_are_left_out(cli, run, good, parts):
    for path in sorted((parts / "train/good").iterdir())[:3]:
        # Known by what is in them, not by their names.
        shutil.copy(path, good / f"new name of {path.name}")
    (good / "text.png").write_text("no image")
    code, _, err = cli(run, good, "--device", "cpu", "--false-alarms", "0.2")
    assert code == 0 and len(calibration_of(run).scores) == 10
    left_out = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 2 and left_out[0].startswith(f"left out: {good / 'text.png'}: is not an image")
    assert left_out[1] == (
        "left out: 3 photographs that the model was trained on, whose scores would be too low"
    )


def test_copies_of_a_photograph_count_once(cli, run, good):
    for number, path in enumerate(sorted(good.iterdir())[:4]):
        shutil.copy(path, good / f"copy {number}{path.suffix}")
    code, _, err = cli(run, good, "--device", "cpu")
    assert code == 0 and len(calibration_of(run).scores) == 10
    assert "left out: 4 photographs with the same pixels as another\n" in err


def test_too_few_photographs_are_refused(cli, run, good, parts):
    for i in range(3):
        (good / f"{i}.png").unlink()
    line = refused(run, good)
    assert line == (
        f"{good}: 7 photographs to calibrate with; at least 8 are needed, of good parts and new to the model"
    )
    assert refused(run, parts).startswith(
        f"{parts}: 0 photographs to calibrate with (12 more were trained on); at least 8 are needed"
    )
    for path in list(good.iterdir())[1:]:
        path.write_text("no image")
    code, out, err = cli(run, good, "--device", "cpu")
    assert code == 1 and out == "" and err.count("left out: ") == 6
    assert err.splitlines()[-1].startswith(f"glance-fast: {good}: 1 photograph to calibrate with;")


def test_more_photographs_than_memory_holds(run, good, monkeypatch):
    calibrate_run(run, good, 0.2, device="cpu")
    whole = calibration_of(run)
    model = load(run, "cpu")
    object.__setattr__(model.config, "cache_mib", 0)
    monkeypatch.setattr(recalibration, "load", lambda *arguments, **more: model)
    calibrate_run(run, good, 0.2)
    assert calibration_of(run) == whole


def test_wrong_folders_are_refused_before_the_model_is_read(run, tmp_path, good, monkeypatch):
    monkeypatch.setattr(recalibration, "load", lambda *arguments, **more: pytest.fail("must not be reached"))
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "no image in this")):
        assert refused(run, folder).startswith(f"{folder}: {message}")


def test_no_run_folder(cli, good, tmp_path):
    code, out, err = cli(tmp_path / "none", good, "--device", "cpu")
    assert (code, out) == (1, "") and err.startswith(f"glance-fast: {tmp_path / 'none'}: no such folder")
    assert err.count("\n") == 1
    code, _, err = cli(good, "--false-alarms", "0.1")
    assert code == 1 and "no model.safetensors in it" in err


# ---------------------------------------------------------------- without photographs


def test_false_alarms_alone_need_no_photographs(cli, run):
    before, files = calibration_of(run), others(run)
    code, said, err = cli(run, "--false-alarms", "0.2", "--device", "cpu")
    after = calibration_of(run)
    assert (code, err) == (0, "") and said == promise(after) + "\n" and "a share of 0.2 of good" in said
    assert after.threshold == np.sort(before.scores)[10] < before.threshold
    assert after.pixel_threshold == np.sort(before.peaks)[10]
    same = dataclasses.replace(
        before, threshold=after.threshold, pixel_threshold=after.pixel_threshold, false_alarms=0.2
    )
    assert after == same and others(run) == files
    # More than 12 photographs can promise is said.
    code, said, _ = cli(run, "--false-alarms", "0.001", "--device", "cpu")
    assert code == 0 and "for which 999 are needed" in said
    assert calibration_of(run).threshold > max(before.scores)
    # And back again to the very same.
    calibrate_run(run, false_alarms=before.false_alarms)
    assert calibration_of(run) == before


@pytest.mark.parametrize("share", [0, 0.000009, 0.51, 1, -0.1, float("nan"), float("inf")])
def test_false_alarms_out_of_range(run, good, share):
    for arguments in ((), (good,)):
        line = refused(run, *arguments, false_alarms=share)
        expected = f"expected a number from 1e-05 to 0.5, got {share}"
        assert line == f"false_alarms: {expected}; 0.01 is one in a hundred"


@pytest.mark.parametrize("share", [0.00001, 0.5])
def test_the_ends_of_the_range_are_in_it(run, share):
    assert calibrate_run(run, false_alarms=share, device="cpu").false_alarms == share
    assert load(run, "cpu").calibration.false_alarms == share


def test_neither_photographs_nor_false_alarms(cli, run):
    line = f"{run}: nothing to calibrate with; give a folder of photographs of good parts, or "
    assert refused(run) == f"{line}`false_alarms`"
    assert cli(run) == (1, "", f"glance-fast: {line}--false-alarms\n")


# ---------------------------------------------------------------- of an earlier version


def test_a_run_of_an_earlier_version_needs_photographs(cli, masked_run, good, tmp_path):
    run = earlier(shutil.copytree(masked_run, tmp_path / "run"))
    line = refused(run, false_alarms=0.1)
    assert line.startswith(f"{run / 'calibration.json'}: of an earlier version, which kept no scores")
    assert line.endswith("give a folder of photographs of good parts as well")
    code, said, err = cli(run, good, "--device", "cpu")
    assert code == 0 and "the run does not tell what it was trained on" in err
    after = calibration_of(run)
    assert said == promise(after) + "\n" and len(after.scores) == len(after.peaks) == 10
    assert after.false_alarms == pytest.approx(0.05) and after.trained_on == ()
    # From now on it is one of this version.
    calibrate_run(run, false_alarms=0.3, device="cpu")
    assert calibration_of(run).threshold == np.sort(after.scores)[7]
    assert load(run, "cpu").score([draw_part(np.random.default_rng(1))]).scores.shape == (1,)


# ---------------------------------------------------------------- what goes wrong on the way


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_the_old_calibration_stays_whole(cli, run, good, monkeypatch, error):
    before = (run / "calibration.json").read_bytes()
    original = Path.write_text

    def write_text(path, text, **more):
        if path.parent != run:
            return original(path, text, **more)
        original(path, text[:100], **more)
        raise error

    monkeypatch.setattr(Path, "write_text", write_text)
    code, out, err = cli(run, good, "--device", "cpu", "--false-alarms", "0.2")
    assert out == "" and (run / "calibration.json").read_bytes() == before
    assert not list(run.glob(".tmp-*"))
    if error is KeyboardInterrupt:
        assert code == 130 and err.splitlines()[-1] == "glance-fast: stopped"
    else:
        assert code == 1 and err.splitlines()[-1] == (
            f"glance-fast: {run / 'calibration.json'}: cannot be written: No space left on device; "
            "make room there, then the same command again"
        )


def test_stopped_while_scoring(cli, run, good, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    before = (run / "calibration.json").read_bytes()
    monkeypatch.setattr(recalibration, "recalibrate", stop)
    assert cli(run, good, "--device", "cpu")[0] == 130
    assert (run / "calibration.json").read_bytes() == before


def test_half_written_files_of_a_killed_process_go(run):
    (run / ".tmp-0123456789abcdef.json").touch()
    (run / ".tmp-notes").touch()
    calibrate_run(run, false_alarms=0.2, device="cpu")
    assert [path.name for path in run.glob(".tmp-*")] == [".tmp-notes"]


def test_a_run_that_may_not_be_written_is_refused_before_the_work(run, good, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(recalibration, "recalibrate", lambda *arguments: pytest.fail("must not be reached"))
    assert refused(run, good) == f"{run}: cannot be written to; change its permissions"


def test_images_too_large_for_the_memory(run, good, monkeypatch):
    # A model this small would fit into a whole MiB.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 10)
    line = refused(run, good, memory_mib=1)
    assert line.startswith("image_size 64x64: scoring takes ") and "memory" in line


# ---------------------------------------------------------------- the command


def test_help(cli):
    code, out, _ = cli("--help")
    assert code == 0 and re.search(r"^ glance-fast calibrate ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80
    assert "[dim]" not in out and not re.search(r"^ \S+(?: \S+)? *$", out.split("╭")[0], re.MULTILINE)
    assert all(name in out for name in ("RUN", "GOOD", "--false-alarms", "--device", "--memory-mib"))


def test_wrong_arguments(cli, run):
    code, out, err = cli(run, "--false-alarms", "few")
    assert code == 2 and out == "" and "Invalid value for '--false-alarms'" in err
    code, out, err = cli(run, "--false-alarms", "2")
    assert code == 1 and out == "" and err.startswith("glance-fast: false_alarms: expected a number from")
    code, out, err = cli()
    assert code == 2 and "Missing argument 'RUN'" in err


# ---------------------------------------------------------------- engines that a net has not


@pytest.mark.parametrize("command", ["score-dir", "evaluate"])
def test_an_engine_that_the_net_has_not_is_refused_before_anything_goes(
    run_folder, parts, tmp_path, monkeypatch, capsys, command
):
    out = tmp_path / "out"
    arguments = [command, run_folder, parts, "--out", out, "--device", "cpu", "--engine", "dense"]
    for more in ([], ["--overwrite"]):
        monkeypatch.setattr(sys, "argv", ["glance-fast", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert stop.value.code == 1 and said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith("glance-fast: engine: 'dense' is for masked nets; ")
        if not more:
            assert not out.exists()
            out.mkdir()
            (out / "scores.csv").write_text("of an earlier one")
    assert (out / "scores.csv").read_text() == "of an earlier one"


def test_bench_of_a_net_with_one_engine(run_folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["glance-fast", "bench", str(run_folder), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert not stop.value.code and max(map(len, said.out.splitlines())) <= 100
    assert "auto fp32" in said.out and "stage of auto" in said.out and "Global-Net" in said.out
    assert "as fast as auto fp32 alone" in said.err
    assert not any(name in said.out + said.err for name in ("dense", "grouped", "patchwise"))


def test_a_model_of_tiles(tmp_path, small):
    """Photographs count, not their tiles; those of the training are known by their tiles."""
    rng = np.random.default_rng(0)
    for folder in ("good", "new", "few"):
        (tmp_path / folder).mkdir()
        for i in range(2 if folder == "few" else 9):
            Image.fromarray(draw_part(rng, 120)).save(tmp_path / folder / f"{i}.png")
    run = tmp_path / "run"
    glance_fast.fit(tmp_path / "good", Config(**small, tile=64), run, device="cpu")
    shutil.copy(tmp_path / "good" / "0.png", tmp_path / "new" / "seen.png")
    shutil.copy(tmp_path / "new" / "1.png", tmp_path / "new" / "copy.png")
    lines = []
    reporter = CallbackReporter(lambda event: lines.append(event.name))
    found = calibrate_run(run, tmp_path / "new", device="cpu", reporter=reporter)
    assert "left out: 1 photograph with the same pixels as another" in lines
    assert any(line.startswith("left out: 1 photograph that the model was trained on") for line in lines)
    model = glance_fast.load(run, "cpu")
    scores = [score_photograph(model, tmp_path / "new" / f"{i}.png")[1] for i in range(9)]
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores), rtol=1e-4, atol=1e-4)
    # Four tiles each.
    calibrate_run(run, tmp_path / "few", device="cpu", reporter=reporter)
    assert any(line.startswith("2 photographs are too few to say") for line in lines)
    assert len(glance_fast.load(run, "cpu").calibration.scores) == 8
