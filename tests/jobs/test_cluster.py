"""A folder scored by workers of Ray: what one process writes, whoever dies on the way.

These need packages that the other tests do not: ``pip install -e ".[cluster-test]"``.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import tree
from PIL import Image
from rich.console import Console
from samples import draw_part

MISSING = "ray, s3fs or moto is missing: pip install -e '.[cluster-test]'"
ray = pytest.importorskip("ray", reason=MISSING)
pytest.importorskip("s3fs", reason=MISSING)
moto = pytest.importorskip("moto.server", reason=MISSING)

from glance_fast import UserError  # noqa: E402
from glance_fast.data.store import Folder, open_store  # noqa: E402
from glance_fast.jobs import actors, cluster  # noqa: E402
from glance_fast.jobs.actors import connected  # noqa: E402
from glance_fast.jobs.cluster import score_cluster  # noqa: E402
from glance_fast.jobs.folder import score_folder  # noqa: E402
from glance_fast.jobs.parts import part_name, put_rows  # noqa: E402
from glance_fast.jobs.table import read_rows  # noqa: E402
from glance_fast.progress import Reporter  # noqa: E402

# Workers cannot import a module of tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TWO = {"device": "cpu", "workers": 2, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def workers():
    """Ray with room for two workers, and an S3 that they can reach."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 28
        )
        yield
        ray.shutdown()
    server.stop()


