"""What goes wrong on the way: full disks, signals, folders that may not be written."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import typer
from commands import one_line, score_dir
from PIL import Image
from typer.main import get_command

from glance_fast import Config, UserError
from glance_fast.cli import app
from glance_fast.jobs.table import Summary

COMMANDS = ("train", "score-dir", "calibrate", "evaluate", "bench", "distill", "demo")
# These write a file or a folder of their own.
WRITING = tuple(command for command in COMMANDS if command != "calibrate")


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
        (FULL, "disk/file: No space left on device; make room there, then the same command again"),
        (UserError("model: is odd"), "model: is odd"),
    ],
    ids=["memory", "CUDA memory", "CPU memory", "permission", "read-only", "full disk", "user"],
)
def test_one_line_for_what_the_machine_does(cli, run_folder, photos, tmp_path, monkeypatch, error, line):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr("glance_fast.jobs.folder.score_directory", fail)
    assert one_line(score_dir(cli, run_folder, photos, tmp_path / "out")).startswith(line)


def test_a_mistake_of_ours_is_not_hidden(cli, run_folder, photos, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("a bug")

    monkeypatch.setattr("glance_fast.jobs.folder.score_directory", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        score_dir(cli, run_folder, photos, tmp_path / "out")


def begin_training(out):
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint/images.json").touch()
    (out / "config.toml").write_text(Config().to_toml())


def test_advice_after_a_full_memory_fits_the_command(cli, parts, photos, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr("glance_fast.training.fit.fit", fail)
    monkeypatch.setattr("glance_fast.training.distill.distill_local", fail)
    monkeypatch.setattr("glance_fast.jobs.demo.run_demo", fail)
    line = one_line(cli("train", parts, "--out", tmp_path / "a"))
    assert line == "out of memory; use a smaller image_size, batch or cache_mib"
    for command in (("distill", photos, "--out", tmp_path / "b"), ("demo", "--out", tmp_path / "c")):
        assert one_line(cli(*command)) == (
            "out of memory; end other programs that use it, or choose another --device"
        )


def test_advice_after_a_full_disk_fits_the_command(cli, run_folder, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", full_disk)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", full_disk)
    monkeypatch.setattr("glance_fast.jobs.demo.run_demo", full_disk)
    told = "disk/file: cannot be written: No space left on device; make room there, then the same command"
    assert one_line(cli("train", parts, "--out", tmp_path / "a")) == f"{told} again", "nothing was begun"
    begin_training(tmp_path / "a")
    command = ("train", parts, "--out", tmp_path / "a", "--resume")
    assert one_line(cli(*command)) == f"{told} with --resume goes on"
    anew = f"{told} with --overwrite begins anew"
    assert one_line(cli("evaluate", run_folder, parts, "--out", tmp_path / "b")) == anew
    assert one_line(cli("demo", "--out", tmp_path / "c")) == anew


def test_ctrl_c_promises_a_resume_only_where_there_is_one(cli, run_folder, parts, tmp_path, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", stop)
    result = cli("evaluate", run_folder, parts, "--out", tmp_path / "out")
    stopped = (130, "", "glance-fast: stopped\n")
    goes_on = (130, "", "glance-fast: stopped; the same command with --resume goes on\n")
    assert result == stopped
    # What is stopped before it has begun has nothing to go on with.
    monkeypatch.setattr("glance_fast.training.fit.fit", stop)
    monkeypatch.setattr("glance_fast.training.distill.distill_local", stop)
    monkeypatch.setattr("glance_fast.jobs.folder.load", stop)
    for command, out, begin in (
        (("train", parts), "run", begin_training),
        (("distill", parts / "train"), "net", lambda out: out.with_name("net.checkpoint").mkdir()),
        (("score-dir", run_folder, parts), "scores", begin_scoring),
    ):
        command = (*command, "--out", tmp_path / out)
        assert cli(*command) == stopped
        begin(tmp_path / out)
        assert cli(*command, "--resume") == goes_on


def begin_scoring(out):
    out.mkdir()
    (out / "scores.csv").touch()


def test_ctrl_c_in_a_shard_promises_what_that_shard_can_do(cli, run_folder, parts, tmp_path, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("glance_fast.jobs.folder.load", stop)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores-1-of-2.csv").touch()
    command = ("score-dir", run_folder, parts, "--out", tmp_path / "out", "--shard")
    assert cli(*command, "2/2") == (130, "", "glance-fast: stopped\n")
    assert cli(*command, "1/2", "--resume")[2].endswith("--resume goes on\n")


def test_what_fails_before_it_wrote_leaves_no_folder(cli, run_folder, parts, photos, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise UserError("nothing came of it")

    monkeypatch.setattr("glance_fast.training.fit.fit", fail)
    monkeypatch.setattr("glance_fast.jobs.folder.score_directory", fail)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", fail)
    monkeypatch.setattr("glance_fast.jobs.demo.run_demo", fail)
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

    monkeypatch.setattr("glance_fast.jobs.folder.score_directory", done)
    monkeypatch.setattr("glance_fast.training.fit.fit", done)
    monkeypatch.setattr("glance_fast.evaluation.evaluate.evaluate", lambda *arguments, **more: {"notes": []})
    stale = ".tmp-0123456789abcdef"
    for command, begun, inner in (
        (("train", parts, "--resume"), "checkpoint/images.json", "checkpoint"),
        (("train", parts, "--overwrite"), "config.toml", "checkpoint"),
        (("score-dir", run_folder, photos, "--resume"), "run.json", "maps/deep"),
        (("evaluate", run_folder, parts, "--overwrite"), "metrics.json", "maps/deep"),
    ):
        out = tmp_path / "-".join((command[0], command[-1]))
        for name in (begun, f"{stale}.json", f"{inner}/{stale}.tiff", ".tmp-notes"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        if command[0] == "train":
            (out / "config.toml").write_text(Config().to_toml())
        assert cli(*command, "--out", out)[0] == 0
        left = {p.name for p in out.rglob("*") if p.is_file()}
        assert ".tmp-notes" in left and not any(name.startswith(stale) for name in left)


def commands(group=None, before=()):
    """All commands, as they are called, and what each runs."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ended"])
