"""Names and rows as every table has them."""

from pathlib import Path

from glance_fast.data.table import printable, write_table


def test_names_that_are_no_utf8_can_be_shown_and_differ():
    assert printable("a\udcffb") == "a\\udcffb" != printable("a\udcfeb")
    assert printable("Löcher") == "Löcher" and printable(Path("a") / "b") == "a/b"


def test_a_table_has_a_header_and_quotes_what_needs_it(tmp_path):
    write_table(tmp_path / "t.csv", ("path", "score"), [('a,"b"', 1), ("c\nd", "")])
    assert (tmp_path / "t.csv").read_bytes() == b'path,score\n"a,""b""",1\n"c\nd",\n'
