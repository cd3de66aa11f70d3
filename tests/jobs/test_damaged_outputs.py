"""Output folders that are damaged, hold links, are full, or that another command is writing to."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import tree
from damage import Readings, damaged
from PIL import Image
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.data.score_maps import read_map
from glance_fast.data.table import ScoreRow
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.output import locked, output
from glance_fast.jobs.record import read_run
from glance_fast.jobs.shards import joined, parse_shard
from glance_fast.jobs.table import read_rows, write_rows

NAMES = ("0.png", "1.png", "sub/2.png")


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(draw_part(rng)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(model, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "whole"
    score_folder(model, photos, out, overlays=True)
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of a finished output folder."""
    return shutil.copytree(whole, tmp_path / "out")


def names_in(out):
    return [line.partition(",")[0] for line in (out / "scores.csv").read_text().splitlines()[1:]]


# ---------------------------------------------------------------- damaged tables and records


def test_a_damaged_table_is_read_or_named(out):
    path, readings = out / "scores.csv", Readings()

    def read():
        for row in read_rows(path).values():
            assert row.error or (math.isfinite(float(row.score)) and 0 <= float(row.above) <= 1)
            assert row.anomalous in ("", "0", "1")

    for data in (*damaged(path.read_bytes(), 1, 40), b"\xff" * 99, b"\0" * 99, b'"' * 99, b"x" * 200_000):
        path.write_bytes(data)
        readings(path, read)
    readings.tell("tables")
    assert readings.refused > 20 and readings.read > 20


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_output_folder_is_gone_on_with_or_named(model, photos, out, whole, seed):
    readings = Readings()
    for name in ("scores.csv", "run.json", "maps/0.png.tiff", "overlays/1.png.png"):
        data = next(iter(damaged((whole / name).read_bytes(), seed, 1)))
        for path in tree(whole):
            shutil.copyfile(whole / path, out / path)
        (out / name).write_bytes(data)
        said = readings(out, score_folder, model, photos, out, overlays=True, resume=True)
        if not said:
            assert set(NAMES) <= set(names_in(out)) and len(set(names_in(out))) == len(names_in(out))
            assert not list(out.rglob(".tmp-*"))
    readings.tell("output folders")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("score", value) for value in ("nan", "inf", "x", "")),
        *(("above", value) for value in ("", "2", "nan")),
        *(("anomalous", value) for value in ("2", "x")),
    ],
)
def test_an_image_whose_row_is_damaged_is_scored_again(model, photos, out, whole, column, value):
    rows = list(read_rows(out / "scores.csv").values())
    write_rows(out / "scores.csv", [rows[0]._replace(**{column: value}), *rows[1:]])
    assert score_folder(model, photos, out, overlays=True, resume=True).summary.scored == 3
    assert names_in(out) == list(NAMES)
    row = read_rows(out / "scores.csv")[NAMES[0]]
    assert float(row.score) == pytest.approx(float(rows[0].score), 1e-4) and row[2:] == rows[0][2:]


DEEP = "[" * 100_000
ODD = (None, True, -1, 0, 1 << 70, 0.5, math.nan, math.inf, "", "x\n", [], [[]], {}, {"a": 1})


def test_damaged_records_are_read_or_named(out, model, photos):
    path, readings = out / "run.json", Readings()
    record = json.loads(path.read_text())
    texts = [*damaged(path.read_bytes(), 1, 20)]
    texts += [text.encode() for text in (DEEP, DEEP + "]" * 100_000, "", "[]", "{", "5", "null", "\ufeff{}")]
    texts += [b'{"model": ' + b"9" * 5000 + b"}", b"\xff\xfe"]
    texts += [json.dumps(record | {name: value}).encode() for name in record for value in ODD]
    for text in texts:
        path.write_bytes(text)
        readings(path, read_run, path)
        readings(out, score_folder, model, photos, out, resume=True) if len(text) % 5 == 0 else None
    readings.tell("records")
    assert readings.refused > 60


