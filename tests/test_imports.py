"""Imports go down and never in a circle, and the drawing of them would say so if not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "imports.py"


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("imports", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_arrow_goes_up_and_none_in_a_circle(drawing):
    graph = drawing.graph()
    assert {"model", "engines.dense", "kernels.surround_conv.cpu"} <= graph.keys()
    assert "engines.dense" in graph["model"]
    assert drawing.faults(graph) == []


def test_an_arrow_up_and_a_circle_are_told(drawing):
    assert drawing.faults({"nets.a": {"model"}, "model": set()}) == [
        "nets.a imports model, which stands above it"
    ]
    circle = drawing.faults({"nets.a": {"nets.b"}, "nets.b": {"nets.a"}})
    assert len(circle) == 1 and circle[0].startswith("a circle: nets.")


def test_every_way_to_import_counts(drawing, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import glance_fast.maps\nfrom glance_fast import run\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from glance_fast.model import Glance\ndef f():\n    import glance_fast\n"
    )
    assert drawing.imports(file, {"maps", "run", "model"}) == {"maps", "run", "model", "__init__"}


@pytest.mark.parametrize("line", ["from . import cpu", "from .cpu import run"])
def test_a_relative_import_is_refused_and_not_passed_over(drawing, tmp_path, line):
    file = tmp_path / "module.py"
    file.write_text(f"import math\n{line}\n")
    with pytest.raises(SystemExit, match=r"module\.py:2: a relative import"):
        drawing.imports(file, {"cpu"})
