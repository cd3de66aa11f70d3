"""A folder of results: what is kept, what is gone on with, and what is refused."""

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

import glance_fast
from glance_fast.errors import UserError
from glance_fast.experiments.study import RECORD, RESULTS, resumable, study

COLUMNS = {"name": str, "count": int, "pro": float}
SETTINGS = {"data": "plates", "steps": [60, 60], "lambda_s": 0.8}
ROWS = [{"name": "a,b", "count": 3, "pro": 0.1}, {"name": "c", "count": None, "pro": None}]


def begin(out, name="table", settings=SETTINGS, columns=COLUMNS, **more):
    return study(out, name, settings, columns, **more)


def refused(out, **more):
    """The line that refuses; nothing in the folder changes, and nothing is worked on."""
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError) as caught, begin(out, **more):
        pytest.fail("must not be reached")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def out(tmp_path):
    """A folder with both rows."""
    with begin(tmp_path / "out") as kept:
        kept.add(*ROWS)
    return tmp_path / "out"


# ---------------------------------------------------------------- what is kept


def test_rows_come_back_as_they_were(out):
    with begin(out, resume=True) as kept:
        assert kept.rows == ROWS
        assert [type(value) for value in kept.rows[0].values()] == [str, int, float]


def test_the_table_has_the_columns_in_their_order_and_no_others(tmp_path):
    with begin(tmp_path) as kept:
        kept.add({"pro": 0.5, "more": 1, "name": "x"})
    assert (tmp_path / RESULTS).read_text() == "name,count,pro\nx,,0.5\n"


def test_numbers_keep_all_their_digits(tmp_path):
    values = [0.1 + 0.2, 1e-300, -1 / 3, float("inf")]
    with begin(tmp_path, columns={"pro": float}) as kept:
        kept.add(*({"pro": value} for value in values))
    with begin(tmp_path, columns={"pro": float}, resume=True) as kept:
        assert [row["pro"] for row in kept.rows] == values


def test_every_row_is_in_the_file_before_the_next_is_measured(tmp_path):
    with begin(tmp_path) as kept:
        for number, row in enumerate(ROWS, start=1):
            kept.add(row)
            with (tmp_path / RESULTS).open(newline="") as file:
                assert len(list(csv.DictReader(file))) == number


def test_a_row_is_found_by_some_of_its_values(out):
    with begin(out, resume=True) as kept:
        assert kept.find(name="c") is kept.rows[1]
        assert kept.find(name="a,b", count=3) is kept.rows[0]
        assert kept.find(name="a,b", count=4) is None and kept.find(nothing=1) is None


def test_the_record_says_what_it_was_made_of(out):
    record = json.loads((out / RECORD).read_text())
    assert record == {"experiment": "table", "settings": SETTINGS, "glance_fast": glance_fast.__version__}


def test_resumable_once_it_was_begun(tmp_path):
    assert not resumable(tmp_path)
    with begin(tmp_path):
        assert resumable(tmp_path)


# ---------------------------------------------------------------- going on


def test_nothing_is_measured_twice(out):
    with begin(out, resume=True) as kept:
        missing = [name for name in ("a,b", "c", "d") if kept.find(name=name) is None]
        assert missing == ["d"]
        kept.add({"name": "d"})
    with begin(out, resume=True) as kept:
        assert [row["name"] for row in kept.rows] == ["a,b", "c", "d"]


def test_settings_are_compared_as_json_has_them(tmp_path):
    with begin(tmp_path, settings={"steps": (60, 60), 3: None}):
        pass
    with begin(tmp_path, settings={"steps": [60, 60], "3": None}, resume=True) as kept:
        assert kept.rows == []


def test_another_version_goes_on(out):
    record = json.loads((out / RECORD).read_text())
    (out / RECORD).write_text(json.dumps(record | {"glance_fast": "0.0.1"}))
    with begin(out, resume=True) as kept:
        assert kept.rows == ROWS
    assert json.loads((out / RECORD).read_text())["glance_fast"] == "0.0.1", "as it was begun"


def test_killed_before_the_first_row(out):
    (out / RESULTS).unlink()
    with begin(out, resume=True) as kept:
        assert kept.rows == [] and kept.find(name="c") is None


def test_a_failure_keeps_the_rows_before_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(tmp_path) as kept:
        kept.add(ROWS[0])
        raise KeyboardInterrupt
    with begin(tmp_path, resume=True) as kept:
        assert kept.rows == ROWS[:1]


