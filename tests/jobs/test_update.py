"""glance-fast update: new good photographs enter, told before and after, undone bit for bit."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast import Config, UserError, fit, load
from glance_fast.cli import main
from glance_fast.jobs import former
from glance_fast.jobs import update as module
from glance_fast.jobs.recalibrate import calibrate_run
from glance_fast.jobs.update import Scores, Update, undo_update, update_run


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def good(tmp_path):
    """Five photographs of good parts that no model was trained on."""
    return photographs(tmp_path / "good", 7, 5)


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command here; gives its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["glance-fast", "update", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return stop.value.code or 0, said.out, said.err

    return call


def photographs(folder, seed, count, **how):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(draw_part(rng, **how)).save(folder / f"{i}.png")
    return folder


def files(run):
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def refused(run, *arguments, **more):
    """The line that refuses, and nothing changed."""
    before = files(run)
    with pytest.raises(UserError) as caught:
        update_run(run, *arguments, **more)
    assert files(run) == before and "\n" not in str(caught.value)
    return str(caught.value)


def test_new_photographs_enter_and_leave(cli, run, good):
    before, model = files(run), load(run, "cpu")
    code, out, err = cli(run, good, "--json", "--device", "cpu")
    said, after = json.loads(out), load(run, "cpu")
    assert code == 0 and said["new"] == 5 and "left out" not in err
    assert said["before"]["photographs"] == 12 and said["after"]["photographs"] == 17
    assert len(after.calibration.scores) == 17 and len(after.calibration.trained_on) == 17
    assert said["before"]["threshold"] == model.calibration.threshold
    assert said["after"]["threshold"] == after.calibration.threshold
    changed = {name for name, content in files(run).items() if content != before[name]}
    assert changed == {"model.safetensors", "calibration.json", "normal.safetensors"}
    assert after.score([good / "0.png"]).scores.shape == (1,)
    code, out, err = cli(run, "--undo")
    assert (code, out, err) == (0, f"{run}: as it was before the last update\n", "")
    assert files(run) == before and not any(path.is_dir() for path in run.iterdir())
    code, out, err = cli(run, "--undo")
    assert (code, out) == (1, "") and err == (
        f"glance-fast: {run}: no update to undo; only the last one can be, and only once\n"
    )


def test_a_training_may_replace_what_was_updated(run, good, parts, small):
    update_run(run, good, device="cpu")
    with pytest.raises(UserError, match="holds a finished model"):
        fit(parts, Config(**small), run, device="cpu")
    fit(parts, Config(**small), run, overwrite=True, device="cpu")
    assert not any(path.is_dir() for path in run.iterdir())
    assert update_run(run, good, device="cpu").before.photographs == 12


def test_what_was_written_into_the_settings_stays(run, good):
    path = run / "config.toml"
    path.write_text(path.read_text() + "# camera 3\n")
    update_run(run, good, device="cpu")
    assert path.read_text().endswith("# camera 3\n")


def test_one_photograph_is_enough_and_the_same_again_is_none(cli, run, good):
    for path in list(good.iterdir())[1:]:
        path.unlink()
    code, out, _ = cli(run, good, "--device", "cpu")
    assert code == 0 and "photographs behind the statistics" in out and "12" in out and "13" in out
    line = refused(run, good, device="cpu")
    assert line == f"{good}: no photograph that is new to the model; nothing was changed"


def test_two_updates_leave_the_files_of_one(run, good, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    update_run(other, good, device="cpu")
    for i in range(5):
        part = tmp_path / f"part {i // 3}"
        part.mkdir(exist_ok=True)
        shutil.copy(good / f"{i}.png", part)
    for i in range(2):
        update_run(run, tmp_path / f"part {i}", device="cpu")
    assert files(run) == files(other)


def test_who_is_left_out_is_told(cli, run, good, parts):
    shutil.copy(sorted((parts / "train/good").iterdir())[2], good / "known.png")
    shutil.copy(good / "0.png", good / "twin.png")
    (good / "text.png").write_text("no image")
    code, out, err = cli(run, good, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["new"] == 5
    lines = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert lines[0].startswith(f"left out: {good / 'text.png'}: is not an image")
    assert lines[1:] == [
        "left out: 1 photograph that the model knows already",
        "left out: 1 photograph with the same pixels as another",
    ]


def test_bad_parts_are_named(cli, run, tmp_path):
    bad = photographs(tmp_path / "bad", 5, 8, defect=True)
    calibrate_run(run, false_alarms=0.2, device="cpu")
    threshold = load(run, "cpu").calibration.threshold
    code, out, err = cli(run, bad, "--device", "cpu", "--json")
    said = json.loads(out)
    scores = [row["score"] for row in said["strange"]]
    assert code == 0 and scores and scores == sorted(scores, reverse=True) and min(scores) > threshold
    assert said["before"]["false_alarms"] == len(scores) and said["expected"] == pytest.approx(1.6)
    (line,) = (line for line in err.splitlines() if line.startswith("caution: "))
    assert line.startswith(f"caution: {len(scores)} of 8 new photographs were anomalous")
    assert f"--undo and leave them out: {said['strange'][0]['path']} ({scores[0]:.1f})" in line


def test_the_caution_names_a_few():
    scores = Scores(10, 0.0, 1.0, 2.0, 0)
    strange = tuple((f"{i}.png", 9.0 - i) for i in range(7))
    found = Update(100, scores, scores, strange, 1.0)
    assert found.caution().endswith(
        "0.png (9.0), 1.png (8.0), 2.png (7.0), 3.png (6.0), 4.png (5.0) and 2 more"
    )
    assert dataclasses.replace(found, strange=()).caution() == ""


def test_scores_before_and_after_are_those_of_the_new_ones(run, good):
    model = load(run, "cpu")
    done = update_run(run, good, device="cpu")
    assert done.before.photographs == 12 and done.before.threshold == model.calibration.threshold
    assert done.before.false_alarms == len(done.strange)
    # Cross-fitted, they are among the scores behind the threshold.
    after = load(run, "cpu").calibration
    assert done.after.false_alarms <= sum(score > after.threshold for score in after.scores)
    assert min(after.scores) <= done.after.mean <= max(after.scores)


def test_a_threshold_set_by_others_is_told(cli, run, good, tmp_path):
    calibrate_run(run, photographs(tmp_path / "others", 9, 9), device="cpu")
    _, _, err = cli(run, good, "--device", "cpu")
    assert "the threshold was set by 9 other photographs (glance-fast calibrate)" in err


# ---------------------------------------------------------------- without what is kept


def test_a_run_of_an_earlier_version_needs_its_photographs(cli, run, good, parts, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    update_run(other, good, device="cpu")
    (run / "normal.safetensors").unlink()
    before = files(run)
    code, out, err = cli(run, good, "--device", "cpu")
    assert (code, out) == (1, "") and err.splitlines()[-1] == (
        f"glance-fast: {run / 'normal.safetensors'}: missing: the run is of an earlier version, or the file "
        "was deleted; give the photographs that it was trained on as well (--old), or train again"
    )
    code, out, err = cli(run, good, "--device", "cpu", "--old", parts)
    assert code == 0 and "left out" not in err and "counted no more" not in err
    one, two = (load(folder, "cpu").calibration for folder in (run, other))
    np.testing.assert_allclose(one.scores, two.scores, atol=5e-3)
    assert one.trained_on == two.trained_on and (run / "normal.safetensors").is_file()
    # Back again to a run without the file.
    undo_update(run)
    assert files(run) == before


def test_old_ones_that_do_not_fit_are_told(cli, run, good, parts, tmp_path):
    (run / "normal.safetensors").unlink()
    old = tmp_path / "old"
    shutil.copytree(parts / "train/good", old)
    for path in sorted(old.iterdir())[:2]:
        path.unlink()
    photographs(old / "more", 11, 3)
    code, out, err = cli(run, good, "--device", "cpu", "--old", old, "--json")
    assert code == 0 and json.loads(out)["after"]["photographs"] == 15
    assert "left out: 3 photographs among the old ones that the model was not trained on;" in err
    assert "2 photographs that the model was trained on, not among the old ones: counted no more" in err
    undo_update(run)
    line = refused(run, good, old=old / "more", device="cpu")
    assert line == f"{old / 'more'}: none of the photographs that the model was trained on"


def test_a_run_that_does_not_tell_what_it_was_trained_on(run, good, parts):
    (run / "normal.safetensors").unlink()
    path = run / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_on": []}))
    done = update_run(run, good, old=parts, device="cpu")
    assert (done.before.photographs, done.after.photographs) == (12, 17)


# ---------------------------------------------------------------- what goes wrong


def test_wrong_use(cli, run, good, tmp_path):
    line = "glance-fast: give either a folder of photographs of good parts, or --undo\n"
    assert cli(run) == (1, "", line) and cli(run, good, "--undo") == (1, "", line)
    (tmp_path / "empty").mkdir()
    assert "no image in this folder" in refused(run, tmp_path / "empty")
    code, out, err = cli(tmp_path / "none", good)
    assert (code, out) == (1, "") and err.startswith(f"glance-fast: {tmp_path / 'none'}: no such folder")
    code, out, err = cli(tmp_path / "none", "--undo")
    assert (code, out) == (1, "") and "no update to undo" in err


def test_another_models_file_is_refused(run, good, masked_run):
    shutil.copy(masked_run / "normal.safetensors", run)
    assert "of another model than the one beside it; give the photographs" in refused(run, good, device="cpu")


def test_a_run_that_may_not_be_written(run, good, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    monkeypatch.setattr(module, "load", lambda *arguments, **more: pytest.fail("must not be reached"))
    line = f"{run}: cannot be written to; change its permissions"
    assert refused(run, good) == line
    with pytest.raises(UserError, match="cannot be written to"):
        undo_update(run)


def test_stopped_before_all_is_ready(cli, run, good, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    before = files(run)
    monkeypatch.setattr(module, "save_model", stop)
    assert cli(run, good, "--device", "cpu")[0] == 130
    assert files(run) == before and not any(path.is_dir() for path in run.iterdir())


def test_killed_between_two_files(run, good, monkeypatch):
    before = files(run)
    replace, done = former.Path.replace, []

    def killed(path, target):
        if path.parent.name == "new" and path.parent.parent.name == "replacing":
            if done:
                raise KeyboardInterrupt
            done.append(path)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(former.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            update_run(run, good, device="cpu")
    with pytest.raises(
        UserError, match="an update was stopped while it replaced files; glance-fast update --undo"
    ):
        load(run, "cpu")
    half = shutil.copytree(run, run.parent / "half")
    undo_update(run)
    assert files(run) == before
    # Or it is gone on with: nothing is new any more, and all is there.
    with pytest.raises(UserError, match="no photograph that is new"):
        update_run(half, good, device="cpu")
    update_run(run, good, device="cpu")
    assert files(half) == files(run)
