"""``glance_fast.fit``: the training of the command line, from Python."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import glance_fast
from glance_fast import Config, UserError
from glance_fast.data.folders import normal_images
from glance_fast.jobs.train import CallbackReporter


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
    ],
)
def test_errors_are_one_line(images, more, words, tmp_path, monkeypatch, small):
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
