"""Images scored as they come."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import draw_part

from glance_fast.data.roi import resize_scores
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.jobs.sources import Arrival, Source, open_source
from glance_fast.jobs.watch import MANY, Backlog, add_lines, watch
from glance_fast.model import NOT_FINITE
from glance_fast.run import load
from glance_fast.tiles import score_photograph


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


def source_of(arrivals, limit=None, drops=False):
    return Source(iter(arrivals), threading.Event(), limit, drops)


def arrival(name, image):
    return Arrival(name, time.monotonic(), image)


def parts_drawn(count):
    rng = np.random.default_rng(0)
    return [draw_part(rng, defect=i % 3 == 0) for i in range(count)]


def test_lines_are_what_the_model_says(model, tmp_path):
    images = parts_drawn(11)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    came = [arrival("a.png", tmp_path / "a.png"), *(arrival(str(i), images[i]) for i in range(1, 11))]
    lines = list(watch(model, source_of(came)))
    assert [line.path for line in lines] == ["a.png", *map(str, range(1, 11))]
    expected = model.score(images).scores
    np.testing.assert_allclose([line.score for line in lines], expected, rtol=1e-4, atol=1e-4)
    for line in lines:
        assert line.above == pytest.approx(model.calibration.share_above(line.score), rel=1e-2)
        assert line.anomalous == (line.score > model.calibration.threshold)
        assert line.error is None and 0 <= line.milliseconds < 60_000
        assert json.loads(line.to_json()) == line.__dict__


TOO_LONG = "its name is too long for that of an overlay; rename it"


def test_overlays(model, tmp_path):
    images, out = parts_drawn(2), tmp_path / "new/overlays"
    large = np.concatenate([images[0], images[1]], axis=1)
    Image.fromarray(large).save(tmp_path / "a.png")
    came = [
        arrival(str(tmp_path / "a.png"), tmp_path / "a.png"),
        arrival("deep/../er/b.jpg", images[1]),
        arrival("bad", ImageError("bad", "is damaged")),
        arrival("x" * 253, images[0]),
        arrival("clip.mp4#12", images[0]),
    ]
    lines = list(watch(model, source_of(came), overlays=out))
    assert [line.error for line in lines] == [None, None, "is damaged", TOO_LONG, None]
    written = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    absolute = Path(*tmp_path.parts[1:], "a.png.png")
    assert written == {absolute, Path("deep/er/b.jpg.png"), Path("clip.mp4#12.png")}
    expected = overlay(large, model.score([large]).maps[0], *display_range(model.calibration))
    np.testing.assert_allclose(np.asarray(Image.open(out / absolute)).astype(int), expected, atol=4)


def test_an_overlay_is_never_written_through_a_link(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    source = source_of([arrival("sub/a", parts_drawn(1)[0])])
    with pytest.raises(UserError, match=r"out/sub/a\.png: a link in .*out leads out of it"):
        list(watch(model, source, overlays=tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_overlays_that_would_be_taken_for_images(model, tmp_path):
    source = open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"out: lies in .* would be taken for new images; choose"):
        next(watch(model, source, overlays=tmp_path / "deep/out"))


def test_a_model_of_tiles_sees_large_images(run_folder, tmp_path):
    model = load(run_folder, "cpu")
    model.config = dataclasses.replace(model.config, tile=48)
    large = np.concatenate(parts_drawn(2), axis=1)
    came = [arrival("bad", ImageError("bad", "is damaged")), arrival("a", large)]
    bad, line = watch(model, source_of(came), overlays=tmp_path / "out")
    score_map, score = score_photograph(model, large)
    assert bad.error == "is damaged" and line.error is None
    assert line.score == pytest.approx(score, rel=1e-6)
    picture = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(picture, overlay(large, score_map, *display_range(model.calibration)))


def test_what_is_damaged_has_a_line_and_the_others_go_on(model, tmp_path):
    good = parts_drawn(2)
    (tmp_path / "bad.png").write_text("no image")
    came = [
        arrival("0", good[0]),
        arrival("bad", tmp_path / "bad.png"),
        arrival("gone", tmp_path / "gone.png"),
        arrival("frame", ImageError("frame", "is damaged")),
        arrival("nul", Path("a\0b.png")),
        arrival("1", good[1]),
    ]
    lines = {line.path: line for line in watch(model, source_of(came))}
    assert list(lines) == ["0", "bad", "gone", "frame", "nul", "1"]
    assert lines["bad"].error.startswith("is not an image of a kind that is read")
    assert lines["gone"].error == "no such file" and lines["frame"].error == "is damaged"
    assert "null" in lines["nul"].error
    assert all(lines[name].score is None and lines[name].anomalous is None for name in ("bad", "gone"))
    np.testing.assert_allclose(
        [lines["0"].score, lines["1"].score], model.score(good).scores, rtol=1e-4, atol=1e-4
    )


def test_scores_that_are_not_finite_are_an_error(model, monkeypatch):
    images = parts_drawn(2)
    score = model.score

    def odd(*arguments):
        result = score(*arguments)
        result.scores[:] = np.nan
        return result

    monkeypatch.setattr(model, "score", odd)
    assert [line.error for line in watch(model, source_of([arrival("0", images[0])]))] == [NOT_FINITE]


def test_a_model_without_a_threshold_calls_nothing_anomalous(run_folder):
    plain = load(run_folder, "cpu")
    object.__setattr__(plain.calibration, "threshold", math.inf)
    (line,) = watch(plain, source_of([arrival("0", parts_drawn(1)[0])]))
    assert line.anomalous is None and line.score is not None


def test_few_are_decoded_ahead(model, monkeypatch):
    """Memory does not grow with what waits: the decoder keeps a batch and one more."""
    monkeypatch.setattr(model, "at_once", lambda precision="auto": 2)
    decoded, images = [], parts_drawn(1)
    prepare, free = model.prepare, threading.Event()
    monkeypatch.setattr(model, "prepare", lambda *a: decoded.append(1) or prepare(*a))
    score = model.score
    monkeypatch.setattr(model, "score", lambda *a: free.wait(10) and score(*a))
    lines = watch(model, source_of([arrival(str(i), images[0]) for i in range(40)]))
    threading.Timer(0.3, free.set).start()
    next(lines)
    # Those that are scored, those that are ready, the one for which there is no room: each is decoded twice,
    # for scoring prepares what is prepared.
    assert len(decoded) <= 2 * (2 + 2 + 1)
    assert len(list(lines)) == 39


def test_a_camera_drops_and_says_how_many(model, monkeypatch):
    images, said = parts_drawn(1), []
    score = model.score
    began = threading.Event()

    def slow(*arguments):
        began.set()
        time.sleep(0.05)
        return score(*arguments)

    monkeypatch.setattr(model, "score", slow)
    monkeypatch.setattr(model, "at_once", lambda precision="auto": 1)

    def frames():
        yield arrival("0", images[0])
        began.wait(10)
        for i in range(1, 200):
            yield arrival(str(i), images[0])

    lines = list(watch(model, source_of(frames(), limit=3, drops=True), say=said.append))
    names = [int(line.path) for line in lines]
    assert names == sorted(names) and names[0] == 0 and names[-1] == 199, "the newest are kept"
    dropped = 200 - len(lines)
    assert dropped > 150
    assert "frames dropped so far" in said[0] and "`every`" in said[0]
    assert said[-1].startswith(f"{dropped} frames were dropped")


def test_a_folder_drops_nothing_and_says_how_many_wait(model, monkeypatch):
    images, said = parts_drawn(1), []
    monkeypatch.setattr(model, "at_once", lambda precision="auto": 1)
    score = model.score
    monkeypatch.setattr(model, "score", lambda *a: time.sleep(0.01) or score(*a))
    lines = list(watch(model, source_of(arrival(str(i), images[0]) for i in range(60)), say=said.append))
    assert [int(line.path) for line in lines] == list(range(60))
    assert said[0].startswith("does not keep up: ") and "images wait, the first one for 0 s" in said[0]
    assert said[-1] == f"caught up: {MANY - 1} wait"


def test_words_for_what_waits():
    backlog = Backlog(together=8)
    assert backlog.line(0, 15, 1.0, 0) is None
    assert backlog.line(1, 16, 2.5, 0) == "does not keep up: 16 images wait, the first one for 2 s"
    assert backlog.line(2, 90, 3, 0) is None, "said a moment ago"
    assert backlog.line(20, 31, 3, 0) is None, "not twice as many"
    assert backlog.line(21, 32, 9, 0) == "does not keep up: 32 images wait, the first one for 9 s"
    assert backlog.line(22, 15, 1, 0) == "caught up: 15 wait"
    assert backlog.line(40, 20, 1, 0) == "does not keep up: 20 images wait, the first one for 1 s"
    assert backlog.line(60, 0, 0, 7) == "caught up: 0 wait"
    assert "7 frames dropped so far" in backlog.line(61, 0, 0, 7)
    assert backlog.line(80, 0, 0, 7) is None
    assert Backlog(8).line(0, 0, 0, 7).startswith("does not keep up: 7 frames dropped so far")
    assert Backlog(64).line(0, 127, 1, 0) is None and Backlog(64).line(0, 128, 1, 0) is not None


def test_what_the_source_raises_is_raised_after_what_came(model):
    def breaks():
        yield arrival("0", parts_drawn(1)[0])
        raise UserError("the disk is gone")

    lines = watch(model, source_of(breaks()))
    assert next(lines).path == "0"
    with pytest.raises(UserError, match="the disk is gone"):
        next(lines)


def test_closing_ends_what_runs_beside_it(model):
    image, stopped = parts_drawn(1)[0], threading.Event()

    def endless():
        try:
            while True:
                yield arrival("x", image)
        finally:
            stopped.set()

    before = threading.active_count()
    source = source_of(endless(), limit=4)
    lines = watch(model, source)
    next(lines)
    lines.close()
    assert source.stop.is_set()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_wrong_engines_are_refused_before_anything_is_taken(model):
    source = source_of([])
    with pytest.raises(UserError, match="'dense' is for masked nets"):
        next(watch(model, source, engine="dense"))


def test_lines_are_added_after_those_that_are_there(tmp_path):
    path = tmp_path / "new/lines.jsonl"
    for text in ("a", "b"):
        with add_lines(path) as add:
            add(text)
            assert path.read_text().endswith(f"{text}\n"), "at once"
    with path.open("a") as file:
        file.write("half")
    with add_lines(path) as add:
        add("ö")
    assert path.read_text(encoding="utf-8") == "a\nb\nhalf\nö\n"
    with pytest.raises(UserError, match="new: cannot be written: Is a directory"), add_lines(path.parent):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named():
    with (
        pytest.raises(UserError, match="/dev/full: cannot be written: No space left"),
        add_lines(Path("/dev/full")) as add,
    ):
        add("x")


def test_a_region_of_interest_holds_for_what_comes(run_folder, tmp_path):
    model = load(run_folder, "cpu")
    model.inside = torch.zeros(64, 64, dtype=torch.bool)
    model.inside[8:40, 8:40] = True
    large = [np.asarray(Image.fromarray(image).resize((128, 128))) for image in parts_drawn(2)]
    lines = list(watch(model, source_of([arrival(str(i), large[i]) for i in range(2)]), overlays=tmp_path))
    found = model.score(large)
    np.testing.assert_allclose([line.score for line in lines], found.scores, rtol=1e-4, atol=1e-4)
    for i, image in enumerate(large):
        picture = np.asarray(Image.open(tmp_path / f"{i}.png"))
        expected = overlay(
            image,
            resize_scores(found.maps[i], (128, 128), found.inside[i]),
            *display_range(model.calibration),
        )
        np.testing.assert_allclose(picture.astype(int), expected, atol=4)
        # Nothing is drawn outside, but for the lines around what lies at the border.
        assert (picture[:8] == image[:8]).all() and (picture[90:] == image[90:]).all()
