"""``glance_fast.fit``: the training of the command line, from Python."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest
from commands import never, tree

import glance_fast
from glance_fast import Config, UserError
from glance_fast.data.layouts import normal_images
from glance_fast.jobs.train import CallbackReporter, train_folder


@pytest.fixture
def config(small):
    return Config(**small)


def test_the_model_is_that_of_the_command_line(parts, config, run_folder, tmp_path):
    model = glance_fast.fit(parts, config, tmp_path / "run", device="cpu")
    for name in ("model.safetensors", "calibration.json", "config.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (run_folder / name).read_bytes()
    assert not model.training and np.isfinite(model.calibration.threshold)
    with pytest.raises(
        UserError, match=r"run: holds a finished model; load it, .* `overwrite=True` replaces it"
    ):
        glance_fast.fit(parts, config, tmp_path / "run")


def test_without_a_folder_nothing_is_kept(parts, config, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = glance_fast.fit([str(path) for path in normal_images(parts)], config, device="cpu")
    assert model.calibration == glance_fast.load(run_folder, "cpu").calibration
    assert not list(tmp_path.iterdir())


def test_a_training_that_was_broken_off_goes_on_to_the_same_result(parts, config, run_folder, tmp_path):
    class Broken(Exception):
        pass

    events = []

    def listen(event):
        events.append(event)
        if event.kind == "step" and event.name == "global-32" and len(events) < 1000:
            raise Broken

    with pytest.raises(Broken):
        glance_fast.fit(parts, config, tmp_path / "run", device="cpu", callback=listen)
    assert (tmp_path / "run/checkpoint").is_dir()
    later = []
    glance_fast.fit(parts, config, tmp_path / "run", device="cpu", callback=later.append)
    for name in ("model.safetensors", "calibration.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run_folder / name).read_bytes()
    # What was trained before is not trained again.
    trained = {event.name for event in later if event.kind == "step" and 0 < event.done < event.total}
    assert "local-32" not in trained


def test_events_tell_what_a_tracker_wants(parts, config):
    events = []
    glance_fast.fit(parts, config, device="cpu", callback=events.append)
    assert {event.kind for event in events} == {"line", "task", "step"}
    steps = [event for event in events if event.kind == "step" and event.name == "global-32"]
    assert (steps[-1].done, steps[-1].total) == (config.steps, config.steps)
    assert {"loss", "images_per_second", "r2"} <= steps[-1].figures.keys()
    assert any("photographs" in event.name for event in events if event.kind == "line")
    assert max(e.done for e in events if e.kind == "task" and e.name == "reading images") == 12


@pytest.mark.parametrize(
    ("images", "more", "words"),
    [
        ([], {}, "at least 8 are needed to train"),
        ("nowhere", {}, "nowhere"),
        ([], {"device": "tpu"}, "device tpu: no such device"),
        ("good", {"memory_mib": 0}, "memory_mib: at least 1 is needed, got 0"),
        ("good", {"memory_mib": -5}, "memory_mib: at least 1 is needed, got -5"),
    ],
)
def test_errors_are_one_line(images, more, words, parts, tmp_path, monkeypatch, small):
    (tmp_path / "good").symlink_to(parts / "train/good")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        glance_fast.fit(images, Config(**small), **more)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_the_caller_prints_in_a_terminal_is_seen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        with CallbackReporter(lambda event: None):
            print("out of the callback")
            print("a warning", file=sys.stderr)
        print("the end", flush=True)
        monkeypatch.undo()
        seen = b""
        while b"the end" not in seen:
            seen += screen.read(1000)
        assert seen.split() == b"out of the callback a warning the end".split()


@pytest.fixture
def break_off(parts, tmp_path):
    """Break a training off as soon as an event tells of ``name``; gives its folder."""

    def run(name, config, **more):
        def listen(event):
            if event.name == name:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            glance_fast.fit(parts, config, tmp_path / "run", device="cpu", callback=listen, **more)
        return tmp_path / "run"

    return run


@pytest.mark.parametrize("text", ["title = 'mine'\n", Config().to_toml()], ids=["foreign", "of a training"])
def test_a_folder_with_a_config_of_the_user_is_no_training(parts, config, tmp_path, text):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(text)
    (run / "notes.txt").write_text("mine")
    before = tree(run)
    with pytest.raises(UserError, match="run: is not empty; "):
        glance_fast.fit(parts, config, run, device="cpu")
    with pytest.raises(UserError, match=r"run: holds 'notes.txt', which this command did not write"):
        glance_fast.fit(parts, config, run, device="cpu", overwrite=True)
    with pytest.raises(UserError, match="run: nothing to resume there"):
        train_folder(parts, run, config, resume=True, reporter=None)
    assert tree(run) == before


def test_a_training_is_gone_on_with_by_its_own_settings_alone(parts, config, small, break_off):
    run = break_off("local-32", config)
    before = tree(run)
    with pytest.raises(UserError, match=r"run: was begun with other settings, those in config\.toml; "):
        glance_fast.fit(parts, Config(**small, seed=1), run, device="cpu")
    with pytest.raises(UserError, match="run: an unfinished training is there; `resume=True` goes on"):
        train_folder(parts, run, config, reporter=None)
    with pytest.raises(UserError, match="exclude each other"):
        train_folder(parts, run, config, resume=True, overwrite=True, reporter=None)
    shutil.copy(run / "config.toml", run.parent)
    with (run / "config.toml").open("a") as file:
        file.write("colour = 3\n")
    with pytest.raises(UserError, match=r"config\.toml: no setting 'colour'"):
        glance_fast.fit(parts, config, run, device="cpu")
    shutil.copy(run.parent / "config.toml", run)
    assert tree(run) == before, "what fails takes nothing away"


def test_a_training_stopped_before_it_began_stands_in_nobodys_way(parts, config, small, break_off):
    run = break_off("reading images", config)
    assert not run.exists()
    # So may be left where it was killed.
    run.mkdir()
    (run / "config.toml").write_text(config.to_toml())
    other = Config(**small, seed=1)
    glance_fast.fit(parts, other, run, device="cpu", overwrite=True)
    assert glance_fast.load(run).config == other


def test_what_fits_no_memory_is_refused_before_a_model_is_replaced(parts, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    before = tree(run)
    with pytest.raises(UserError, match="image_size 256x256: scoring takes"):
        glance_fast.fit(parts, Config(), run, device="cpu", overwrite=True, memory_mib=20)
    assert tree(run) == before


def test_nothing_is_read_for_a_finished_training(parts, config, run_folder, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    with pytest.raises(UserError, match="this training is finished; `overwrite=True` trains anew"):
        train_folder(parts, run_folder, config, resume=True, reporter=None)


def test_photographs_that_cannot_be_read_cost_no_old_model(parts, config, run_folder, tmp_path):
    run, bad = (
        shutil.copytree(run_folder, tmp_path / "run"),
        shutil.copytree(parts / "train/good", tmp_path / "bad"),
    )
    for path in sorted(bad.iterdir())[7:]:
        path.write_text("no image")
    with pytest.raises(UserError, match="bad: 7 usable images; at least 8 are needed to train"):
        glance_fast.fit(bad, config, run, overwrite=True, device="cpu")
    for path in run_folder.iterdir():
        assert (run / path.name).read_bytes() == path.read_bytes()


def test_one_local_net_may_be_given_alone(parts, config, tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        glance_fast.fit(parts, config, local_nets=str(tmp_path / "none.safetensors"), device="cpu")
