"""Commands under torchrun: several processes of one machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import check_same, one_line, score_dir
from samples import SMALL

# What torchrun starts in place of the command: an accident in the second process, at its second image.
ACCIDENT = """
import os, signal, sys
from glance_fast import UserError
from glance_fast.cli import main
from glance_fast.model import Glance
from glance_fast.jobs import directory
kind, calls, score_chunk = sys.argv.pop(), [], directory._score_chunk
def accident(*arguments):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("disk/file: is odd")
    return score_chunk(*arguments)
Glance.at_once, directory._score_chunk = lambda *_: 1, accident
main()
"""


@pytest.fixture
def torchrun(run_folder):
    """Run score-dir as several processes; gives the exit code, stdout and stderr of torchrun."""
    return lambda images, out, *more, **how: as_processes(
        "score-dir", run_folder, images, "--out", out, *more, **how
    )


def as_processes(name, *arguments, processes=2, start=("-m", "glance_fast.cli")):
    """Run a command as several processes; gives the exit code, stdout and stderr of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    done = subprocess.run(
        list(map(str, [*command, *start, name, "--device", "cpu", *arguments])),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


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
        f"glance-fast: {out}: is not empty; --resume goes on with the scoring there, --overwrite replaces "
        "it, or choose another --out"
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
    # torchrun ends the other process by SIGTERM, which may say so before it notices by itself.
    told = [line for line in ours(err) if not line.startswith("glance-fast: stopped; ")]
    assert told == ["glance-fast: disk/file: is odd"] * (kind == "error")
    tables = [out / f"scores-{number}-of-2.csv" for number in (1, 2)]
    done = [path.read_text().splitlines()[1:] for path in tables if path.exists()]
    assert len(done[-1]) == 1 and not (out / "scores.csv").exists(), "one image of the second"
    maps = [out / "maps" / f"{row.split(',')[0]}.tiff" for rows in done for row in rows]
    kept = {path: path.stat().st_mtime_ns for path in maps}
    code, said, err = torchrun(parts / "test", out, "--resume", processes=3)
    assert code == 0 and said.startswith("6 images scored"), err
    assert score_dir(cli, run_folder, parts / "test", whole)[0] == 0
    check_same(out, whole)
    # What has a row is not scored again.
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


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


@pytest.mark.slow
def test_processes_of_torchrun_train_one_model(cli, parts, tmp_path):
    out, photos = tmp_path / "run", parts / "train/good"
    command = ("train", photos, "--out", out, *(f"--set={key}={value}" for key, value in SMALL.items()))
    code, said, err = as_processes(*command)
    assert code == 0 and re.fullmatch(rf"{out}: trained in \d+ s\n", said), err
    assert len(re.findall("9 images to train on, 3 held out", err)) == 1
    assert json.loads((out / "calibration.json").read_text())["trained_on"]
    assert not (out / "checkpoint").exists()
    scored = score_dir(cli, out, parts / "test", tmp_path / "scores")
    assert scored[0] == 0 and scored[1].startswith("6 images scored")
    # They speak with one voice.
    code, said, err = as_processes(*command)
    assert code == 1 and said == "" and len(ours(err)) == 1
    assert ours(err)[0].startswith(f"glance-fast: {out}: is not empty; --overwrite replaces")


@pytest.mark.parametrize("rank", [0, 1])
def test_what_processes_cannot_share_is_refused_once(cli, run_folder, parts, tmp_path, monkeypatch, rank):
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    code, said, err = cli("evaluate", run_folder, parts, "--out", tmp_path / "out")
    line = "glance-fast: evaluate: processes cannot share its work; start it without torchrun\n"
    assert (code, said, err) == (1, "", line * (rank == 0))
    assert not (tmp_path / "out").exists()
