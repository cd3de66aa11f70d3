"""A server in a thread of this process."""

from __future__ import annotations

import pytest
from clients import serving

from glance_fast.run import load


@pytest.fixture(scope="session")
def model(run_folder):
    pytest.importorskip("fastapi")
    return load(run_folder, "cpu")


@pytest.fixture(scope="module")
def served(model):
    # Two batches side by side.
    with serving(model, threads=2) as running:
        yield running
