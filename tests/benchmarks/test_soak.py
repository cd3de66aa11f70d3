"""The soak, in short: images scored by a command that is killed."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import soak


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path, monkeypatch, capsys):
    # Killed soon after it has begun: of few images, there would be none left.
    monkeypatch.setattr(soak, "MOST_SECONDS", 0.0)
    out, work = tmp_path / "soak.json", tmp_path / "work"
    arguments = ["--images", "600", "--kills", "3", "--seed", "3", "--out", str(out), "--work", str(work)]
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    soak.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == found
    # A fast machine may be done before all have come.
    assert 1 <= sum(found["signals"].values()) <= 3 and found["starts"] <= 4
    for name in ("scored_twice", "lost", "twice", "rows_that_differ", "maps_that_differ"):
        assert found[name] == 0, name
    assert found["files_missing"] == found["files_too_many"] == 0


def test_what_differs_is_counted(tmp_path):
    photos, whole, out = tmp_path / "photos", tmp_path / "whole", tmp_path / "out"
    rows = {"a.png": "a.png,1,1,0,", "b.png": "b.png,2,1,0,", "c.png": "c.png,3,1,0,"}
    for name in rows:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    for folder in (whole, out):
        (folder / "maps").mkdir(parents=True)
        (folder / "run.json").touch()
        for name in rows:
            (folder / f"maps/{name}.tiff").write_text("map")
        (folder / "scores.csv").write_text("\n".join(["path,...", *rows.values()]) + "\n")
    names = ("lost", "twice", "rows_that_differ", "maps_that_differ", "files_missing", "files_too_many")
    assert soak.compare(out, whole, photos) == dict.fromkeys(names, 0)
    (out / "scores.csv").write_text("\n".join(["path,...", rows["a.png"], rows["a.png"], "b.png,9,1,0,"]))
    (out / "maps/a.png.tiff").write_text("other")
    (out / "maps/c.png.tiff").unlink()
    (out / "maps/.tmp-0123456789abcdef.tiff").touch()
    assert soak.compare(out, whole, photos) == {
        **{"lost": 1, "twice": 1, "rows_that_differ": 2, "maps_that_differ": 1},
        **{"files_missing": 1, "files_too_many": 1},
    }