@pytest.mark.parametrize("name", [name for name, _ in commands()], ids=" ".join)
def test_every_command_ends_in_one_line_where_it_is_told_to(cli, monkeypatch, name, number):
    def stop(self, ctx):
        signal.raise_signal(number)
        raise AssertionError("went on")

    # As a script starts what it leaves in the background.
    monkeypatch.setattr(typer.core.TyperCommand, "invoke", stop)
    monkeypatch.setattr(typer.core.TyperCommand, "parse_args", lambda self, ctx, args: [])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert cli(*name) == (130, "", "glance-fast: stopped\n")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_named_once_and_by_us(cli, run_folder, photos, tmp_path):
    whole = io.BytesIO()
    Image.open(photos / "0.png").save(whole, "TIFF")
    data = bytearray(whole.getvalue())
    # The first tag claims more than the file holds.
    first = int.from_bytes(data[4:8], "little")
    data[first + 6 : first + 10] = b"\xff\xff\xff\x7f"
    (photos / "2.tif").write_bytes(data)
    command = ["score-dir", run_folder, photos, "--out", tmp_path / "out", "--device", "cpu", "--quiet"]
    process = subprocess.run(
        [sys.executable, "-m", "glance_fast.cli", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 3 and "Warning" not in process.stderr, process.stderr


# Sends itself a signal while the third image is scored.
STOPPING = """
import os, sys
from glance_fast.cli import main
from glance_fast.model import Glance
from glance_fast.jobs import directory
number, calls, score_chunk = int(sys.argv.pop()), [], directory._score_chunk
def stop(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), number)
    return score_chunk(*arguments)
Glance.at_once, directory._score_chunk = lambda *_: 1, stop
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "ended", "killed"]
)
def test_score_dir_stopped_by_a_signal_goes_on(cli, run_folder, parts, tmp_path, number):
    images, whole, out = parts / "test", tmp_path / "whole", tmp_path / "out"
    arguments = ["score-dir", run_folder, images, "--out", out, "--device", "cpu"]
    process = subprocess.run(
        [sys.executable, "-c", STOPPING, *map(str, arguments), str(int(number))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        # As a script starts what it leaves in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    if number != signal.SIGKILL:
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
