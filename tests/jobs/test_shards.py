"""Shards: together they are the whole, in any order, stopped at any moment, with others at the same time."""

import itertools
import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.data.table import ScoreRow
from glance_fast.jobs import shards
from glance_fast.jobs.directory import deal_directory, score_directory
from glance_fast.jobs.shards import (
    WHOLE,
    Shard,
    check_folder,
    deal,
    files_of,
    fold,
    join,
    parse_shard,
    parts_in,
)
from glance_fast.jobs.table import Summary, append_rows, read_rows, sort_rows, write_rows
from glance_fast.model import Glance

NAMES = ["2.png", "10.png", "a.bmp", "a.png", "b/a.png", "b/c/1.png", "b/größe 部品.png"]
# Numbers of a run that differ from one to the next.
TIMES = ("seconds", "seconds_longest_shard", "seconds_per_image")


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture
def photos(tmp_path):
    """Seven images, one of them of another shape."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw_part(rng, defect=i % 2 == 0))
        (image.resize((64, 40)) if name == "a.png" else image).save(path)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def one_image_at_a_time(monkeypatch):
    # The last digits follow which images are scored together.
    monkeypatch.setattr(Glance, "at_once", lambda *_: 1)


def score(model, photos, out, shard=WHOLE, **more):
    return score_directory(model, photos, out, shard=shard, **more)


def contents(out):
    """Every file below a folder, but for the times in a run.json."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for name in [name for name in found if name.endswith(".json")]:
        found[name] = {key: value for key, value in json.loads(found[name]).items() if key not in TIMES}
    return found


def whole(model, photos, out, count):
    """What shards must come to: the same scored at once, and how many they were."""
    summary = score(model, photos, out, overlays=True)
    told = contents(out)
    told["run.json"]["shards"] = count
    return summary, told


def names_of(out, shard):
    return list(read_rows(shard.table(out)))


class Steps:
    """Calls something before one chosen step among all reads and writes of ``shards``."""

    def __init__(self, monkeypatch, at, then):
        self.count, self.busy = 0, False

        def counted(original):
            def call(*arguments):
                if not self.busy:
                    self.count += 1
                    if self.count == at:
                        self.busy = True  # whoever comes between is not counted
                        then()
                        self.busy = False
                return original(*arguments)

            return call

        for name in ("read_run", "read_rows", "write_rows", "write_run", "check_provenance", "_remove"):
            monkeypatch.setattr(shards, name, counted(getattr(shards, name)))
        # ... and between two files that go.
        original = shards.files_of

        def listed(out, parts):
            for path in original(out, parts):
                yield counted(lambda path=path: path)()

        monkeypatch.setattr(shards, "files_of", listed)


def every_step(monkeypatch, then, run):
    """Call ``run(step)`` with ``then`` before its first step, its second, and so on to its last."""
    for step in itertools.count(1):
        with monkeypatch.context() as patch:
            steps = Steps(patch, step, partial(then, step))
            run(step)
        if steps.count < step:
            return step - 1


# ---------------------------------------------------------------- which images


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "a/b", "3", "", "2/", "/4", "-1/4", "1/0", "1/4/2", "1.5/4", "1/4\n", "١/٤"]
)
def test_what_is_no_shard(text):
    with pytest.raises(UserError, match=r"expected K/N with K from 1 to N, such as 2/4$") as caught:
        parse_shard(text)
    assert str(caught.value).startswith(f"`shard={text}`: ")


def test_shards_share_all_images_evenly():
    assert parse_shard("2/4") == Shard(2, 4) and str(Shard(2, 4)) == "2/4" and parse_shard("1/1") == WHOLE
    assert Shard(2, 4).of(range(11)) == range(1, 11, 4)
    for count, images in itertools.product((1, 2, 3, 9), (0, 1, 5, 9, 10)):
        shares = [Shard(index, count).of(range(images)) for index in range(1, count + 1)]
        assert sorted(itertools.chain(*shares)) == list(range(images))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_are_told_by_their_names(tmp_path):
    right = ("scores-2-of-4.csv", "run-10-of-12.json", "run-2-of-4.json", "scores.csv", "run.json")
    wrong = (
        "scores-5-of-4.csv",
        "run-0-of-4.json",
        "scores-1-of-2.json",
        "run-1-of-2.csv",
        "run-01-of-2.json",
        "a-run-1-of-2.json",
    )
    for name in right + wrong:
        (tmp_path / name).touch()
    assert parts_in(tmp_path) == [Shard(2, 4), Shard(10, 12)]
    assert parts_in(tmp_path / "none") == []
    assert [path.name for path in files_of(tmp_path, [Shard(2, 4), WHOLE])] == [
        *("scores-2-of-4.csv", "run-2-of-4.json", "scores.csv", "run.json")
    ]


