"""A trained model as files."""

import pytest

import glance_fast
from glance_fast.export.formats import SUFFIXES, write
from glance_fast.export.graph import ScoringGraph
from glance_fast.jobs.export import notes_of


@pytest.fixture(scope="session")
def exported_files(run_folder, tmp_path_factory):
    """Of ``run_folder``, a path by format; not to be changed."""
    model = glance_fast.load(run_folder, "cpu")
    graph, folder = ScoringGraph(model).eval(), tmp_path_factory.mktemp("exported")
    files = {format: folder / f"model{suffix}" for format, suffix in SUFFIXES.items()}
    for format, path in files.items():
        write(graph, path, format, notes_of(model))
    return files
