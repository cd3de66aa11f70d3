"""A folder scored from Python: what is begun, gone on with, replaced and shared."""

import numpy as np
import pytest
from commands import check_same, never, tree
from PIL import Image
from rich.console import Console
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.shards import WHOLE, Shard
from glance_fast.progress import Reporter


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos/sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("0.png", "1.png", "sub/2.png"):
        Image.fromarray(draw_part(rng)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_a_run_folder_and_its_model_give_the_same(run_folder, photos, tmp_path):
    found = score_folder(run_folder, photos, tmp_path / "one", device="cpu", overlays=True)
    assert (found.table, found.shard) == (tmp_path / "one/scores.csv", WHOLE)
    assert (found.whole, found.before, found.summary.scored, found.summary.errors) == (True, False, 3, 0)
    score_folder(load(run_folder, "cpu"), str(photos), str(tmp_path / "other"), overlays=True)
    check_same(tmp_path / "other", tmp_path / "one")
    assert (tmp_path / "one/overlays/sub/2.png.png").is_file()


def test_what_is_there_is_kept_gone_on_with_or_replaced(run_folder, photos, tmp_path):
    model, out = load(run_folder, "cpu"), tmp_path / "out"
    with pytest.raises(UserError, match="nothing to resume there"):
        score_folder(model, photos, out, resume=True)
    assert not out.exists()
    score_folder(model, photos, out)
    before = tree(out)
    with pytest.raises(UserError, match="is not empty"):
        score_folder(model, photos, out)
    with pytest.raises(UserError, match="exclude each other"):
        score_folder(model, photos, out, resume=True, overwrite=True)
    with pytest.raises(UserError, match="is the folder that is read"):
        score_folder(model, photos, photos, overwrite=True)
    with pytest.raises(UserError, match="would be taken for photographs"):
        score_folder(model, photos, photos / "out")
    assert tree(out) == before
    (photos / "1.png").unlink()
    assert score_folder(model, photos, out, resume=True).summary.scored == 3, "rows of what is gone stay"
    assert score_folder(model, photos, out, overwrite=True).summary.scored == 2


def test_shards_are_joined_by_the_last(run_folder, photos, tmp_path):
    model, out = load(run_folder, "cpu"), tmp_path / "out"
    first = score_folder(model, photos, out, shard="2/2")
    assert (first.table, first.shard, first.whole) == (out / "scores-2-of-2.csv", Shard(2, 2), False)
    last = score_folder(model, photos, out, shard="1/2")
    assert (last.table, last.whole, last.summary.scored) == (out / "scores.csv", True, 3)
    before = tree(out)
    again = score_folder(model, photos, out, shard="2/2", resume=True)
    assert again.before and again.summary == last.summary and tree(out) == before
    with pytest.raises(UserError, match="would delete what other shards did"):
        score_folder(model, photos, out, shard="1/2", overwrite=True)
    with pytest.raises(UserError, match="expected K/N"):
        score_folder(model, photos, out, shard="3/2")


def test_another_precision_than_asked_for_is_said(run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.model.has_bf16", lambda device: False)
    said = []

    class Heard(Reporter):
        def say(self, line):
            said.append(line)

    with Heard(Console(quiet=True)) as reporter:
        score_folder(run_folder, photos, tmp_path / "out", device="cpu", precision="bf16", reporter=reporter)
    assert "scoring in fp32" in said[0] and said[1].startswith("scoring: ")


def test_the_device_of_a_run_folder_is_that_asked_for(run_folder, photos, tmp_path, monkeypatch):
    asked = []

    def loaded(run, device, memory_mib):
        asked.append((device, memory_mib))
        return load(run, "cpu", memory_mib=memory_mib)

    monkeypatch.setattr("glance_fast.jobs.folder.load", loaded)
    score_folder(run_folder, photos, tmp_path / "one")
    score_folder(run_folder, photos, tmp_path / "two", device="cuda", memory_mib=900)
    assert asked == [("auto", None), ("cuda", 900)]


def test_nothing_is_loaded_for_what_is_refused(run_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.jobs.folder.load", never)
    with pytest.raises(UserError, match="no such folder"):
        score_folder(run_folder, tmp_path / "none", tmp_path / "out")


def test_what_fits_no_memory_is_refused_before_scores_are_replaced(run_folder, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    score_folder(run_folder, photos, out, device="cpu")
    before = tree(out)
    # A model this small would fit into a whole one.
    monkeypatch.setattr("glance_fast.model.MIB", 1 << 16)
    with pytest.raises(UserError, match=r"image_size 64x64: scoring takes "):
        score_folder(run_folder, photos, out, device="cpu", overwrite=True, memory_mib=1)
    assert tree(out) == before
