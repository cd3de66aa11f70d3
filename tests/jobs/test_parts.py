"""Parts of a table: one block has one part, whoever writes it and however often."""

import json

import pytest

from glance_fast.data.store import Folder
from glance_fast.data.table import ScoreRow
from glance_fast.errors import UserError
from glance_fast.jobs.parts import PARTS, fold_parts, part_name, put_rows, read_parts, read_table
from glance_fast.jobs.record import SAME

PROVENANCE = dict.fromkeys(SAME, "one")
OTHER = PROVENANCE | {"model": "another"}
A, B, C = (ScoreRow(name, "1", "0.5", "0") for name in "abc")
BAD = ScoreRow("b", "", "", "", "is empty")


@pytest.fixture
def out(tmp_path):
    folder = Folder(tmp_path / "out")
    folder.write("run.json", json.dumps(PROVENANCE).encode())
    return folder


def test_a_part_that_is_written_again_takes_its_own_place(out):
    put_rows(out, part_name(PROVENANCE, "ab"), [A, BAD])
    put_rows(out, part_name(PROVENANCE, "ab"), [A, B])
    put_rows(out, part_name(PROVENANCE, "c"), [C])
    # Late, of a call with another model.
    put_rows(out, part_name(OTHER, "ab"), [A._replace(score="9")])
    rows, files = read_parts(out, PROVENANCE)
    assert rows == {"a": A, "b": B, "c": C} and len(files) == 3


def test_parts_become_rows_of_the_table(out):
    put_rows(out, "scores.csv", [C, B])
    put_rows(out, part_name(PROVENANCE, "ab"), [A, BAD])
    fold_parts(out, PROVENANCE)
    # What is known of b is better than an error.
    assert read_table(out) == {"c": C, "b": B, "a": A}
    assert out.names() == {"run.json", "scores.csv"} and not (out.path / PARTS).exists()
    fold_parts(out, OTHER)


def test_parts_of_another_provenance_are_not_mixed_in(out):
    put_rows(out, part_name(PROVENANCE, "a"), [A])
    with pytest.raises(UserError, match="was begun with another model"):
        fold_parts(out, OTHER)
    assert read_parts(out, PROVENANCE)[0] == {"a": A}
