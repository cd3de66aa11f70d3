"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

# Those marked to be skipped need a folder of photographs.
MODULES = (
    "config",
    "evaluation.metrics",
    "kernels.idw",
    "kernels.partial_conv",
    "kernels.patch_score",
    "kernels.surround_conv",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"glance_fast.{name}")
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
