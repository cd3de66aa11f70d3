"""``glance-fast watch``."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import one_line
from PIL import Image
from samples import draw_part

from glance_fast import load

STARTED = [sys.executable, "-m", "glance_fast.cli"]


def fed(monkeypatch, text):
    """Standard input that holds a text."""
    ours, theirs = os.pipe()
    os.write(theirs, text.encode())
    os.close(theirs)
    from glance_fast.jobs import sources

    paths_of = sources.paths_of
    monkeypatch.setattr(sources, "paths_of", lambda descriptor: paths_of(ours))


def test_paths_on_standard_input(cli, run_folder, photos, monkeypatch):
    fed(monkeypatch, f"{photos}/0.png\n{photos}/1.png\n")
    code, out, err = cli("watch", run_folder, "-", "--device", "cpu")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["path"] for line in lines] == [f"{photos}/0.png", f"{photos}/1.png"]
    assert list(lines[0]) == ["path", "score", "above", "anomalous", "milliseconds", "error"]
    expected = load(run_folder, "cpu").score([photos / "0.png", photos / "1.png"]).scores
    np.testing.assert_allclose([line["score"] for line in lines], expected, rtol=1e-4, atol=1e-4)
    anomalous = sum(line["anomalous"] for line in lines)
    assert err == f"2 images scored, {anomalous} anomalous\n"


def test_some_that_failed_and_quiet_and_a_file(cli, run_folder, photos, tmp_path, monkeypatch):
    out = tmp_path / "lines.jsonl"
    out.write_text('{"path": "before"}\n')
    fed(monkeypatch, f"none.png\n{photos}/1.png")
    code, said, err = cli("watch", run_folder, "-", "--device", "cpu", "--out", out, "--quiet")
    assert (code, said) == (3, "")
    assert err == "1 image could not be scored; error of their lines says why\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["path"] for line in lines] == ["before", "none.png", f"{photos}/1.png"]
    assert lines[1]["error"] == "no such file" and lines[1]["score"] is None


def test_what_is_wrong_is_one_line(cli, run_folder, photos, tmp_path):
    (tmp_path / "folder").mkdir()
    for arguments, message in (
        ((tmp_path / "none", photos), "none: no such folder; a run folder is what"),
        ((run_folder, tmp_path / "none"), "none: no such folder, video or camera"),
        ((run_folder, photos, "--every", "2"), "--every: is for videos and cameras"),
        ((run_folder, "-", "--all"), "--all: is for a folder"),
    ):
        assert message in one_line(cli("watch", *arguments, "--device", "cpu"))


def test_a_file_that_cannot_be_written_is_one_line(cli, run_folder, photos, tmp_path, monkeypatch):
    fed(monkeypatch, f"{photos}/0.png\n")
    code, said, err = cli("watch", run_folder, "-", "--device", "cpu", "--out", tmp_path)
    assert code == 1 and said == ""
    assert err.splitlines()[-1].endswith("cannot be written: Is a directory")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ended"])
def test_a_folder_is_watched_until_a_signal(run_folder, photos, tmp_path, number):
    out = tmp_path / "lines.jsonl"
    process = subprocess.Popen(
        [*STARTED, "watch", str(run_folder), str(photos), "--all", "--device", "cpu", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_lines(process, out, 2)
        Image.fromarray(draw_part(np.random.default_rng(1))).save(photos / "new.png")
        (photos / "bad.png").write_text("no image")
        lines = await_lines(process, out, 4)
        process.send_signal(number)
        said, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert {line["path"] for line in lines[:2]} == {"0.png", "1.png"}
    assert {line["path"] for line in lines[2:]} == {"new.png", "bad.png"}
    assert process.returncode == 130 and said == ""
    anomalous = sum(line["anomalous"] is True for line in lines)
    assert err == f"3 images scored, {anomalous} anomalous\nglance-fast: stopped\n"


def await_lines(process, out, count):
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        lines = out.read_text().splitlines() if out.exists() else []
        if len(lines) == count:
            return [json.loads(line) for line in lines]
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_standard_input_that_waits_does_not_hinder_the_end(run_folder, photos):
    process = subprocess.Popen(
        [*STARTED, "watch", str(run_folder), "-", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdin.write(f"{photos}/0.png\n".encode())
        process.stdin.flush()
        # The line is there at once, while standard input is still open.
        assert json.loads(process.stdout.readline())["path"] == f"{photos}/0.png"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.communicate()


def test_a_video(cli, run_folder, tmp_path):
    av = pytest.importorskip("av")
    path, rng = tmp_path / "a.mov", np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("png", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(draw_part(rng), format="rgb24")))
        file.mux(stream.encode())
    code, out, _ = cli("watch", run_folder, path, "--every", "2", "--device", "cpu")
    assert code == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == [f"{path}#{i}" for i in (0, 2, 4)]