def test_damaged_records_of_shards_are_read_or_named(model, photos, tmp_path):
    first, readings = tmp_path / "first", Readings()
    score_folder(model, photos, first, shard="1/2")
    score_folder(model, photos, tmp_path / "joined", shard="1/2")
    score_folder(model, photos, tmp_path / "joined", shard="2/2")
    record = json.loads((first / "run-1-of-2.json").read_text())
    for name in (*record, "cut"):
        for value in ODD:
            out = shutil.copytree(first, tmp_path / "out")
            (out / "run-1-of-2.json").write_text(json.dumps(record | {name: value}))
            readings(out, score_folder, model, photos, out, shard="2/2")
            shutil.rmtree(out)
    path = tmp_path / "joined/run.json"
    record = json.loads(path.read_text())
    for name in record:
        for value in ODD:
            path.write_text(json.dumps(record | {name: value}))
            readings(path, joined, tmp_path / "joined", parse_shard("1/2"))
    readings.tell("records of shards")
    assert readings.refused > 50


# ---------------------------------------------------------------- links, and names


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that nothing may be written to."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("theirs")
    yield tmp_path / "elsewhere"
    assert {p.name: p.read_text() for p in (tmp_path / "elsewhere").iterdir()} == {"file": "theirs"}


@pytest.mark.parametrize("place", ["maps", "overlays", "maps/sub", "overlays/sub"])
@pytest.mark.parametrize("tile", [None, 48])
def test_a_link_to_a_folder_elsewhere_is_never_written_through(
    model, photos, tmp_path, elsewhere, place, tile
):
    out = tmp_path / "out"
    score_folder(model, photos, out, overlays=True, tile=tile)
    shutil.rmtree(out / place)
    (out / place).symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match="link") as caught:
        score_folder(model, photos, out, overlays=True, tile=tile, resume=True)
    assert str(out / place) in str(caught.value)
    score_folder(model, photos, out, overlays=True, tile=tile, overwrite=True)
    assert not (out / place).is_symlink() and names_in(out) == list(NAMES)


@pytest.mark.parametrize("name", ["scores.csv", "run.json", "maps/0.png.tiff", "overlays/sub/2.png.png"])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_link_to_a_file_elsewhere_is_replaced_and_not_written_through(
    model, photos, out, elsewhere, name, how
):
    (out / name).unlink()
    (out / name).symlink_to(elsewhere / "file")
    try:
        score_folder(model, photos, out, overlays=True, **{how: True})
    except UserError as error:
        assert str(out / name) in str(error)
    else:
        assert names_in(out) == list(NAMES)


def test_stale_files_behind_a_link_are_left_alone(model, photos, out, tmp_path):
    (tmp_path / "theirs").mkdir()
    stale = tmp_path / "theirs/.tmp-0123456789abcdef.tiff"
    stale.touch()
    shutil.rmtree(out / "maps")
    (out / "maps").symlink_to(tmp_path / "theirs")
    with (
        pytest.raises(UserError, match="maps: is a link out of"),
        output(out, ("scores.csv", "run.json", "maps"), False, True),
    ):
        pass
    assert stale.exists()


def test_images_behind_links_and_dots_write_inside(model, photos, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/linked.png").symlink_to(photos / "0.png")
    (tmp_path / "in/deep/folder").symlink_to(photos / "sub")
    (tmp_path / "in/..a.png").symlink_to(photos / "1.png")
    (tmp_path / "in/b..png").symlink_to(photos / "1.png")
    out = tmp_path / "results/out"
    found = score_folder(model, tmp_path / "in/deep/../../in", out)
    assert found.summary.errors == 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.tiff")} == {
        *("maps/b..png.tiff", "maps/deep/linked.png.tiff", "maps/deep/folder/2.png.tiff"),
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "results"]
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["out"]


@pytest.mark.parametrize("tile", [None, 48])
def test_a_folder_named_as_the_map_of_an_image_is_that_images_fault(model, photos, tmp_path, tile):
    folder = tmp_path / "photos"
    (folder / "a.png.tiff").mkdir(parents=True)
    for name in ("a.png", "a.png.tiff/b.png", "c.png"):
        shutil.copy(photos / "0.png", folder / name)
    found = score_folder(model, folder, tmp_path / "out", tile=tile)
    assert (found.summary.scored, found.summary.errors) == (2, 1)
    (error,) = [row.error for row in read_rows(tmp_path / "out/scores.csv").values() if row.error]
    assert error == "its map and another's folder have one name; rename it"