# ---------------------------------------------------------------- together the whole


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_shards_in_any_order_are_the_whole(model, photos, tmp_path, order):
    (photos / "bad.png").write_text("bad")
    out = tmp_path / "out"
    summary, expected = whole(model, photos, tmp_path / "whole", 3)
    for index in order:
        shard, done = Shard(index, 3), []
        append = partial(lambda steps, *step: steps.append(step), done)
        assert not check_folder(out, shard, resume=False)
        score(model, photos, out, shard, overlays=True, progress=append)
        share = len(shard.of(range(8)))
        assert done == [(i, share) for i in range(share + 1)]
        joined = join(out, shard)
        if index != order[-1]:
            assert joined is None and not (out / "scores.csv").exists()
            assert names_of(out, shard) == shard.of([*NAMES, "bad.png"])
    assert joined == summary and summary.errors == 1 and summary.remarks[0].startswith("1 image has another")
    assert contents(out) == expected


def test_run_json_tells_the_time_of_all(model, photos, tmp_path):
    out, told = tmp_path / "out", []
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
        told.append(json.loads(Shard(index, 2).run(out).read_text()))
        join(out, Shard(index, 2))
    assert [run["shard"] for run in told] == ["1/2", "2/2"]
    run = json.loads((out / "run.json").read_text())
    assert run["seconds"] == pytest.approx(told[0]["seconds"] + told[1]["seconds"], abs=0.001)
    assert run["seconds_longest_shard"] == max(part["seconds"] for part in told)
    mean = (told[0]["seconds_per_image"] + told[1]["seconds_per_image"]) / 2
    assert run["seconds_per_image"] == pytest.approx(mean, abs=1e-4)
    assert (run["scored"], run["errors"], run["shards"]) == (7, 0, 2)


def test_shards_on_different_devices(model, photos, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
    run = Shard(1, 2).run(out)
    run.write_text(json.dumps(json.loads(run.read_text()) | {"device": "cuda:1"}))
    join(out, Shard(2, 2))
    assert json.loads((out / "run.json").read_text())["device"] == "cpu, cuda:1"


def test_more_shards_than_images(model, photos, tmp_path):
    out = tmp_path / "out"
    summary, expected = whole(model, photos, tmp_path / "whole", 9)
    for index in (9, 8, *range(1, 8)):
        found = score(model, photos, out, Shard(index, 9), overlays=True)
        joined = join(out, Shard(index, 9))
        if index > 7:
            assert found == Summary(0, 0, 0, ()) and joined is None
            assert Shard(index, 9).table(out).read_text() == "path,score,above,anomalous,error\n"
            assert score(model, photos, out, Shard(index, 9), overlays=True, resume=True) == found
    assert joined == summary and contents(out) == expected


def test_one_of_one_is_no_shard(model, photos, tmp_path):
    score(model, photos, tmp_path / "one", Shard(1, 1))
    score(model, photos, tmp_path / "whole")
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")


# ---------------------------------------------------------------- stopped and resumed


def stop_at(patch, image):
    """Ctrl-C in place of scoring a chosen image, counted from 1; gives the number of scored ones."""
    original, scored = Glance.score, []

    def score_(self, images, engine, precision, roi=None):
        if len(scored) + 1 == image:
            raise KeyboardInterrupt
        scored.append(len(images))
        return original(self, images, engine, precision, roi)

    patch.setattr(Glance, "score", score_)
    return scored


def test_a_stopped_shard_goes_on(model, photos, tmp_path, monkeypatch):
    out, shard = tmp_path / "out", Shard(1, 2)
    summary, expected = whole(model, photos, tmp_path / "whole", 2)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            score(model, photos, out, shard, overlays=True)
    assert names_of(out, shard) == ["2.png", "a.bmp"]
    with shard.table(out).open("a") as file:
        file.write('"b/a.p')
    # Finished or not, it takes all of them.
    score(model, photos, out, Shard(2, 2), overlays=True)
    assert join(out, Shard(2, 2)) is None
    assert not check_folder(out, shard, resume=True)
    with monkeypatch.context() as patch:
        scored = stop_at(patch, 99)
        score(model, photos, out, shard, overlays=True, resume=True)
    assert len(scored) == 2, "what was done is not done again"
    assert join(out, shard) == summary and contents(out) == expected


def test_a_shard_that_finished_but_did_not_join_joins_when_resumed(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    summary, expected = whole(model, photos, tmp_path / "whole", 2)
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2), overlays=True)
    scored = stop_at(monkeypatch, 1)
    again = score(model, photos, out, Shard(1, 2), overlays=True, resume=True)
    assert again.scored == 4 and not scored
    found = join(out, Shard(1, 2))
    assert (found.scored, found.anomalous, found.errors) == (7, summary.anomalous, 0)
    assert contents(out) == expected


