"""The README's commands are the ones that are run, and what CONTRIBUTING.md names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".ci/run").is_file(), reason="needs the repository, not an installed package")
def test_ci_runs_the_test_command_of_the_readme():
    command = next(
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "/pytest" in line
    )
    assert command.strip() in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_files_and_folders_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text))
    assert {"benchmarks/gpu/ahead_of_time.py", "benchmarks/gpu/", "training/fit.py"} <= named
    # Parts of the package are named without its name.
    assert [
        name for name in named if not any((ROOT / top / name).exists() for top in ("", "glance_fast"))
    ] == []
