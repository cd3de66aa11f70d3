"""score-dir --cluster: what it says, and that Ray says nothing."""

import importlib.util
import re
import subprocess
import sys

import pytest
from commands import one_line, score_dir

with_ray = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "s3fs")),
    reason="ray or s3fs is missing: pip install -e '.[cluster]'",
)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "2"], "--workers are those of --cluster; give that as well"),
        (["--cluster", "local", "--shard", "1/2"], "--cluster scores all photographs, and each whole; leave"),
        (["--cluster", "local", "--tile", "auto"], "leave --shard and --tile away"),
        (["--cluster", "auto"], "--cluster auto: expected local, or HOST:PORT of a cluster's head"),
        (["--cluster", "ray://head:10001"], "expected local, or HOST:PORT of a cluster's head"),
        (["--cluster", "local", "--resume"], "nothing to resume there; leave --resume away to begin"),
    ],
)
def test_what_does_not_go_together_is_told(cli, run_folder, photos, tmp_path, more, message):
    assert message in one_line(score_dir(cli, run_folder, photos, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_store_needs_a_cluster(cli, run_folder, photos, tmp_path):
    for places in (("s3://user:secret@bucket/a", tmp_path / "out"), (photos, "s3://user:secret@bucket/a")):
        said = one_line(score_dir(cli, run_folder, *places))
        assert said == "s3://bucket/a: workers of Ray alone read and write stores; give --cluster local"


def test_ray_that_is_missing_is_told(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--cluster", "local"))
    assert said == "--cluster needs Ray: pip install 'glance-fast[cluster]'"
    assert not (tmp_path / "out").exists()


def test_torchrun_is_refused(cli, run_folder, photos, tmp_path, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    said = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--cluster", "local"))
    assert said == "--cluster: torchrun's processes share the work by themselves; use one of both"


@with_ray
def test_a_cluster_that_does_not_answer_is_told(cli, run_folder, photos, tmp_path):
    said = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--cluster", "127.0.0.1:1"))
    assert said.startswith("--cluster 127.0.0.1:1: cannot be reached (")
    assert said.endswith("this machine must be part of the cluster, and the address that of its head")
    assert not (tmp_path / "out").exists()


@with_ray
@pytest.mark.slow
def test_photographs_are_scored_and_nothing_is_heard_of_ray(run_folder, photos, tmp_path):
    (photos / "bad.png").write_text("bad")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "glance_fast.cli", "score-dir", run_folder, photos, "--out", out]
    more = ["--device", "cpu", "--cluster", "local", "--threads", "1", "--workers", "1"]
    # A process of its own: what compiled code writes is not said by Python.
    done = subprocess.run([*map(str, command), *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 3 and re.fullmatch(
        rf"2 images scored, \d anomalous: {out}/scores.csv\n", done.stdout
    )
    said = rf"scoring: \d+ s\n1 image could not be scored; column error of {out}/scores.csv says why\n"
    assert re.fullmatch(said, done.stderr)
