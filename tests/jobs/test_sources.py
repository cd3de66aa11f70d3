"""Images as they come: folders that fill, standard input, videos."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast.errors import ImageError, UserError
from glance_fast.jobs import sources
from glance_fast.jobs.sources import frames_of, images_of, open_source, paths_of


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(sources, "MOMENT", 0.02)


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_part(np.random.default_rng(0))).save(path)
    return path


class Watched:
    """A folder that is watched; ``next`` gives the names that come, as many as are asked for."""

    def __init__(self, folder, **how):
        self.said = []
        self.source = open_source(str(folder), say=self.said.append, **how)

    def next(self, count):
        return [next(self.source.arrivals).name for _ in range(count)]

    def rest(self, looks=6):
        """What comes in the next looks, and the end of the watching."""
        stop = self.source.stop
        threading.Timer(looks * sources.MOMENT, stop.set).start()
        return [arrival.name for arrival in self.source.arrivals]


def test_new_images_come_once_and_those_from_before_do_not(tmp_path):
    draw(tmp_path / "old.png")
    watched = Watched(tmp_path)
    draw(tmp_path / "a.png")
    draw(tmp_path / "deep/er/b.jpg")
    draw(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").touch()
    assert sorted(watched.next(2)) == ["a.png", "deep/er/b.jpg"]
    draw(tmp_path / "c.png")
    assert watched.next(1) == ["c.png"]
    assert watched.rest() == []


def test_those_from_before_come_when_asked_for_in_the_order_of_their_making(tmp_path):
    for place, name in enumerate("cab"):
        os.utime(draw(tmp_path / f"{name}.png"), (place, place))
    assert Watched(tmp_path, take_all=True).next(3) == ["c.png", "a.png", "b.png"]


def test_an_image_that_is_still_written_is_waited_for(tmp_path):
    whole = draw(tmp_path / "whole.bin.png").read_bytes()
    watched = Watched(tmp_path)
    growing = tmp_path / "growing.png"
    done = threading.Event()

    def write():
        with growing.open("wb") as file:
            for start in range(0, len(whole), 400):
                file.write(whole[start : start + 400])
                file.flush()
                done.wait(sources.MOMENT / 2)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert watched.next(1) == ["growing.png"]
    assert done.is_set(), "not before it was whole"
    thread.join()


def test_renamed_into_place_and_gone_and_come_again(tmp_path):
    watched = Watched(tmp_path)
    draw(tmp_path / ".half.png").rename(tmp_path / "a.png")
    assert watched.next(1) == ["a.png"]
    (tmp_path / "a.png").unlink()
    threading.Timer(5 * sources.MOMENT, lambda: draw(tmp_path / "a.png")).start()
    assert watched.next(1) == ["a.png"]


def test_a_folder_that_is_away_for_a_while_is_waited_for(tmp_path):
    folder, away = tmp_path / "in", tmp_path / "away"
    draw(folder / "old.png")
    watched = Watched(folder)
    folder.rename(away)

    def back():
        away.rename(folder)
        draw(folder / "new.png")

    threading.Timer(8 * sources.MOMENT, back).start()
    assert watched.next(1) == ["new.png"], "what was there before is not new"
    assert watched.said == [f"{folder}: no such folder; waiting for it"]
    assert watched.rest() == []


def test_a_broken_link_is_an_image_that_is_not_there(tmp_path):
    watched = Watched(tmp_path)
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    assert watched.next(1) == ["a.png"]


def paths(data: bytes) -> list[str]:
    ours, theirs = os.pipe()

    def write():
        with os.fdopen(theirs, "wb") as file:
            file.write(data)

    threading.Thread(target=write).start()
    try:
        return [str(arrival.image) for arrival in paths_of(ours)]
    finally:
        os.close(ours)


def test_paths_are_lines(monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 10)
    assert paths(b"") == []
    assert paths(b"a.png\n\nb c.png\r\nlast.png") == ["a.png", "b c.png", "last.png"]
    assert paths("ä.png\n".encode() + b"\xff.png\n") == ["ä.png", os.fsdecode(b"\xff.png")]
    with pytest.raises(UserError, match="standard input: a line is too long; expected paths"):
        paths(b"x" * 100)


def test_standard_input_that_is_closed():
    with pytest.raises(UserError, match="standard input: cannot be read: Bad file descriptor"):
        list(paths_of(987))


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        ("none", {}, "none: no such folder, video or camera"),
        ("one.png", {}, "one.png: is one image; give a folder, a video, or - and its path"),
        ("text.mp4", {}, r"text.mp4: no video or camera that can be read \("),
        ("empty.mp4", {}, r"empty.mp4: no video or camera that can be read \("),
        ("/dev/null", {}, r"/dev/null: no video or camera that can be read \("),
        ("rtsp://127.0.0.1:9/x", {}, r"rtsp://127.0.0.1:9/x: no video or camera that can be read \(Conn"),
        (".", {"every": 2}, "`every`: is for videos and cameras"),
        ("-", {"every": 2}, "`every`: is for videos and cameras"),
        ("-", {"take_all": True}, "`all`: is for a folder, and - is none"),
    ],
)
def test_what_is_no_source(tmp_path, monkeypatch, source, how, message):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    draw(Path("one.png"))
    Path("text.mp4").write_text("no video" * 100)
    Path("empty.mp4").touch()
    with pytest.raises(UserError, match=message):
        open_source(source, **how)


def test_without_pyav_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=r"a.mp4: for videos .* needed: pip install 'glance-fast\[video\]'"):
        open_source(str(tmp_path / "a.mp4"))


@pytest.fixture
def video(tmp_path):
    """A lossless video, and its ten frames."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    frames = [draw_part(rng) for _ in range(10)]
    path = tmp_path / "odd:name.mov"
    with av.open(f"file:{path}", "w", format="mov") as file:
        stream = file.add_stream("png", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path, frames


def test_frames_of_a_video(video):
    path, frames = video
    found = list(open_source(str(path)).arrivals)
    assert [arrival.name for arrival in found] == [f"{path}#{i}" for i in range(10)]
    for arrival, frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(arrival.image, frame)
    few = list(open_source(str(path), every=4).arrivals)
    assert [arrival.name for arrival in few] == [f"{path}#{i}" for i in (0, 4, 8)]
    np.testing.assert_array_equal(few[1].image, frames[4])


def test_a_damaged_frame_is_told_and_the_next_ones_come(video):
    path, frames = video
    data = bytearray(path.read_bytes())
    places = [i for i in range(len(data)) if data[i : i + 4] == b"IHDR"]
    data[places[3] : places[3] + 20] = bytes(20)
    path.write_bytes(data)
    found = list(open_source(str(path)).arrivals)
    bad = [arrival for arrival in found if isinstance(arrival.image, ImageError)]
    assert [arrival.name for arrival in bad] == [f"{path}#3"]
    assert bad[0].image.reason.startswith("the video is damaged or breaks off there: ")
    good = [arrival.image for arrival in found if arrival not in bad]
    np.testing.assert_array_equal(good, frames[:3] + frames[4:])


def test_frames_are_upright(video):
    _, frames = video

    class Turned:
        rotation = -90

        def to_ndarray(self, format):
            assert format == "rgb24"
            return frames[0][:, :40]

    class Packet:
        def decode(self):
            return [Turned()]

    class Container:
        class streams:
            video = ("first",)

        def demux(self, stream):
            assert stream == "first"
            return iter([Packet()])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    (arrival,) = frames_of(Container(), "x", 1)
    # A quarter clockwise.
    np.testing.assert_array_equal(arrival.image, np.rot90(frames[0][:, :40], 3))


def test_a_sound_is_no_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(UserError, match=r"sound\.wav: there is no video in it"):
        open_source(str(path))


def test_looking_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    waits = []
    stop = threading.Event()

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls):
            cls.now += 1.5
            return cls.now

    monkeypatch.setattr(sources, "time", Clock)
    monkeypatch.setattr(stop, "wait", lambda seconds: (waits.append(seconds), stop.set()))
    assert list(images_of(tmp_path, set(), stop, print)) == []
    assert waits == [pytest.approx(6.0)], "four times as long as looking took"


def test_a_copy_of_a_folder_comes_whole(tmp_path, parts):
    watched = Watched(tmp_path)
    shutil.copytree(parts / "train", tmp_path / "train")
    assert len(set(watched.next(12))) == 12