def test_resume_of_a_shard_that_is_joined_leaves_all_as_it_is(model, photos, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
        left = {path: path.read_bytes() for path in files_of(out, [Shard(1, 2)])}
        join(out, Shard(index, 2))
    before = contents(out)
    assert check_folder(out, Shard(2, 2), resume=True) and contents(out) == before
    # The joining one was killed while it removed the parts.
    for path, data in left.items():
        path.write_bytes(data)
    assert check_folder(out, Shard(2, 2), resume=True) and contents(out) == before
    with pytest.raises(UserError, match="is not empty: its 2 shards are joined; choose another `out`"):
        check_folder(out, Shard(2, 2), resume=False)
    # And without shards it is a scoring like any other.
    Image.open(photos / "2.png").save(photos / "3.png")
    assert score(model, photos, out, resume=True).scored == 8
    with pytest.raises(UserError, match="was begun without `shard`; `resume=True` without it goes on"):
        check_folder(out, Shard(2, 2), resume=True)


def test_resume_without_shards_goes_on_with_all_of_them(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    summary, expected = whole(model, photos, tmp_path / "whole", 3)
    del expected["run.json"]["shards"]
    score(model, photos, out, Shard(3, 3), overlays=True)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            score(model, photos, out, Shard(1, 3), overlays=True)
    with monkeypatch.context() as patch:
        scored = stop_at(patch, 99)
        found = score(model, photos, out, overlays=True, resume=True)
    assert len(scored) == 4 and (found.scored, found.anomalous) == (summary.scored, summary.anomalous)
    assert contents(out) == expected


# ---------------------------------------------------------------- at the same moment


@pytest.fixture
def finished(model, photos, tmp_path):
    """A folder of three shards that have finished, none joined; what they must come to."""
    (photos / "bad.png").write_text("bad")
    summary, expected = whole(model, photos, tmp_path / "whole", 3)
    for index in (1, 2, 3):
        score(model, photos, tmp_path / "finished", Shard(index, 3), overlays=True)
    return tmp_path / "finished", summary, expected


def copied(folder, to):
    """Tables alone: maps are read by nobody here."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


def tables(contents):
    return {name: value for name, value in contents.items() if "/" not in name}


def test_another_shard_joins_between_any_two_steps(finished, tmp_path, monkeypatch):
    folder, summary, expected = finished
    counts = (summary.scored, summary.anomalous, summary.errors)
    others = []

    def run(step):
        out = copied(folder, tmp_path / f"out{step}")
        found = join(out, Shard(2, 3))
        assert (found.scored, found.anomalous, found.errors) == counts
        assert contents(out) == tables(expected), step

    def other(step):
        others.append(join(tmp_path / f"out{step}", Shard(3, 3)))

    assert every_step(monkeypatch, other, run) >= 18
    assert {(found.scored, found.anomalous, found.errors) for found in others} == {counts}


def kill(step):
    raise KeyboardInterrupt


def test_a_join_that_is_killed_between_any_two_steps_is_done_by_a_resume(
    model, photos, finished, tmp_path, monkeypatch
):
    folder, summary, expected = finished
    ways = set()

    def run(step):
        out = copied(folder, tmp_path / f"out{step}")
        try:
            join(out, Shard(2, 3))
        except KeyboardInterrupt:
            joined = check_folder(out, Shard(2, 3), resume=True)
            ways.add(joined)
            if not joined:
                found = join(out, Shard(2, 3))
                assert (found.scored, found.errors) == (summary.scored, summary.errors)
        assert contents(out) == tables(expected), step

    every_step(monkeypatch, kill, run)
    assert ways == {False, True}


def test_taking_over_that_is_killed_between_any_two_steps_loses_nothing(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    provenance = json.loads(Shard(1, 3).run(folder).read_text())
    names = [*NAMES, "bad.png"]
    rows = {row for index in (1, 2, 3) for row in read_rows(Shard(index, 3).table(folder)).values()}
    gone = ScoreRow("gone.png", "1", "0.5", "0", "")
    append_rows(Shard(2, 3).table(folder), [gone])

    def run(step):
        out = copied(folder, tmp_path / f"out{step}")
        try:
            deal(out, 2, names, provenance)
        except KeyboardInterrupt:
            steps.add(len(parts_in(out)))
            fold(out, provenance)
            deal(out, 5, names, provenance)
            count = 5
        else:
            count = 2
        assert parts_in(out) == [Shard(index, count) for index in range(1, count + 1)]
        assert not (out / "scores.csv").exists() and not (out / "run.json").exists()
        found = [row for part in parts_in(out) for row in read_rows(part.table(out)).values()]
        assert len(found) == len(rows) + 1 and set(found) == rows | {gone}, step
        for part in parts_in(out):
            assert [name for name in names_of(out, part) if name != "gone.png"] == part.of(names)

    steps = set()
    assert every_step(monkeypatch, kill, run) > 20
    assert {0, 1, 2, 3} <= steps


@pytest.mark.parametrize("places", list(itertools.permutations((WHOLE, Shard(1, 2), Shard(1, 3)))))
def test_a_score_goes_before_an_error_wherever_it_stands(tmp_path, places):
    provenance = dict.fromkeys(("model", "images", "engine", "precision"), "")
    good, bad = ScoreRow("a.png", "1.5", "0.05", "0", ""), ScoreRow("a.png", "", "", "", "damaged")
    for place, row in zip(places, (good, bad, bad), strict=True):
        write_rows(place.table(tmp_path), [row])
    fold(tmp_path, provenance)
    assert list(read_rows(tmp_path / "scores.csv").values()) == [good] and parts_in(tmp_path) == []


def test_a_shard_whose_work_is_taken_over_says_so(model, photos, tmp_path):
    out, shard = tmp_path / "out", Shard(1, 2)
    expected = whole(model, photos, tmp_path / "whole", 2)[1]
    del expected["run.json"]["shards"]

    def take_over(done, of):
        if done == 2:
            assert score(model, photos, out, overlays=True, resume=True).scored == 7

    with pytest.raises(UserError, match="joined or removed it meanwhile; `resume=True` without"):
        score(model, photos, out, shard, overlays=True, progress=take_over)
    assert contents(out) == expected


def test_rows_are_added_to_no_table_that_has_gone(tmp_path):
    path = tmp_path / "scores-1-of-2.csv"
    for use in (
        lambda: append_rows(path, [ScoreRow("a", "1", "0.5", "0", "")]),
        lambda: sort_rows(path, ["a"]),
    ):
        with pytest.raises(UserError, match=r"scores-1-of-2\.csv: another command joined or removed it"):
            use()
    assert not path.exists()


# ---------------------------------------------------------------- what does not go together


def test_shards_of_something_else_are_refused(masked_run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: True)
    # One that has engines to choose from.
    model, out = load(masked_run, "cpu"), tmp_path / "out"
    score(model, photos, out, Shard(1, 2), engine="grouped")
    before = contents(out)
    other = Glance(model.config, seed=4)
    other.calibration = model.calibration
    for text, arguments, more in (
        ("another model, or before it was calibrated anew; give the same run", (other, photos), {}),
        ("another folder of images; give the same", (model, photos / "b"), {}),
        ("another `engine`; give the same", (model, photos), {"engine": "dense"}),
        ("another `precision`; give the same", (model, photos), {"precision": "bf16"}),
    ):
        for shard, resume in ((Shard(2, 2), False), (Shard(1, 2), True)):
            with pytest.raises(UserError, match=f"out: was begun with {text}, or use another `out`$"):
                score_directory(*arguments, out, shard=shard, resume=resume, **{"engine": "grouped", **more})
        with pytest.raises(UserError, match=f"{text}, or use another `out`, or `overwrite=True`"):
            deal_directory(*arguments, out, 2, **{"engine": "grouped", **more})
    assert contents(out) == before


def test_shards_that_began_at_the_same_moment_with_something_else_are_not_joined(model, photos, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
    run = Shard(1, 2).run(out)
    run.write_text(json.dumps(json.loads(run.read_text()) | {"model": "0"}))
    before = contents(out)
    with pytest.raises(UserError, match="was begun with another model"):
        join(out, Shard(2, 2))
    assert contents(out) == before


def test_photographs_that_come_between_shards(model, photos, tmp_path):
    out = tmp_path / "out"
    score(model, photos, out, Shard(1, 2), overlays=True)
    image = Image.open(photos / "2.png")
    image.save(photos / "1.png")
    score(model, photos, out, Shard(2, 2), overlays=True)
    # Both have scored the same half of them.
    with pytest.raises(UserError, match="photographs came or went between the shards; `resume=True` without"):
        join(out, Shard(2, 2))
    # One way out ...
    both = copied(out, tmp_path / "both")
    expected = whole(model, photos, tmp_path / "whole", 2)[1]
    score(model, photos, both, resume=True, overlays=True)
    assert tables(contents(both))["scores.csv"] == expected["scores.csv"]
    # ... and another.
    score(model, photos, out, Shard(1, 2), resume=True, overlays=True)
    found = join(out, Shard(1, 2))
    assert (found.scored, found.errors) == (8, 0) and contents(out) == expected


def test_images_that_are_gone_keep_their_scores(model, photos, tmp_path):
    out = tmp_path / "out"
    score(model, photos, out, Shard(1, 2))
    (photos / "2.png").unlink()
    score(model, photos, out, Shard(1, 2), resume=True)
    score(model, photos, out, Shard(2, 2))
    assert join(out, Shard(2, 2)).scored == 7
    assert list(read_rows(out / "scores.csv")) == [*NAMES[1:], "2.png"]


def test_a_part_that_lacks_rows_is_not_joined(model, photos, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
    path = Shard(1, 2).table(out)
    rows = list(read_rows(path).values())
    for damage in (lambda: write_rows(path, rows[:-1]), path.unlink):
        damage()
        with pytest.raises(UserError, match="lacks rows; `shard=1/2` with `resume=True` makes"):
            join(out, Shard(2, 2))
    score(model, photos, out, Shard(1, 2), resume=True)
    assert join(out, Shard(1, 2)).scored == 7 and list(read_rows(out / "scores.csv")) == NAMES


def test_a_resumed_shard_remembers_what_was_stretched(model, photos, tmp_path):
    summary, _ = whole(model, photos, tmp_path / "whole", 2)
    assert summary.remarks[0].startswith("1 image has another")
    out = tmp_path / "out"
    for index in (1, 2):
        score(model, photos, out, Shard(index, 2))
        score(model, photos, out, Shard(index, 2), resume=True)
    assert join(out, Shard(2, 2)).remarks == summary.remarks


def test_shards_without_overlays_are_told_beside_others_with(model, photos, tmp_path):
    out = tmp_path / "out"
    score(model, photos, out, Shard(1, 2), overlays=True)
    summary = score(model, photos, out, Shard(2, 2))
    assert not any("overlays" in remark for remark in summary.remarks)
    told = join(out, Shard(2, 2)).remarks[-1]
    assert told.startswith("1 of 2 shards wrote no overlays; `resume=True` with `overlays=True`")
    assert len(list((out / "overlays").rglob("*.png"))) == 4
    # As it is told.
    score(model, photos, out, overlays=True, resume=True)
    assert len(list((out / "overlays").rglob("*.png"))) == 7


@pytest.mark.parametrize("name", [*shards.FINISHED, *shards.COUNTS])
@pytest.mark.parametrize("damage", ["missing", "of another type"])
def test_a_run_file_that_lacks_what_it_should_say_is_damaged(tmp_path, name, damage):
    run = dict.fromkeys(("model", "images", "engine", "precision", "listing", "device"), "")
    run |= dict.fromkeys(("photographs", "stretched", "small", "scored", "anomalous", "errors"), 0)
    run |= {"seconds": 0.5, "seconds_per_image": None, "overlays": False}
    joined = name in shards.COUNTS
    part = WHOLE if joined else Shard(2, 2)
    if joined:
        run["shards"] = 2
    for path in (Shard(1, 2).run(tmp_path), part.run(tmp_path)):
        path.write_text(json.dumps(run))
    damaged = {key: value for key, value in run.items() if key != name}
    if damage != "missing":
        damaged[name] = [1]
    part.run(tmp_path).write_text(json.dumps(damaged))
    before = contents(tmp_path)
    # A shard's file cannot be overwritten: it would take the others with it.
    end = "use another `out`" + (", or `overwrite=True` in place of `resume=True`" if joined else "")
    with pytest.raises(UserError) as caught:
        shards.joined(tmp_path, Shard(2, 2)) if joined else join(tmp_path, Shard(2, 2))
    assert str(caught.value) == f"{part.run(tmp_path)}: damaged; {end}"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("shard", [WHOLE, Shard(2, 3)])
def test_overwriting_is_no_advice_for_a_shards_files(tmp_path, shard):
    shard.table(tmp_path).write_text("name;value\n")
    shard.run(tmp_path).write_text("{")
    for read in (lambda: read_rows(shard.table(tmp_path)), lambda: shards.read_run(shard.run(tmp_path))):
        with pytest.raises(UserError, match="; use another `out`") as caught:
            read()
        assert ("overwrite" in str(caught.value)) == (shard == WHOLE)


@pytest.mark.parametrize(
    ("there", "resume", "message"),
    [
        (["run-1-of-3.json"], False, "holds shard 1/3; give `shard=K/3` there, or choose another `out`"),
        (["scores-1-of-3.csv"], True, "holds shard 1/3; give `shard=K/3` there, or choose another `out`"),
        (["run-2-of-4.json"], False, "is not empty: shard 2/4 was begun there; `resume=True`"),
        (["scores-2-of-4.csv"], False, "is not empty: shard 2/4 was begun there; `resume=True`"),
        (["run-1-of-4.json"], True, "nothing of shard 2/4 to resume there; leave `resume` away to begin"),
        ([], True, "nothing of shard 2/4 to resume there; leave `resume` away to begin"),
        (["run.json", "scores.csv"], False, "was begun without `shard`; `resume=True` without it goes on"),
        (["run.json", "scores.csv"], True, "was begun without `shard`; `resume=True` without it goes on"),
        (["scores.csv"], False, "is not empty: holds 'scores.csv', which no shard wrote; choose another"),
        (["maps"], False, "is not empty: holds 'maps', which no shard wrote; choose another `out`"),
        (["run-1-of-4.json", "notes"], False, "is not empty: holds 'notes', which no shard wrote; choose"),
    ],
)
def test_folders_that_a_shard_cannot_share(tmp_path, there, resume, message):
    (tmp_path / "out").mkdir()
    for name in there:
        run = {"model": "", "images": "", "engine": "", "precision": ""}
        (tmp_path / "out" / name).write_text(json.dumps(run))
    before = contents(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        check_folder(tmp_path / "out", Shard(2, 4), resume)
    assert str(caught.value).startswith(f"{tmp_path}/out: {message}")
    assert contents(tmp_path / "out") == before


def test_another_shard_begins_while_the_folder_is_looked_at(tmp_path, monkeypatch):
    out, original = tmp_path / "out", shards.read_run

    def read_run(path):
        for name in ("run-3-of-4.json", "scores-3-of-4.csv", "maps"):
            (out / name).touch()
        return original(path)

    monkeypatch.setattr(shards, "read_run", read_run)
    for name in (None, ".tmp-0123456789abcdef.json", "run-1-of-4.json"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if name:
            (out / name).touch()
        assert not check_folder(out, Shard(2, 4), resume=False)


def test_folders_that_a_shard_can_share(tmp_path):
    assert not check_folder(tmp_path / "none", Shard(2, 4), resume=False)
    out = tmp_path / "out"
    out.mkdir()
    # What another shard is writing at this moment.
    (out / ".tmp-0123456789abcdef.json").touch()
    assert not check_folder(out, Shard(2, 4), resume=False)
    for name in ("run-1-of-4.json", "scores-1-of-4.csv", "maps", "overlays"):
        (out / name).touch()
    assert not check_folder(out, Shard(2, 4), resume=False)
