"""A worker without any cluster: its blocks are what one process writes."""

import dataclasses
import json

import numpy as np
import pytest
from commands import tree
from PIL import Image
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.data.store import Folder
from glance_fast.jobs.directory import score_directory
from glance_fast.jobs.parts import part_name, read_parts
from glance_fast.jobs.record import provenance_of, run_text
from glance_fast.jobs.table import RUN, Odd, read_rows
from glance_fast.jobs.worker import Job, Worker, run_files
from glance_fast.model import Glance

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        path = tmp_path / "photos" / f"{'sub/' if i % 2 else ''}{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_part(rng, defect=bool(i % 2))[: 64 - 20 * (i == 4)]).save(path)
    (tmp_path / "photos/bad.png").write_text("bad")
    return tmp_path / "photos"


@pytest.fixture
def job(photos, tmp_path):
    return Job(Folder(photos), Folder(tmp_path / "out"), "auto", "auto", "cpu", 1, None, True, None)


@pytest.fixture
def provenance(run_folder, photos, job):
    """Of a call that has begun."""
    found = provenance_of(load(run_folder, "cpu"), photos, "auto", "auto")
    job.out.write(RUN, run_text(found).encode())
    return found


def test_blocks_are_what_one_process_writes(run_folder, photos, job, provenance, tmp_path, monkeypatch):
    monkeypatch.setattr(Glance, "at_once", lambda *_: 2)
    score_directory(load(run_folder, "cpu"), photos, tmp_path / "one", overlays=True)
    worker, names = Worker(run_files(run_folder), job), job.images.images()
    worker.check(provenance)
    assert worker.together() == 2
    first, last = worker.score(names[:4], provenance), worker.score(names[4:], provenance)
    assert (first.scored + last.scored, first.errors + last.errors) == (5, 1)
    assert first.odd + last.odd == Odd(stretched=1)
    rows, _ = read_parts(job.out, provenance)
    assert rows == read_rows(tmp_path / "one/scores.csv") and "kind that is read" in rows["bad.png"].error
    pictures = {
        path: data for path, data in tree(tmp_path / "one").items() if path.parts[0] in ("maps", "overlays")
    }
    assert len(pictures) == 10 and pictures.items() <= tree(tmp_path / "out").items()


def test_a_block_that_is_scored_again_changes_nothing(run_folder, job, provenance, tmp_path):
    worker, names = Worker(run_files(run_folder), job), job.images.images()
    worker.score(names, provenance)
    before = tree(tmp_path / "out")
    # As a worker leaves it that dies before it has written the part.
    job.out.remove([part_name(provenance, names), "maps/0.png.tiff"])
    worker.score(names, provenance)
    assert tree(tmp_path / "out") == before


def test_a_photograph_whose_map_has_no_place_is_told(run_folder, photos, job, provenance, tmp_path):
    (tmp_path / "out/maps/0.png.tiff").mkdir(parents=True)
    Worker(run_files(run_folder), job).score(["0.png", "2.png"], provenance)
    rows, _ = read_parts(job.out, provenance)
    assert "have one name" in rows["0.png"].error and not rows["2.png"].error


def test_a_worker_that_differs_does_not_begin(run_folder, photos, job, provenance, tmp_path):
    files = run_files(run_folder)
    with pytest.raises(UserError, match=r"a worker has glance-fast .*, and the command 0\.0\.0; install"):
        Worker(files, dataclasses.replace(job, version="0.0.0"))
    worker = Worker(files, job)
    with pytest.raises(UserError, match="one scores with precision fp32, others with bf16; give `precision`"):
        worker.check(provenance | {"precision": "bf16"})
    job.out.write(RUN, json.dumps(provenance | {"model": "another"}).encode())
    with pytest.raises(UserError, match=r"run\.json: a worker does not see there what the command wrote"):
        worker.check(provenance)
    job.out.remove([RUN])
    with pytest.raises(UserError, match=r"run\.json: a worker does not see there"):
        worker.check(provenance)
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="a worker's machine has no such folder; folders must lie on a disk"):
        worker.check(provenance)
