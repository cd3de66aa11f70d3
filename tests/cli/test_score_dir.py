"""``glance-fast score-dir`` on one machine."""

import os
import re
import shutil

import numpy as np
import pytest
from commands import one_line, score_dir, tree
from PIL import Image
from samples import draw_part


def test_score_dir_tells_what_it_did(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    code, said, err = score_dir(cli, run_folder, photos, out)
    assert code == 0 and re.fullmatch(rf"2 images scored, \d anomalous: {out}/scores.csv\n", said)
    assert all(line.startswith("scoring: ") for line in err.splitlines())
    (photos / "bad.png").write_text("no image")
    code, said, err = score_dir(cli, run_folder, photos, out, "--resume", "--overlays")
    assert code == 3 and said.startswith("2 images scored")
    assert err.endswith(f"1 image could not be scored; column error of {out}/scores.csv says why\n")
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["0.png.png", "1.png.png"]
    Image.fromarray(draw_part(np.random.default_rng(0))).resize((64, 40)).save(photos / "bad.png")
    code, said, err = score_dir(cli, run_folder, photos, out, "--resume")
    assert code == 0 and said.startswith("3 images scored")
    assert "1 image has another shape than those in training" in err


@pytest.mark.parametrize("engine", ["dense", "grouped", "patchwise"])
def test_score_dir_with_an_engine(cli, run_folder, masked_run, photos, tmp_path, engine):
    out = tmp_path / "out"
    line = one_line(score_dir(cli, run_folder, photos, out, "--engine", engine))
    assert line.startswith(f"engine: '{engine}' is for masked nets; net 'surround'") and not out.exists()
    code, said, _ = score_dir(cli, masked_run, photos, out, "--engine", engine)
    assert code == 0 and said.startswith("2 images scored")
    before = tree(out)
    one_line(score_dir(cli, run_folder, photos, out, "--engine", engine, "--overwrite"))
    assert tree(out) == before


def test_score_dir_with_wrong_folders(cli, run_folder, photos, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for run, images, where, message in (
        (
            tmp_path / "none",
            photos,
            out,
            "none: no such folder; a run folder is what glance-fast train wrote",
        ),
        (tmp_path / "file", photos, out, "file: is a file; a run folder is what"),
        (photos, photos, out, "photos: no model.safetensors in it; not a run folder"),
        (run_folder, tmp_path / "none", out, "none: no such folder"),
        (run_folder, tmp_path / "file", out, "file: is a file, not a folder"),
        (run_folder, photos / "0.png", out, "0.png: is a file, not a folder"),
        (run_folder, tmp_path / "empty", out, "empty: no image in this folder"),
        (run_folder, photos, photos, "is the folder that is read; choose another"),
        (run_folder, photos, run_folder, "is the folder that is read; choose another"),
        (run_folder, photos, tmp_path, f"holds {photos}, which is read; choose another"),
        (run_folder, photos, photos / "out", "would be taken for photographs; choose another"),
        (run_folder, photos, tmp_path / "file", "file: is a file; --out names a folder"),
    ):
        assert message in one_line(score_dir(cli, run, images, where))
    assert "nothing to resume there" in one_line(score_dir(cli, run_folder, photos, out, "--resume"))
    assert not out.exists()


def test_score_dir_replaces_only_what_it_wrote_and_only_when_told(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    score_dir(cli, run_folder, photos, out)
    before = tree(out)
    assert "is not empty; --resume goes on with the scoring there" in one_line(
        score_dir(cli, run_folder, photos, out)
    )
    # What is wrong is found before anything is removed.
    one_line(score_dir(cli, run_folder, tmp_path / "none", out, "--overwrite"))
    one_line(score_dir(cli, tmp_path / "none", photos, out, "--overwrite"))
    (out / "notes.txt").write_text("mine")
    line = one_line(score_dir(cli, run_folder, photos, out, "--overwrite"))
    assert line == (
        f"{out}: holds 'notes.txt', which this command did not write; move it away or choose another --out"
    )
    (out / "notes.txt").unlink()
    assert tree(out) == before
    (photos / "0.png").unlink()
    assert score_dir(cli, run_folder, photos, out, "--overwrite")[0] == 0
    assert [p.name for p in (out / "maps").iterdir()] == ["1.png.tiff"]


def test_folders_whose_names_look_like_markup(cli, run_folder, photos, tmp_path):
    out = tmp_path / "[bold]x[/y] :smile:"
    code, said, _ = score_dir(cli, run_folder, photos, out)
    assert code == 0 and f"{out}/scores.csv" in said


def test_damaged_run_is_named(cli, run_folder, photos, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "calibration.json").write_text("{}")
    line = one_line(score_dir(cli, run, photos, tmp_path / "out"))
    assert line.startswith(f"{run}/calibration.json: damaged") and not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_written(cli, run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.jobs.output.os.access", lambda path, mode: not mode & os.W_OK)
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "out"))
    assert line.endswith("out: cannot be written to; change its permissions or choose another --out")
    assert not (tmp_path / "out").exists()


def test_a_scoring_that_was_broken_off_is_not_advised_away(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    assert score_dir(cli, run_folder, photos, out)[0] == 0
    line = one_line(score_dir(cli, run_folder, photos, out))
    assert line == (
        f"{out}: is not empty; --resume goes on with the scoring there, --overwrite replaces it, "
        "or choose another --out"
    )


def test_regions_are_written_where_asked_for(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    assert score_dir(cli, run_folder, photos, out, "--regions")[0] == 0
    assert "0.png" in (out / "regions.jsonl").read_text()
    assert score_dir(cli, run_folder, photos, out, "--overwrite")[0] == 0
    assert not (out / "regions.jsonl").exists()