def _killed_between_rows(out):
    with begin(out) as kept:
        kept.add(ROWS[0])
        # What a kill in the midst of the next one leaves.
        (out / ".tmp-0123456789abcdef.csv").write_text("name,cou")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_between_rows_loses_none(tmp_path):
    out = tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=_killed_between_rows, args=(out,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with begin(out, resume=True) as kept:
        assert kept.rows == ROWS[:1] and not list(out.glob(".tmp-*"))
        kept.add(ROWS[1])
    with begin(out, resume=True) as kept:
        assert kept.rows == ROWS


# ---------------------------------------------------------------- beginning anew


def test_overwrite_begins_anew_and_takes_what_is_ours(out):
    (out / "table.png").write_text("of an earlier one")
    (out / "runs").mkdir()
    (out / "runs" / "model").write_text("of an earlier one")
    with begin(out, settings={"data": "other"}, ours=("table.png", "runs"), overwrite=True) as kept:
        assert kept.rows == [] and sorted(path.name for path in out.iterdir()) == [RECORD]
    assert json.loads((out / RECORD).read_text())["settings"] == {"data": "other"}


def test_overwrite_leaves_what_is_not_ours(out):
    (out / "notes.txt").write_text("mine")
    assert "holds 'notes.txt', which this command did not write" in refused(out, overwrite=True)


def test_a_folder_with_something_in_it_is_refused(out, tmp_path):
    assert refused(out).startswith(f"{out}: is not empty; `overwrite=True` replaces what is in it")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file; `out` names a folder"), begin(file):
        pytest.fail("must not be reached")


def test_no_folder_is_left_where_nothing_came_of_it(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"), begin(tmp_path / "a" / "b", resume=True):
        pytest.fail("must not be reached")
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- what is refused


def test_resume_and_overwrite_exclude_each_other(out):
    assert refused(out, resume=True, overwrite=True) == "`resume` and `overwrite` exclude each other"


def test_nothing_to_resume(tmp_path):
    line = refused(tmp_path, resume=True)
    assert line == f"{tmp_path}: nothing to resume there; leave `resume` away to begin"


def test_another_experiment(out):
    line = refused(out, name="curve", resume=True)
    assert line == f"{out}: holds the experiment 'table', not 'curve'; choose another `out`"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**SETTINGS, "lambda_s": 0.5}, "lambda_s = 0.8, not 0.5"),
        ({**SETTINGS, "data": "Bücher"}, 'data = "plates", not "B\\u00fccher"'),
        ({**SETTINGS, "steps": [60]}, "steps = [60, 60], not [60]"),
        ({k: v for k, v in SETTINGS.items() if k != "data"}, 'data = "plates", not null'),
        ({**SETTINGS, "seed": 1}, "seed = null, not 1"),
    ],
)
def test_other_settings(out, settings, said):
    line = refused(out, settings=settings, resume=True)
    assert line == f"{out}: was begun with {said}; give the same, or choose another `out`"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"experiment": "table"}', '{"experiment": "table", "settings": 1}', "[" * 9999],
)
def test_a_damaged_record(out, text):
    (out / RECORD).write_text(text)
    assert refused(out, resume=True) == f"{out / RECORD}: damaged; `overwrite=True` begins anew"


@pytest.mark.parametrize(
    "table",
    [
        "",
        "name,count\na,3\n",
        "name,count,pro,more\na,3,0.1,1\n",
        "name,pro,count\na,0.1,3\n",
        "name,count,pro\na,many,0.1\n",
        "name,count,pro\na,3.5,0.1\n",
        "name,count,pro\na,3\n",
        "name,count,pro\na\n",
        'name,count,pro\n"a,3,0.1\n',
        "name,count,pro\na,3,0.1,too much\n",
    ],
)
def test_a_damaged_table(out, table):
    (out / RESULTS).write_text(table)
    line = refused(out, resume=True)
    assert line == f"{out / RESULTS}: damaged, or of another version; `overwrite=True` begins anew"


def test_a_row_that_ends_early_is_no_text(tmp_path):
    with begin(tmp_path, columns={"count": int, "name": str}):
        (tmp_path / RESULTS).write_text("count,name\n3\n")
    with (
        pytest.raises(UserError, match="damaged"),
        begin(tmp_path, columns={"count": int, "name": str}, resume=True),
    ):
        pytest.fail("must not be reached")


@pytest.mark.parametrize("name", [RECORD, RESULTS])
@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"name\x00,count,pro\n"])
def test_bytes_that_are_no_text(out, name, damage):
    (out / name).write_bytes(damage)
    assert refused(out, resume=True).startswith(f"{out / name}: damaged")


@pytest.mark.parametrize("name", [RECORD, RESULTS])
def test_a_file_that_cannot_be_read(out, name, monkeypatch):
    opened = Path.open

    def forbidden(path, *arguments, **more):
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError) as caught, begin(out, resume=True):
        pytest.fail("must not be reached")
    assert str(caught.value) == f"{out / name}: cannot be read: Permission denied"
