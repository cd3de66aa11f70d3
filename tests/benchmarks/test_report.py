"""From a saved run to tables, picture, kept results and the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.report import Row
from benchmarks.tables import replace, rewrite

ROOT = Path(__file__).parents[2]
MACHINE = {"device": "cpu", "processor": "Model 1", "threads": 2, "python": "3.11", "torch": "2.13.0"}


def one(group: str, name: str, median: float, **extra) -> dict:
    """An entry as pytest-benchmark writes it."""
    stats = {"median": median, "iqr": median / 10, "rounds": 5, "mean": 9.0}
    return {"group": group, "name": name, "fullname": f"f.py::{name}", "stats": stats, "extra_info": extra}


def a_run(*benchmarks: dict, **machine) -> dict:
    return {"machine_info": {"glance_fast": {**MACHINE, **machine}}, "benchmarks": list(benchmarks)}


def readme_and_page(readme: Path) -> list[str]:
    """Arguments that keep the repository's own files out of it."""
    return ["--readme", str(readme), "--page", str(readme.with_name("page.md"))]


RUN = a_run(
    one("b", "test_x[slow]", 0.4),
    one("b", "test_x[ours]", 0.1),
    one("a", "test_conv[reference]", 0.3, role="baseline"),
    one("a", "test_conv[plain]", 0.1, role="floor"),
    one("a", "test_conv[compiled]", 0.6),
    one("a", "test_conv", 0.105),
)


class TestTable:
    def test_rows_hold_medians_and_the_machine(self):
        row = report.read(RUN)[1]
        assert row == Row("b", "ours", 0.1, 0.01, 5, "", "Model 1, 2 threads, python 3.11, torch 2.13.0")

    def test_ratios_are_to_the_marked_baseline_or_the_slowest(self):
        lines = report.table(report.read(RUN)).splitlines()
        assert lines[2:] == [
            "| b | ours | 100 ms | 10.0 ms | 4.00 |  |",
            "|  | slow (baseline) | 400 ms | 40.0 ms | 1.00 |  |",
            "| a | plain | 100 ms | 10.0 ms | 3.00 | 1.00 |",
            "|  | conv | 105 ms | 10.5 ms | 2.86 | 1.05 |",
            "|  | reference (baseline) | 300 ms | 30.0 ms | 1.00 | 3.00 |",
            "|  | compiled | 600 ms | 60.0 ms | 0.50 | 6.00 |",
        ]

    @pytest.mark.parametrize(
        ("value", "text"),
        [(12.34, "12.3 s"), (1.0, "1.00 s"), (0.1234, "123 ms"), (2.5e-6, "2.50 µs"), (3e-9, "0.00 µs")],
    )
    def test_times_have_three_digits(self, value, text):
        assert report.seconds(value) == text

    def test_the_digest_has_ours_alone(self):
        run = a_run(
            one("a", "t[ours]", 0.2), one("a", "t[conv2d]", 0.1, role="floor"), one("a", "t[old]", 0.6)
        )
        lines = report.digest([*report.read(run), Row("b", "theirs", 1.0, 0.1, 5, "", "m")]).splitlines()
        assert lines[2:] == ["| a | 200 ms | old: 600 ms | 3.00 | 2.00 |"]
        assert lines[0].endswith("| times as fast | time, floor = 1 |")

    def test_the_short_table_has_its_groups_in_order_and_names_what_is_named(self):
        run = a_run(
            one("a 1", "t[ours]", 0.2), one("a 1", "t[PatchCore]", 0.1), one("a 1", "t[old]", 0.6),
            one("b", "t[ours]", 0.1), one("b", "t[old]", 0.2), one("c", "t[ours]", 0.1),
        )  # fmt: skip
        lines = report.digest(report.read(run), ("b", "a")).splitlines()
        assert lines[2:] == [
            "| b | 100 ms | old: 200 ms | 2.00 |",
            "| a 1 | 200 ms | old: 600 ms; PatchCore: 100 ms | 3.00; 0.50 |",
        ]
        # No group has a floor.
        assert lines[0].endswith("| times as fast |")

    def test_every_group_of_the_short_table_is_there(self):
        kept = [Row(**row) for row in json.loads((report.RESULTS / "cpu.json").read_text(encoding="utf-8"))]
        assert all(any(row.group.startswith(start) for row in kept) for start in report.SHORT)

    def test_many_groups_stand_side_by_side_in_order(self):
        rows = {str(g): [Row(str(g), "x", 1.0, 0.1, 5, "", "m")] * (1 + g % 4) for g in range(60)}
        columns = report.in_columns(rows)
        assert [name for column in columns for name in column] == list(rows)
        lengths = [sum(len(found) + 2 for found in column.values()) for column in columns]
        assert len(columns) == round(sum(lengths) / report.COLUMN) and max(lengths) - min(lengths) < 12
        assert report.in_columns({"a": rows["0"]}) == [{"a": rows["0"]}]

    def test_unknown_roles_and_two_baselines_are_refused(self):
        with pytest.raises(ValueError, match=r"f\.py::test_x.*'best'"):
            report.read(a_run(one("a", "test_x", 1.0, role="best")))
        rows = report.read(a_run(*(one("a", f"test_{i}", 1.0, role="baseline") for i in range(2))))
        with pytest.raises(ValueError, match="group 'a' has 2 baselines"):
            report.table(rows)


