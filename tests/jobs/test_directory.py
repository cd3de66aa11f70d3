"""score-dir: every image in its place, bad ones in the table, nothing done is lost or done twice."""

import copy
import csv
import dataclasses
import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.data.images import read_image
from glance_fast.data.table import ScoreRow, as_csv
from glance_fast.jobs import directory
from glance_fast.jobs.directory import score_directory
from glance_fast.jobs.table import Summary, append_rows, read_rows, write_rows
from glance_fast.model import Glance, ScoreResult
from glance_fast.tiles import score_photograph


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture
def photos(tmp_path):
    """Seven images; two names that differ in their folder, two in their suffix alone."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(
        ("a.png", "a.bmp", "b/a.png", "b/größe 部品.png", "b/c/1.png", "2.png", "10.png")
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_part(rng, defect=i % 2 == 0)).save(path)
    return tmp_path / "photos"


# A batch at a time, unless a test says otherwise.
pytestmark = pytest.mark.usefixtures("one_thread")

# In the order of the listing.
NAMES = ["2.png", "10.png", "a.bmp", "a.png", "b/a.png", "b/c/1.png", "b/größe 部品.png"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(Glance, "at_once", lambda *_: 2)


def score(model, photos, out, **more):
    return score_directory(model, photos, out, **more)


def table(out):
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return [ScoreRow(**row) for row in csv.DictReader(file)]


def contents(out):
    """Every file below a folder, but for run.json, which holds times."""
    return {
        p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"
    }


class Counting:
    """Counts the images that models score, and fails at a chosen chunk."""

    def __init__(self, monkeypatch, fail_at=None, error=KeyboardInterrupt):
        self.images, self.chunks = 0, 0

        def counted(model, images, engine, precision, roi=None):
            self.chunks += 1
            if self.chunks == fail_at:
                raise error
            self.images += len(images)
            return original(model, images, engine, precision, roi)

        original = Glance.score
        monkeypatch.setattr(Glance, "score", counted)


# ---------------------------------------------------------------- what is written


def test_every_image_gets_its_row_map_and_overlay(model, photos, tmp_path):
    out = tmp_path / "out"
    done = []
    summary = score(model, photos, out, overlays=True, progress=lambda *progress: done.append(progress))
    rows = table(out)
    assert [row.path for row in rows] == NAMES
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {
        "scores.csv",
        "run.json",
        *(f"maps/{name}.tiff" for name in NAMES),
        *(f"overlays/{name}.png" for name in NAMES),
    }
    expected = model.score([photos / name for name in NAMES])
    threshold, normal = model.calibration.threshold, np.array(model.calibration.scores)
    for row, score_map, value in zip(rows, expected.maps, expected.scores, strict=True):
        assert float(row.score) == pytest.approx(value, rel=1e-4, abs=1e-3) and row.error == ""
        assert row.anomalous == str(int(value > threshold))
        # The share of normal photographs and of this one that score as high.
        assert float(row.above) == pytest.approx((1 + (normal >= value).sum()) / (1 + len(normal)), rel=5e-3)
        found = tifffile.imread(out / "maps" / f"{row.path}.tiff")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, score_map, rtol=1e-4, atol=1e-4)
    anomalous = int((expected.scores > threshold).sum())
    assert summary == Summary(7, anomalous, 0, ())
    assert done == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]
    told = json.loads((out / "run.json").read_text())
    assert (told["scored"], told["anomalous"], told["errors"]) == (7, anomalous, 0)
    assert (told["engine"], told["precision"], told["threshold"]) == ("auto", "fp32", threshold)


def test_maps_have_the_size_of_each_image_as_it_is_seen(model, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    part = Image.fromarray(draw_part(np.random.default_rng(0), 96))
    turned = Image.Exif()
    turned[0x0112] = 6
    part.resize((80, 48)).save(photos / "turned.jpg", exif=turned)
    part.resize((5, 7)).save(photos / "smaller than a patch.png")
    part.resize((1, 300)).save(photos / "thin.png")
    part.resize((150, 150)).save(photos / "large.png")
    part.convert("L").save(photos / "grey.png")
    part.convert("RGBA").save(photos / "alpha.png")
    part.convert("P").save(photos / "palette.png")
    part.convert("CMYK").save(photos / "cmyk.jpg")
    summary = score(model, photos, out, overlays=True)
    # Turned, 5x7 and thin: not the squares of training.
    assert (summary.scored, summary.errors) == (8, 0)
    stretched, small = summary.remarks
    assert stretched.startswith("3 images have another shape")
    assert small == "2 images are smaller than a patch; enlarged so much, they show little"
    for path in photos.iterdir():
        size = read_image(path).shape[:2]
        assert tifffile.imread(out / "maps" / f"{path.name}.tiff").shape == size, path.name
        with Image.open(out / "overlays" / f"{path.name}.png") as overlay:
            assert overlay.size == size[::-1], path.name
    assert tifffile.imread(out / "maps" / "turned.jpg.tiff").shape == (80, 48)


def test_bad_images_are_recorded_and_all_others_scored(model, photos, tmp_path):
    whole = (photos / "a.png").read_bytes()
    (photos / "half.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    (photos / "text.jpg").write_text('not an image, with "quotes", commas')
    (photos / "gone.png").symlink_to("nowhere")
    summary = score(model, photos, tmp_path / "out")
    rows = {row.path: row for row in table(tmp_path / "out")}
    assert (summary.scored, summary.errors) == (7, 4)
    for name, reason in (
        ("half.png", "damaged or truncated"),
        ("empty.png", "is empty (0 bytes)"),
        ("text.jpg", "is not an image"),
        ("gone.png", "no such file"),
    ):
        assert rows[name].error.startswith(reason)
        assert rows[name].score == rows[name].above == rows[name].anomalous == ""
        assert not (tmp_path / "out/maps" / f"{name}.tiff").exists()
    assert all(rows[name].score and not rows[name].error for name in NAMES)


def test_nothing_but_bad_images(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad.png").write_text("bad")
    assert score(model, tmp_path / "photos", tmp_path / "out") == Summary(0, 0, 1, ())


def test_names_that_are_hard_to_write(model, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    image = Image.fromarray(draw_part(np.random.default_rng(0)))
    # A map's name is longer than its image's: one too long is that image's problem alone.
    names = ["plain.png", 'a "quoted", name.png', "two\nlines.png", "l" * 248 + ".png"]
    for name in names:
        image.save(photos / name)
    image.save(tmp_path / "raw.png")
    (tmp_path / "raw.png").rename(photos / "latin-\udce9.png")
    summary = score(model, photos, out)
    assert (summary.scored, summary.errors) == (4, 1)
    rows = {row.path: row for row in table(out)}
    assert set(rows) == {*names, r"latin-\udce9.png"}
    assert rows[names[3]].error == "its name is too long for that of a map; rename it"
    again = score(model, photos, out, resume=True)
    assert again == summary and {row.path: row for row in table(out)} == rows


def test_scores_that_are_not_finite_are_errors(model, photos, tmp_path, monkeypatch):
    original = Glance.score

    def score_(self, images, engine, precision, roi=None):
        result = original(self, images, engine, precision, roi)
        maps = result.maps.copy()
        maps[0, 3, 3] = np.nan
        return ScoreResult(maps, result.scores, result.patch_scores)

    monkeypatch.setattr(Glance, "score", score_)
    assert score(model, photos, tmp_path / "out").errors == 4
    assert "not finite" in table(tmp_path / "out")[0].error
    assert not (tmp_path / "out/maps/2.png.tiff").exists()


def test_a_model_without_threshold_calls_nothing_anomalous(photos, tmp_path, model):
    config = model.config
    assert score(Glance(config), photos, tmp_path / "out", overlays=True).anomalous == 0
    # Valid JSON has no infinity.
    told = json.loads((tmp_path / "out/run.json").read_text(), parse_constant=pytest.fail)
    assert told["threshold"] is None


@pytest.mark.parametrize("place", ["photos", "photos/b", "photos/new"])
def test_output_among_the_images_is_refused(model, photos, place):
    before = sorted(photos.rglob("*"))
    with pytest.raises(UserError, match="taken for photographs; choose another folder"):
        score(model, photos, photos.parent / place)
    assert sorted(photos.rglob("*")) == before


def test_no_images(model, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="photos: no image in this folder or below it"):
        score(model, tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_share_is_written_with_three_digits(model, photos, tmp_path):
    close = copy.deepcopy(model)
    # 213 of 214: 1/215 of normal photographs score as high as whatever lies above them all.
    scores = tuple(float(score) for score in range(-1000, -786))
    close.calibration = dataclasses.replace(model.calibration, scores=scores)
    score(close, photos, tmp_path / "out")
    assert {row.above for row in table(tmp_path / "out")} == {"0.00465"}


@pytest.mark.parametrize("tile", [None, 48])
def test_a_map_has_the_resolution_of_its_photograph(model, tmp_path, tile):
    photos, part = tmp_path / "photos", draw_part(np.random.default_rng(0))[:, :60]
    photos.mkdir()
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(part).save(photos / "a.png", dpi=(254, 127))
    Image.fromarray(part).save(photos / "b.jpg", dpi=(300, 100), exif=turned)
    Image.fromarray(part).save(photos / "c.tif", resolution_unit=3, x_resolution=80.0, y_resolution=90.0)
    Image.fromarray(part).save(photos / "d.bmp", dpi=(0, 0))
    assert score(model, photos, tmp_path / "out", tile=tile).errors == 0
    stated = {}
    for path in sorted((tmp_path / "out/maps").iterdir()):
        with Image.open(path) as score_map, Image.open(photos / path.stem) as photo:
            stated[path.stem] = score_map.info.get("dpi")
            assert score_map.size == (photo.size if path.stem != "b.jpg" else photo.size[::-1])
    assert stated["a.png"] == pytest.approx((254, 127), rel=1e-4)
    assert stated["b.jpg"] == (100, 300)
    assert stated["c.tif"] == pytest.approx((80 * 2.54, 90 * 2.54), rel=1e-6)
    with tifffile.TiffFile(tmp_path / "out/maps/d.bmp.tiff") as file:
        assert file.pages.first.resolutionunit == 1


# ---------------------------------------------------------------- flat memory


def test_rows_come_as_images_do(model, photos, tmp_path):
    rows = []
    score(model, photos, tmp_path / "out", progress=lambda *_: rows.append(len(table(tmp_path / "out"))))
    assert rows == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("overlays", [False, True])
def test_few_images_are_in_memory_at_once(model, photos, tmp_path, monkeypatch, overlays):
    started, chunks = [], []

    def read(path):
        started.append(path)
        return read_image(path)

    def score_chunk(model, images, out, paths, photos, *more):
        # This chunk and the next: no image is read further ahead.
        assert len(started) <= 2 * (len(chunks) + 2)
        assert all((photo.original is not None) == overlays for photo in photos)
        chunks.append(paths)
        return original(model, images, out, paths, photos, *more)

    original = directory._score_chunk
    monkeypatch.setattr(directory, "read_image", read)
    monkeypatch.setattr(directory, "_score_chunk", score_chunk)
    score(model, photos, tmp_path / "out", overlays=overlays)
    assert [len(paths) for paths in chunks] == [2, 2, 2, 1]


def test_a_row_is_written_by_appending(tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    write_rows(path, [])
    inode = path.stat().st_ino
    append_rows(path, [ScoreRow("a", "1", "0.25", "0", "")])
    append_rows(path, [ScoreRow("b", "", "", "", "bad")])
    assert path.stat().st_ino == inode
    assert path.read_text() == "path,score,above,anomalous,error\na,1,0.25,0,\nb,,,,bad\n"


# ---------------------------------------------------------------- side by side


@pytest.fixture
def two_threads(monkeypatch):
    """Two chunks of two images at a time."""
    monkeypatch.setattr(Glance, "at_once", lambda *_: 4)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_chunks_side_by_side(model, photos, tmp_path, monkeypatch, two_threads):
    (photos / "2b.png").write_text("bad")
    both, threads, started, done = threading.Barrier(2), set(), [], []

    def read(path):
        started.append(path)
        return read_image(path)

    def counted(model, images, *how, **roi):
        # The last chunk may be alone.
        if len(threads) < 2:
            both.wait(30)
        threads.add((threading.current_thread().name, torch.get_num_threads()))
        # Those under way, the one that waits for a thread, and the next.
        assert len(images) <= 2 and len(started) <= done[-1][0] + 2 * 4
        return original(model, images, *how, **roi)

    original = Glance.score
    with monkeypatch.context() as patch:
        patch.setattr(Glance, "score", counted)
        patch.setattr(directory, "read_image", read)
        summary = score(model, photos, tmp_path / "out", progress=lambda *step: done.append(step))
    assert len(threads) == 2 and {count for _, count in threads} == {1}
    assert done == [(count, 8) for count in (0, 2, 4, 6, 8)] and summary.errors == 1
    torch.set_num_threads(1)
    assert score(model, photos, tmp_path / "alone") == summary
    assert [row.path for row in table(tmp_path / "out")] == [row.path for row in table(tmp_path / "alone")]
    for name in NAMES:
        found, alone = (tifffile.imread(tmp_path / out / "maps" / f"{name}.tiff") for out in ("out", "alone"))
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("disk full")], ids=["Ctrl-C", "error"])
def test_side_by_side_stopped_and_resumed(model, photos, tmp_path, monkeypatch, two_threads, error):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Counting(patch, fail_at=3, error=error)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            score(model, photos, out)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("glance-")]
    kept = [row.path for row in table(out)]
    assert kept == NAMES[: len(kept)] and len(kept) <= 6
    summary = score(model, photos, out, resume=True)
    assert (summary.scored, summary.errors) == (7, 0) and [row.path for row in table(out)] == NAMES
    assert {p.relative_to(out / "maps").as_posix() for p in (out / "maps").rglob("*.tiff")} == {
        f"{name}.tiff" for name in NAMES
    }


def test_what_one_thread_scores_alone_has_all_threads(model, photos, tmp_path, monkeypatch, two_threads):
    found = []

    def counted(model, images, *how, **roi):
        found.append((len(images), torch.get_num_threads(), threading.current_thread()))
        return original(model, images, *how, **roi)

    original = Glance.score
    monkeypatch.setattr(Glance, "score", counted)
    for path in list(photos.rglob("*.*"))[2:]:
        path.unlink()
    score(model, photos, tmp_path / "out")
    assert found == [(2, 2, threading.current_thread())]


# ---------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("disk full")], ids=["Ctrl-C", "error"])
def test_stopped_and_resumed_equals_uninterrupted(model, photos, tmp_path, monkeypatch, error):
    (photos / "bad.png").write_text("bad")
    whole, out = tmp_path / "whole", tmp_path / "out"
    summary = score(model, photos, whole, overlays=True)
    with monkeypatch.context() as patch:
        Counting(patch, fail_at=3, error=error)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            score(model, photos, out, overlays=True)
    assert [row.path for row in table(out)] == NAMES[:4]
    # A killed process may leave half a line, and a map without a row.
    with (out / "scores.csv").open("a") as file:
        file.write('"b/a.p')
    with monkeypatch.context() as patch:
        counting = Counting(patch)
        done = []
        again = score(
            model, photos, out, overlays=True, resume=True, progress=lambda *step: done.append(step)
        )
    assert counting.images == 3, "what was done is not done again"
    assert done[0] == (4, 8) and done[-1] == (8, 8)
    assert again == summary
    assert contents(out) == contents(whole)


def test_resume_does_what_is_new_or_failed_and_keeps_what_is_gone(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (photos / "a bad one.png").write_text("bad")
    (photos / "another.png").write_text("bad")
    score(model, photos, out)
    before = {row.path: row for row in table(out)}
    part = Image.fromarray(draw_part(np.random.default_rng(9)))
    part.save(photos / "a bad one.png")
    (photos / "another.png").unlink()
    (photos / "10.png").unlink()
    part.save(photos / "3.png")
    counting = Counting(monkeypatch)
    summary = score(model, photos, out, resume=True)
    assert counting.images == 2
    assert (summary.scored, summary.errors) == (9, 0)
    rows = table(out)
    # Sorted as the images are; of images that are gone, scores stay and errors go.
    assert [row.path for row in rows] == ["2.png", "3.png", "a bad one.png", *NAMES[2:], "10.png"]
    assert all(row == before[row.path] for row in rows if row.path in NAMES)


def test_resume_makes_files_that_are_missing(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    score(model, photos, out)
    (out / "maps/b/a.png.tiff").unlink()
    counting = Counting(monkeypatch)
    score(model, photos, out, resume=True)
    assert counting.images == 1 and (out / "maps/b/a.png.tiff").is_file()
    score(model, photos, out, resume=True, overlays=True)
    assert counting.images == 8 and len(list((out / "overlays").rglob("*.png"))) == 7
    score(model, photos, out, resume=True, overlays=True)
    assert counting.images == 8


def test_resume_of_something_else_is_refused(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    score(model, photos, out)
    before = contents(out) | {"run": (out / "run.json").read_bytes()}
    other = Glance(model.config, seed=4)
    other.calibration = model.calibration
    smoother = copy.deepcopy(model)
    smoother.config = dataclasses.replace(model.config, smoothing=1.0)
    for text, arguments in (
        ("another model, or before it was calibrated anew; give the same run", (other, photos)),
        ("another model, or before it was calibrated anew; give the same run", (smoother, photos)),
        ("another folder of images", (model, photos / "b")),
    ):
        with pytest.raises(UserError, match=f"out: was begun with {text}.*`overwrite=True`"):
            score(*arguments, out, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("glance_fast.model.has_bf16", lambda device: True)
        with pytest.raises(UserError, match="was begun with another `precision`"):
            score(model, photos, out, resume=True, precision="bf16")
    assert contents(out) | {"run": (out / "run.json").read_bytes()} == before
    # "auto" is fp32: the same numbers.
    assert score(model, photos, out, precision="fp32", resume=True).scored == 7


def test_engines_of_a_masked_net_are_not_mixed(masked_run, photos, tmp_path):
    masked = load(masked_run, "cpu")
    score(masked, photos, tmp_path / "out", engine="grouped")
    with pytest.raises(UserError, match="was begun with another `engine`"):
        score(masked, photos, tmp_path / "out", engine="dense", resume=True)
    # "auto" is dense: the same numbers.
    score(masked, photos, tmp_path / "other", engine="auto")
    assert json.loads((tmp_path / "other/run.json").read_text())["engine"] == "dense"
    assert score(masked, photos, tmp_path / "other", engine="dense", resume=True).scored == 7


@pytest.mark.parametrize("resume", [False, True])
def test_an_engine_that_the_net_has_not_is_refused_before_anything_is_written(
    model, photos, tmp_path, resume
):
    with pytest.raises(UserError, match="engine: 'grouped' is for masked nets"):
        score(model, photos, tmp_path / "out", engine="grouped", resume=resume)
    assert not (tmp_path / "out").exists()


def test_resume_tells_of_all_images_that_are_stretched(model, photos, tmp_path, monkeypatch):
    image = Image.open(photos / "2.png")
    for name in ("1.png", "3.png", "b/c/2.png"):
        image.resize((64, 40)).save(photos / name)
    whole = score(model, photos, tmp_path / "whole")
    assert whole.remarks[0].startswith("3 images have another shape")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Counting(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            score(model, photos, out)
    assert score(model, photos, out, resume=True) == whole
    # Nothing is left to do, or an image whose map has gone, or is damaged.
    for damage in (None, lambda path: path.unlink(), lambda path: path.write_bytes(b"")):
        if damage:
            damage(out / "maps/3.png.tiff")
        assert score(model, photos, out, resume=True) == whole


@pytest.mark.parametrize("overlays", [False, True])
def test_chunks_are_as_large_as_the_precision_allows(model, photos, tmp_path, monkeypatch, overlays):
    asked = []
    monkeypatch.setattr(Glance, "at_once", lambda _, precision="auto": asked.append(precision) or 3)
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: True)
    score(model, photos, tmp_path / "out", precision="bf16", overlays=overlays)
    assert set(asked) == {"bf16"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"text"'])
def test_resume_with_a_damaged_run_file(model, photos, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: damaged; .*`overwrite=True`"):
        score(model, photos, tmp_path / "out", resume=True)


# The second is that of a version which knew no column "above".
@pytest.mark.parametrize("text", ["name;value\n1;2\n", "path,score,anomalous,error\na.png,1.5,0,\n"])
def test_resume_with_a_foreign_table(model, photos, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores.csv").write_text(text)
    with pytest.raises(UserError, match=r"scores\.csv: not a table of score-dir"):
        score(model, photos, tmp_path / "out", resume=True)
    assert (tmp_path / "out/scores.csv").read_text() == text


def test_without_resume_everything_is_scored_anew(model, photos, tmp_path, monkeypatch):
    score(model, photos, tmp_path / "out")
    counting = Counting(monkeypatch)
    score(model, photos, tmp_path / "out")
    assert counting.images == 7 and [row.path for row in table(tmp_path / "out")] == NAMES


def test_a_table_cut_anywhere_gives_its_whole_rows(tmp_path):
    path = tmp_path / "scores.csv"
    rows = [
        ScoreRow("plain.png", "1.5", "0.05", "0", ""),
        ScoreRow('a "quoted", one.png', "-2e-05", "0.5", "1", ""),
        ScoreRow("two\nlines.png", "3", "0.00467", "0", ""),
        ScoreRow("größe 部品.png", "", "", "", 'bad: "x", y'),
        ScoreRow("last.png", "12.25", "1", "1", ""),
    ]
    write_rows(path, rows)
    data = path.read_bytes()
    ends = [len(as_csv([ScoreRow(*ScoreRow._fields), *rows[:n]]).encode()) for n in range(len(rows) + 1)]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = max(sum(end <= cut for end in ends) - 1, 0)
        assert list(read_rows(path).values()) == rows[:whole], data[:cut]


# ---------------------------------------------------------------- a full disk


def test_full_disk_under_a_map_keeps_what_was_done(model, photos, tmp_path, monkeypatch):
    out, written = tmp_path / "out", []

    def write(path, values, *more):
        if len(written) == 5:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        written.append(path)
        write_tiff(path, values, *more)

    write_tiff = directory.write_tiff
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_tiff", write)
        with pytest.raises(UserError, match=r"\.tiff: cannot be written: No space left") as caught:
            score(model, photos, out)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [row.path for row in table(out)] == NAMES[:4]
    counting = Counting(monkeypatch)
    assert score(model, photos, out, resume=True).scored == 7 and counting.images == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_the_table():
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left") as caught:
        append_rows(Path("/dev/full"), [ScoreRow("a", "1", "0.5", "0", "")])
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_table_that_may_not_be_written(monkeypatch, tmp_path):
    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.csv: cannot be written: Read-only .*; choose another folder$"):
        append_rows(tmp_path / "a.csv", [ScoreRow("a", "1", "0.5", "0", "")])


def test_photographs_are_scored_by_tiles(model, photos, tmp_path):
    Image.fromarray(draw_part(np.random.default_rng(1), 150)[:, :100]).save(photos / "large.png")
    (photos / "bad.png").write_text("no image")
    out = tmp_path / "out"
    summary = score(model, photos, out, tile=48, overlays=True)
    assert (summary.scored, summary.errors, summary.remarks) == (8, 1, ())
    rows = {row.path: row for row in table(out)}
    assert set(rows) == {*NAMES, "bad.png", "large.png"} and rows["bad.png"].error
    expected, highest = score_photograph(model, photos / "large.png", 48)
    assert float(rows["large.png"].score) == pytest.approx(highest, rel=1e-6)
    np.testing.assert_array_equal(tifffile.imread(out / "maps" / "large.png.tiff"), expected)
    assert read_image(out / "overlays" / "large.png.png").shape == (150, 100, 3)
    assert not (out / "maps" / "bad.png.tiff").exists()
    assert json.loads((out / "run.json").read_text())["tile"] == [48, 48]


def test_resume_by_tiles(model, photos, tmp_path):
    out = tmp_path / "out"
    score(model, photos, out, tile=48)
    with pytest.raises(UserError, match="begun with another `tile`"):
        score(model, photos, out, resume=True)
    before = (out / "scores.csv").read_bytes()
    (out / "maps" / "a.png.tiff").unlink()
    score(model, photos, out, tile=48, resume=True)
    assert (out / "scores.csv").read_bytes() == before and (out / "maps" / "a.png.tiff").exists()


def test_a_run_file_of_an_earlier_version_has_no_tiles(model, photos, tmp_path):
    out = tmp_path / "out"
    score(model, photos, out)
    record = json.loads((out / "run.json").read_text())
    del record["tile"]
    (out / "run.json").write_text(json.dumps(record))
    score(model, photos, out, resume=True)
    with pytest.raises(UserError, match="begun with another `tile`"):
        score(model, photos, out, tile=48, resume=True)


def test_photographs_smaller_than_a_tile_are_told(model, photos, tmp_path):
    Image.fromarray(draw_part(np.random.default_rng(1))[:, :40]).save(photos / "small.png")
    said = "1 image is smaller than a tile, and the model saw an enlarged copy"
    assert said in score(model, photos, tmp_path / "out", tile="auto").remarks
    assert said in score(model, photos, tmp_path / "out", tile="auto", resume=True).remarks


def test_a_photograph_of_any_size_has_a_map(model, tmp_path, monkeypatch):
    """Read by its rows, as one that is too large to be decoded at once."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_part(np.random.default_rng(1), 150)).save(tmp_path / "photos" / "a.png")
    score(model, tmp_path / "photos", tmp_path / "whole", tile=48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    assert score(model, tmp_path / "photos", tmp_path / "out").errors == 1
    assert "is above the limit of 5,000 pixels" in table(tmp_path / "out")[0].error
    assert score(model, tmp_path / "photos", tmp_path / "parts", tile=48, overlays=True).errors == 0
    for name in ("scores.csv", "maps/a.png.tiff"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
