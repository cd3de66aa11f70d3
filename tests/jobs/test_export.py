"""What is exported is compared with the model, and kept only if it is the same."""

import numpy as np
import pytest
import torch
from samples import draw_part

import glance_fast
from glance_fast import UserError
from glance_fast.export.formats import scorer
from glance_fast.jobs import export as job
from glance_fast.jobs.export import beyond, bounds, built_in, compare, export_run
from glance_fast.run import save_model


@pytest.fixture
def model(run_folder):
    return glance_fast.load(run_folder, "cpu")


@pytest.fixture
def wrong(monkeypatch, model):
    """Have files say other things than the model; gives a function that says which."""

    def set_to(change):
        def score(images):
            found = model.score(list(images))
            return *change(found.maps.copy(), found.scores.copy()), np.array([False])

        monkeypatch.setattr(job, "write", lambda graph, path, format, notes: path.write_bytes(b"new"))
        monkeypatch.setattr(job, "scorer", lambda path, format: score)

    return set_to


def on_one_pixel(maps, scores):
    maps[0, 3, 5] += 2e-3 * np.ptp(maps)
    return maps, scores


def on_scores(maps, scores):
    return maps, scores - 2e-3 * np.ptp(maps)


def everywhere(maps, scores):
    return maps + 2e-4 * np.ptp(maps), scores


def to_nan(maps, scores):
    maps[0, 0, 0] = np.nan
    return maps, scores


@pytest.mark.parametrize("change", [on_one_pixel, on_scores, everywhere, to_nan])
def test_a_file_that_says_something_else_is_not_kept(run_folder, parts, tmp_path, wrong, change):
    out = tmp_path / "model.onnx"
    out.write_bytes(b"old")
    wrong(change)
    with pytest.raises(UserError, match=r"model.onnx: not kept, for it does not say what the model says"):
        export_run(run_folder, out, check=parts / "test/good", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"] and out.read_bytes() == b"old"


def test_what_is_wrong_everywhere_is_found_on_any_photograph(run_folder, tmp_path, wrong):
    wrong(everywhere)
    with pytest.raises(UserError, match="maps differ by up to 2"):
        export_run(run_folder, tmp_path / "model.onnx")


def test_a_file_that_differs_by_rounding_is_kept(run_folder, parts, tmp_path, wrong):
    wrong(lambda maps, scores: (maps + 5e-5 * np.ptp(maps), scores))
    found = export_run(run_folder, tmp_path / "model.onnx", check=parts / "test/good")
    assert (tmp_path / "model.onnx").read_bytes() == b"new" and found.bytes == 3 and found.images == 3
    assert 4e-5 < found.map_difference < 6e-5 and found.score_difference < 1e-6


def test_bounds_hold_the_model_and_hardly_more(model):
    image = draw_part(np.random.default_rng(0))
    result = model.score([image])
    (low, low_score), (ours, score), (high, high_score) = bounds(model, image)
    np.testing.assert_array_equal(ours, result.maps)
    np.testing.assert_array_equal(score, result.scores)
    assert (low <= ours).all() and (ours <= high).all() and (low < high).any()
    assert low_score <= score <= high_score
    assert (high - low).max() < 1e-3 * np.ptp(ours)
    assert beyond(ours + 1, low, high) == pytest.approx(1, rel=1e-2)
    assert beyond(ours - 1, low, high) == pytest.approx(1, rel=1e-2)
    assert beyond(ours, low, high) == 0


def test_the_built_in_photographs_need_all_ways_of_resizing():
    same, wide, tall = (picture.shape for picture in built_in((64, 48)))
    assert same == (64, 48, 3) and wide == (49, 73, 3) and tall == (389, 145, 3)


def test_nothing_is_timed_but_what_agrees(model, tmp_path):
    def never(images):
        maps = model.score(list(images)).maps
        return maps + np.ptp(maps), np.zeros(1), np.zeros(1, bool)

    with pytest.raises(UserError, match="maps differ by up to"):
        compare(model, never, built_in((64, 64))[:1], tmp_path / "model.onnx")


def test_a_file_has_the_models_region_of_interest(run_folder, parts, tmp_path):
    pytest.importorskip("onnxruntime")
    model = glance_fast.load(run_folder, "cpu")
    model.inside = torch.zeros(64, 64, dtype=torch.bool)
    model.inside[8:40, 8:40] = True
    save_model(model, tmp_path / "run")
    found = export_run(tmp_path / "run", tmp_path / "model.onnx", check=parts / "test/good")
    assert found.map_difference < 1e-4 and found.score_difference < 1e-4
    maps, _, _ = scorer(tmp_path / "model.onnx", "onnx")(draw_part(np.random.default_rng(0))[None])
    assert maps[:, ~model.inside.numpy()].max() <= min(0, maps[:, model.inside.numpy()].min())
