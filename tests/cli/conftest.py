"""The command line as a function, and two photographs."""

import signal
import sys

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast.cli import main


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line here; gives its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glance-fast", *map(str, arguments)])
        # Wide enough that no line of ours or Typer's is broken.
        monkeypatch.setenv("COLUMNS", "80" if "--help" in arguments else "200")
        capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return stop.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def photos(tmp_path):
    """Two images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(draw_part(rng, defect=bool(i))).save(folder / f"{i}.png")
    return folder
