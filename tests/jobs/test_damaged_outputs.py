"""Output folders that are damaged: gone on with, or refused in one line."""

import json
import math
import shutil

import numpy as np
import pytest
from commands import tree
from damage import Readings, damaged
from PIL import Image
from samples import draw_part

from glance_fast import load
from glance_fast.data.table import ScoreRow
from glance_fast.jobs.folder import score_folder
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


def test_a_row_with_carriage_returns_comes_back(tmp_path):
    rows = [ScoreRow("a\rb", "1", "0.5", "0", ""), ScoreRow("\r", "", "", "", "c\r\nd")]
    write_rows(tmp_path / "t.csv", rows)
    assert list(read_rows(tmp_path / "t.csv").values()) == rows