class TestFiles:
    def test_a_later_run_replaces_its_groups_alone(self, tmp_path):
        path = tmp_path / "cpu.json"
        report.keep(report.read(RUN), path)
        kept = report.keep(report.read(a_run(one("b", "test_x[new]", 0.2))), path)
        assert {(row.group, row.name) for row in kept} == {
            ("b", "new"), *(("a", name) for name in ("reference", "plain", "compiled", "conv"))
        }  # fmt: skip
        assert [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] == kept

    def test_everything_is_written(self, tmp_path, capsys):
        run, readme = tmp_path / "run.json", tmp_path / "README.md"
        run.write_text(json.dumps(RUN), encoding="utf-8")
        readme.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n", encoding="utf-8")
        marks = "<!-- short -->\n<!-- /short -->\nprose\n<!-- all -->\nold\n<!-- /all -->\n"
        (tmp_path / "page.md").write_text(marks, encoding="utf-8")
        places = [
            "--out",
            f"{tmp_path}/out",
            "--results",
            f"{tmp_path}/results",
            "--readme",
            str(readme),
            "--page",
            f"{tmp_path}/page.md",
        ]
        report.main([str(run), *places])
        text = readme.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- speed -->\n| work |")
        # None of these groups is one of the short table's.
        assert "| b |" not in text and "Measured on Model 1" in text and "old" not in text
        page = (tmp_path / "page.md").read_text(encoding="utf-8")
        assert "| b | ours | 100 ms" in page and "Measured on Model 1" in page
        assert "<!-- /short -->\nprose\n<!-- all -->\n| work |" in page and "old" not in page
        # Without a run, from what is kept.
        readme.write_text("<!-- speed --><!-- /speed -->", encoding="utf-8")
        report.main(places)
        assert f"{readme.read_text(encoding='utf-8')}\nafter\n" == text.removeprefix("before\n")
        assert text.endswith("<!-- /speed -->\nafter\n")
        assert (tmp_path / "out" / "speed.md").read_text(encoding="utf-8").startswith("| work |")
        with Image.open(tmp_path / "out" / "speed.png") as picture:
            assert picture.width > 1000 and len(picture.convert("L").getcolors()) > 10
        assert "| b | ours |" in capsys.readouterr().out

    def test_a_gpu_has_a_file_of_its_own_and_leaves_the_readme(self, tmp_path, capsys):
        run, readme = tmp_path / "run.json", tmp_path / "README.md"
        run.write_text(json.dumps(a_run(one("a", "test_x", 1.0), device="A GPU")), encoding="utf-8")
        readme.write_text("<!-- speed -->\n<!-- /speed -->\n", encoding="utf-8")
        places = [
            "--out",
            f"{tmp_path}/out",
            "--results",
            f"{tmp_path}/results",
            "--readme",
            str(readme),
            "--page",
            f"{tmp_path}/page.md",
        ]
        report.main([str(run), *places])
        assert [p.name for p in (tmp_path / "results").iterdir()] == ["A-GPU.json"]
        assert readme.read_text(encoding="utf-8") == "<!-- speed -->\n<!-- /speed -->\n"

    def test_a_readme_without_marks_is_left_alone(self, tmp_path, capsys):
        run, readme = tmp_path / "run.json", tmp_path / "README.md"
        run.write_text(json.dumps(RUN), encoding="utf-8")
        readme.write_text("nothing\n", encoding="utf-8")
        (tmp_path / "page.md").write_text("nothing\n", encoding="utf-8")
        report.main(
            [
                str(run),
                "--out",
                f"{tmp_path}/o",
                "--results",
                f"{tmp_path}/r",
                "--readme",
                str(readme),
                "--page",
                f"{tmp_path}/page.md",
            ]
        )
        assert readme.read_text(encoding="utf-8") == "nothing\n"
        assert f"{readme} lacks the marks of speed: left as it is" in capsys.readouterr().out

    def test_a_file_is_rewritten_in_all_its_marks_or_not_at_all(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("<!-- a -->1<!-- /a --> <!-- b -->2<!-- /b -->")
        assert not rewrite(page, {"a": "new", "c": "new"}) and "new" not in page.read_text()
        assert rewrite(page, {"a": "3", "b": "4"})
        assert page.read_text() == "<!-- a -->\n3\n<!-- /a --> <!-- b -->\n4\n<!-- /b -->"

    def test_replacing_twice_changes_nothing_more(self):
        once = replace("a <!-- x -->old<!-- /x --> b", "x", "new")
        assert once == "a <!-- x -->\nnew\n<!-- /x --> b" == replace(once, "x", "new")


class TestSuite:
    def collected(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout

    def test_every_benchmark_is_collected(self):
        found = self.collected("benchmarks")
        names = [path.name for path in (ROOT / "benchmarks").glob("bench_*.py")]
        assert names and all(f"{name}::" in found for name in names)

    def test_a_run_can_be_reported(self, tmp_path):
        for name in ("conftest.py", "pytest.ini"):
            text = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
            (tmp_path / name).write_text(text.replace("pythonpath = ..", f"pythonpath = {ROOT}"), "utf-8")
        (tmp_path / "bench_nothing.py").write_text("def test_nothing(benchmark):\n    benchmark(int)\n")
        command = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", "--benchmark-json=run.json", "."]
        # What pytest-xdist tells its processes would reach this one, and nothing is timed beside others.
        alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=True, timeout=300)
        row = report.read(json.loads((tmp_path / "run.json").read_text(encoding="utf-8")))[0]
        assert row.name == "nothing" and row.median > 0 and "threads, python 3" in row.machine