@pytest.fixture
def bucket():
    """An empty one; gives its file system."""
    system = open_store("s3://photos")._opened[0]
    system.mkdir("photos")
    yield system
    system.rm("photos", recursive=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of two chunks and a bit, one of them damaged."""
    folder, rng = tmp_path_factory.mktemp("cluster") / "photos", np.random.default_rng(0)
    for i in range(20):
        path = folder / f"{'sub/' if i % 3 else ''}{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_part(rng, defect=i % 4 == 0)).save(path)
    (folder / "sub/größe 5.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def alone(run_folder, photos, tmp_path_factory, one_thread):
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("cluster") / "alone"
    found = score_folder(run_folder, photos, out, device="cpu", overlays=True, regions=True)
    assert (found.summary.scored, found.summary.errors) == (20, 1)
    return out


def check_same(out, alone):
    """The same files with the same bytes; ``run.json`` but for times and the number of workers."""
    ours, theirs = ({path.as_posix(): data for path, data in tree(folder).items()} for folder in (out, alone))
    records = [json.loads(files.pop("run.json")) for files in (ours, theirs)]
    for record in records:
        for name in ("seconds", "seconds_per_image", "workers", "images"):
            record.pop(name, None)
    assert records[0] == records[1]
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


class Deadly(Folder):
    """A folder in which one photograph kills whoever reads it: as often as there are lines in a file."""

    def image(self, name):
        deaths = Path(f"{self.path}-deaths")
        left = int(deaths.read_text())
        if name == "sub/8.png" and left:
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(name)


@pytest.fixture
def deadly(photos, tmp_path, monkeypatch):
    """Have photographs read from such a folder; gives a function that says how often it kills."""
    folder = tmp_path / "deadly"
    folder.symlink_to(photos)
    monkeypatch.setattr(cluster, "open_store", lambda place: (Deadly if place == folder else Folder)(place))
    monkeypatch.setattr(cluster, "_everywhere", lambda store: store)

    def times(count):
        Path(f"{folder}-deaths").write_text(str(count))
        return folder

    return times


def test_workers_write_what_one_process_does(run_folder, photos, alone, tmp_path, monkeypatch):
    told = []

    class Heard(Reporter):
        def say(self, line):
            told.append(line.partition(":")[0])

    monkeypatch.chdir(tmp_path)
    with Heard(Console(quiet=True)) as reporter:
        found = score_cluster(
            run_folder, photos, "out", overlays=True, regions=True, reporter=reporter, **TWO
        )
    assert told == ["scoring", "regions"]
    assert (found.table, found.whole, found.summary.scored) == (Path("out/scores.csv"), True, 20)
    check_same(tmp_path / "out", alone)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["workers"] == 2 and record["images"] == str(photos)


def test_a_worker_that_is_killed_loses_nothing(run_folder, photos, alone, deadly, tmp_path):
    folder = deadly(times := 2)
    found = score_cluster(run_folder, folder, tmp_path / "out", overlays=True, regions=True, **TWO)
    assert Path(f"{folder}-deaths").read_text() == "0", f"{times} workers were to be killed"
    assert (found.summary.scored, found.summary.errors) == (20, 1)
    check_same(tmp_path / "out", alone)


def test_a_photograph_that_kills_every_worker_ends_it_and_the_others_are_kept(
    run_folder, photos, alone, deadly, tmp_path
):
    out = tmp_path / "out"
    folder = deadly(99)
    with pytest.raises(
        UserError, match=r"one worker after the other died over '.*' to '.*', most likely"
    ) as caught:
        score_cluster(run_folder, folder, out, overlays=True, regions=True, **TWO)
    assert "`resume=True` goes on" in str(caught.value)
    assert int(Path(f"{folder}-deaths").read_text()) == 99 - actors.ATTEMPTS
    assert list((out / "parts").iterdir())
    deadly(0)
    before = {path: path.stat().st_mtime_ns for path in (out / "maps").rglob("*.tiff")}
    score_cluster(run_folder, folder, out, overlays=True, regions=True, resume=True, **TWO)
    check_same(out, alone)
    kept = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= 4, "blocks that were done are not scored again"


def test_parts_of_a_command_that_was_killed_are_gone_on_with(run_folder, photos, alone, tmp_path):
    out = tmp_path / "out"
    score_cluster(run_folder, photos, out, overlays=True, regions=True, **TWO)
    # As it leaves them that is killed before it joins the parts: a table without rows, parts of three blocks.
    rows = list(read_rows(out / "scores.csv").values())
    record = json.loads((out / "run.json").read_text())
    for start in (0, 8):
        block = rows[start : start + 8]
        put_rows(Folder(out), part_name(record, [row.path for row in block]), block)
    put_rows(Folder(out), "scores.csv", [])
    marks = {row.path: (out / f"maps/{row.path}.tiff").stat().st_mtime_ns for row in rows if not row.error}
    score_cluster(run_folder, photos, out, overlays=True, regions=True, resume=True, **TWO)
    check_same(out, alone)
    anew = {name for name, mark in marks.items() if (out / f"maps/{name}.tiff").stat().st_mtime_ns != mark}
    assert anew == {row.path for row in rows[16:] if not row.error}


def test_one_process_goes_on_with_what_workers_left(run_folder, photos, alone, tmp_path):
    out = tmp_path / "out"
    score_cluster(run_folder, photos, out, overlays=True, regions=True, **TWO)
    rows = list(read_rows(out / "scores.csv").values())
    record = json.loads((out / "run.json").read_text())
    put_rows(Folder(out), part_name(record, [rows[0].path]), rows[:8])
    put_rows(Folder(out), "scores.csv", [])
    score_folder(run_folder, photos, out, device="cpu", overlays=True, regions=True, resume=True)
    check_same(out, alone)


def test_from_and_to_s3(run_folder, photos, alone, bucket, tmp_path):
    bucket.put(f"{photos}/", "photos/today/", recursive=True)
    found = score_cluster(
        run_folder, "s3://photos/today/", "s3://photos/scores", overlays=True, regions=True, coco=True, **TWO
    )
    assert (found.table, found.summary.scored) == ("s3://photos/scores/scores.csv", 20)
    bucket.get("photos/scores/", f"{tmp_path}/out/", recursive=True)
    assert json.loads((tmp_path / "out/run.json").read_text())["images"] == "s3://photos/today"
    assert len(json.loads((tmp_path / "out/regions.coco.json").read_text())["images"]) == 20
    (tmp_path / "out/regions.coco.json").unlink()
    check_same(tmp_path / "out", alone)
    # Gone on with: one that was lost, and one that was mended.
    bucket.rm("photos/scores/maps/0.png.tiff")
    bucket.put(str(photos / "0.png"), "photos/today/sub/größe 5.png")
    with pytest.raises(UserError, match=r"^s3://photos/scores: is not empty; `resume=True` goes on"):
        score_cluster(run_folder, "s3://photos/today", "s3://photos/scores", **TWO)
    found = score_cluster(run_folder, "s3://photos/today", "s3://photos/scores", resume=True, **TWO)
    assert (found.summary.scored, found.summary.errors) == (21, 0)
    assert bucket.exists("photos/scores/maps/0.png.tiff") and not bucket.exists("photos/scores/parts")
    # Begun anew, and nothing of before stays.
    bucket.rm("photos/today/sub", recursive=True)
    found = score_cluster(run_folder, "s3://photos/today", "s3://photos/scores", overwrite=True, **TWO)
    assert found.summary.scored == 7 and not bucket.exists("photos/scores/maps/sub")
    bucket.pipe_file("photos/scores/diary.txt", b"x")
    with pytest.raises(UserError, match=r"holds 'diary\.txt', which this command did not write"):
        score_cluster(run_folder, "s3://photos/today", "s3://photos/scores", overwrite=True, **TWO)


def test_what_is_wrong_with_a_store_is_one_line(run_folder, photos, bucket, tmp_path, monkeypatch):
    def fails(images, out):
        with pytest.raises(UserError) as caught:
            score_cluster(run_folder, images, out, **TWO)
        said = str(caught.value)
        assert "\n" not in said and "secret" not in said
        return said

    assert fails("s3://photos/none", tmp_path / "out").startswith("s3://photos/none: no image in this folder")
    assert "no such bucket or folder" in fails("s3://nobucket/a", tmp_path / "out")
    assert "no such bucket or folder" in fails(photos, "s3://nobucket/scores")
    assert "fsspec knows no such stores" in fails("nostore://a/b", tmp_path / "out")
    assert "a package is missing for such stores" in fails("gs://bucket/a", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr("s3fs.core.S3FileSystem.retries", 1)
        patch.setattr("s3fs.core.S3FileSystem.cachable", False)
        assert "s3://photos/a: cannot be listed: the store does not answer" in fails(
            "s3://photos/a", tmp_path
        )
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        patch.setattr("s3fs.core.S3FileSystem.cachable", False)
        assert "no keys to it are found" in fails("s3://photos/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_is_checked_before_anything_is_begun(run_folder, photos, tmp_path):
    out = tmp_path / "out"

    def fails(message, **more):
        with pytest.raises(UserError, match=message):
            score_cluster(run_folder, photos, out, **{**TWO, **more})
        assert not out.exists()

    fails("nothing to resume there", resume=True)
    fails("exclude each other", resume=True, overwrite=True)
    fails("at least 1 is needed", workers=0)
    fails("there is room for 2 of 9 workers with `threads=1` each; give fewer", workers=9)
    fails("there is room for 0 of 2 workers with a GPU each", device="cuda")
    fails("device tpu: workers take auto, cpu or cuda", device="tpu")
    fails("'patchwise' is for masked nets", engine="patchwise")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "masks/0.png")
    fails("one mask for all photographs, and no folder of masks", roi=tmp_path / "masks")
    with pytest.raises(UserError, match="would be taken for photographs"):
        score_cluster(run_folder, photos, photos / "out", **TWO)
    out.write_text("a file")
    with pytest.raises(UserError, match="is a file; `out` names a folder"):
        score_cluster(run_folder, photos, out, **TWO)


def test_one_region_of_interest_goes_to_all_workers(run_folder, photos, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    score_cluster(run_folder, photos, tmp_path / "ours", roi=tmp_path / "mask.png", **TWO)
    score_folder(run_folder, photos, tmp_path / "theirs", roi=tmp_path / "mask.png", device="cpu")
    check_same(tmp_path / "ours", tmp_path / "theirs")


def test_a_connection_that_is_there_is_kept():
    with connected("nowhere:1"):
        assert ray.is_initialized()
    assert ray.is_initialized()