def test_names_with_line_breaks_and_of_no_utf8_are_in_the_table_once(model, photos, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    names = [
        "a\rb.png",
        "a\r\nb.png",
        "\r.png",
        "a\nb.png",
        "a\tb.png",
        'a",b.png',
        "\x1b[31m.png",
        "=1+1.png",
    ]
    for name in (*names, "latin-\udce9.png"):
        shutil.copy(photos / "0.png", folder / name)
    for resume in (False, True):
        assert score_folder(model, folder, out, resume=resume).summary.scored == len(names) + 1
        assert set(read_rows(out / "scores.csv")) == {*names, r"latin-\udce9.png"}
    before = tree(out / "maps")
    assert len(before) == len(names) + 1


def test_a_row_with_carriage_returns_comes_back(tmp_path):
    rows = [ScoreRow("a\rb", "1", "0.5", "0", ""), ScoreRow("\r", "", "", "", "c\r\nd")]
    write_rows(tmp_path / "t.csv", rows)
    assert list(read_rows(tmp_path / "t.csv").values()) == rows


# ---------------------------------------------------------------- two at once


def test_of_two_on_one_folder_the_second_is_refused(model, photos, out):
    before = tree(out)
    with locked(out):
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=r"out: another command is writing there; wait until it ends"):
                score_folder(model, photos, out, **how)
    assert tree(out) == before
    assert score_folder(model, photos, out, resume=True).summary.scored == 3


def test_shards_share_a_folder_but_with_no_other_command(model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with locked(out, shared=True):
        score_folder(model, photos, out, shard="1/2")
        with pytest.raises(UserError, match="another command is writing there"):
            score_folder(model, photos, out, resume=True)
    with locked(out), pytest.raises(UserError, match="another command is writing there"):
        score_folder(model, photos, out, shard="2/2")


def test_one_that_lost_the_race_is_told_what_is_there(tmp_path, monkeypatch):
    """Between the first look at an empty folder and the lock, another command may begin and end."""
    out = tmp_path / "out"
    out.mkdir()

    def lock(folder, shared=False):
        (folder / "scores.csv").touch()
        return locked(folder, shared)

    monkeypatch.setattr("glance_fast.jobs.output.locked", lock)
    with pytest.raises(UserError, match="out: is not empty"), output(out, ("scores.csv",), False):
        pass
    assert (out / "scores.csv").exists()


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import os, sys, pathlib; from glance_fast.jobs.output import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path], timeout=100, check=False).returncode == -9
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a disk that fills


@pytest.mark.parametrize("tile", [None, 48])
def test_a_disk_that_fills_in_the_middle_loses_nothing(model, photos, tmp_path, tile):
    resource = pytest.importorskip("resource")
    out, folder = tmp_path / "out", tmp_path / "photos"
    folder.mkdir()
    for name, side in (("1.png", 24), ("2.png", 24), ("3.png", 90), ("4.png", 24)):
        Image.fromarray(draw_part(np.random.default_rng(0), side)).save(folder / name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit of a file's size stands for the end of the disk: of the third map, the header fits.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        with pytest.raises(UserError, match=r"3\.png\.tiff: cannot be written: File too large$") as caught:
            score_folder(model, folder, out, tile=tile)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__.errno == errno.EFBIG
    assert not list(out.rglob(".tmp-*")) and not (out / "maps/3.png.tiff").exists()
    assert score_folder(model, folder, out, tile=tile, resume=True).summary.scored == 4
    assert [read_map(out / f"maps/{n}.png.tiff").shape[0] for n in (1, 2, 3, 4)] == [24, 24, 90, 24]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(model, photos, out):
    out.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written to; change its permissions"):
            score_folder(model, photos, out, resume=True)
    finally:
        out.chmod(0o700)
