"""The README's commands are the ones that are run."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".ci/run").is_file(), reason="needs the repository, not an installed package")
def test_ci_runs_the_test_command_of_the_readme():
    command = next(
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "/pytest" in line
    )
    assert command.strip() in (ROOT / ".ci/run").read_text(encoding="utf-8")
