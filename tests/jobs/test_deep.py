"""Photographs of more than 8 bits, from training to every command that scores by the run."""

import json
import shutil

import deep
import numpy as np
import pytest
import torch
from PIL import Image
from samples import MASKED, SMALL, draw_deep_part, draw_part

import glance_fast
from glance_fast import Config, UserError
from glance_fast.calibration import Calibration
from glance_fast.data.cache import ImageCache
from glance_fast.data.images import read_image
from glance_fast.errors import ImageError
from glance_fast.jobs.bench import bench, noise, photographs
from glance_fast.jobs.directory import score_directory
from glance_fast.jobs.explain import explain_images
from glance_fast.jobs.export import export_run
from glance_fast.jobs.folder import score_folder
from glance_fast.jobs.recalibrate import calibrate_run
from glance_fast.jobs.sources import open_source
from glance_fast.jobs.train import fit
from glance_fast.jobs.update import undo_update, update_run
from glance_fast.jobs.watch import watch
from glance_fast.training.calibrate import calibrate

SHALLOW = "1 image has 8 bits, and those in training had more: 255 was taken for their white"
ABOVE = "1 image holds values of more bits than those in training, and these were taken for white; "
REFUSED = "has more than 8 bits, and the photographs that the model was trained on have 8"


@pytest.fixture
def model(deep_run):
    return glance_fast.load(deep_run, "cpu")


@pytest.fixture
def mixed(tmp_path, deep_parts):
    """A folder of an image of 12 bits, one of 8, and one of 16."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    twelve = read_image(deep_parts / "test/good/000.png")
    Image.fromarray(twelve[..., 0]).save(folder / "12.png")
    Image.fromarray((twelve[..., 0] // 16).astype(np.uint8)).save(folder / "8.png")
    Image.fromarray(twelve[..., 0] * np.uint16(16)).save(folder / "16.png")
    return folder


def test_the_range_is_kept_in_the_run(deep_run, run_folder, model):
    assert json.loads((deep_run / "calibration.json").read_text())["white"] == 4095
    assert model.calibration.white == 4095
    assert json.loads((run_folder / "calibration.json").read_text())["white"] is None
    # A state_dict has all that scoring needs.
    other = glance_fast.Glance(model.config).eval()
    other.load_state_dict(model.state_dict())
    image = draw_deep_part(np.random.default_rng(5))
    np.testing.assert_array_equal(other.score([image]).maps, model.score([image]).maps)


def test_a_run_of_an_earlier_version_is_one_of_8_bits(run_folder):
    values = json.loads((run_folder / "calibration.json").read_text())
    del values["white"]
    assert Calibration.from_json(json.dumps(values), 1, "x").white is None
    for wrong in ("4095", 4095.0, 254, 65536, True):
        with pytest.raises(
            UserError, match=r"^x: damaged calibration.*white must be null or from 255 to 65535"
        ):
            Calibration.from_json(json.dumps(values | {"white": wrong}), 1, "x")


def test_training_says_which_values_are_used(deep_parts, tmp_path, small):
    folder = tmp_path / "photos"
    shutil.copytree(deep_parts / "train/good", folder)
    Image.fromarray(draw_part(np.random.default_rng(1))).save(folder / "of-8-bits.png")
    said = []
    fit(
        folder,
        Config(**small),
        tmp_path / "run",
        device="cpu",
        callback=lambda event: said.append(event.name),
    )
    used = "more than 8 bits: values from 0 to 4095 (12 bits) are used"
    assert f"{used}; 1 of 13 have 8 bits, of which 255 is taken for 4095" in said


@pytest.mark.parametrize("settings", [SMALL, MASKED], ids=["surround", "masked"])
def test_training_depends_on_the_lower_bits(deep_parts, tmp_path, settings):
    """The upper 8 bits of 12 alone give another model, which scores about the same."""
    rough = tmp_path / "rough"
    rough.mkdir()
    for path in (deep_parts / "train/good").iterdir():
        values = read_image(path)[..., 0] // 16 * 16
        Image.fromarray(values).save(rough / path.name)
    models = [fit(folder, Config(**settings), device="cpu") for folder in (deep_parts / "train/good", rough)]
    assert [model.calibration.white for model in models] == [4095, 4095]
    first, second = (model.state_dict() for model in models)
    nets = [name for name in first if "global_net" in name and first[name].is_floating_point()]
    assert nets and any(not torch.equal(first[name], second[name]) for name in nets)


def test_resumed_training_is_the_same(deep_parts, tmp_path, small, model):
    again = fit(deep_parts, Config(**small), tmp_path / "run", device="cpu")
    assert again.calibration == model.calibration


def test_every_bit_counts_in_scores(model):
    image = draw_deep_part(np.random.default_rng(3))
    other = image ^ np.uint16(7)
    assert (image // 16 == other // 16).all()
    first, second = model.score([image, other]).maps
    assert not np.array_equal(first, second)


def test_all_ways_in_give_the_same_scores(model, deep_parts, tmp_path):
    path = deep_parts / "test/punched/001.png"
    stored = read_image(path)
    colours = deep.write(tmp_path / "colours.png", deep.png(stored))
    expected = model.prepare(path)
    assert expected.dtype == np.uint16
    with Image.open(path) as picture:
        for way in (str(path), stored, stored[..., 0], picture, expected, colours):
            np.testing.assert_array_equal(model.prepare(way), expected)
    maps = model.score([path]).maps
    np.testing.assert_array_equal(model.score([expected]).maps, maps)
    # Of 8 bits in all, an image is nearly the same.
    eight = (stored // 16).astype(np.uint8)
    np.testing.assert_allclose(model.score([eight]).maps[0], maps[0], atol=0.2 * np.ptp(maps[0]))


def test_score_dir_says_what_is_of_another_depth(model, mixed, tmp_path):
    summary = score_directory(model, mixed, tmp_path / "out", overlays=True)
    assert (summary.scored, summary.errors) == (3, 0)
    assert summary.remarks[0] == SHALLOW and summary.remarks[1].startswith(ABOVE)
    for name in ("12", "8"):
        picture = read_image(tmp_path / f"out/overlays/{name}.png.png")
        assert picture.dtype == np.uint8 and 60 < np.median(picture) < 220
    assert read_image(tmp_path / "out/overlays/16.png.png").mean() > 200


def test_shards_say_it_together(deep_run, mixed, tmp_path):
    for shard in ("1/2", "2/2"):
        found = score_folder(deep_run, mixed, tmp_path / "out", device="cpu", shard=shard)
    assert found.whole and found.summary.remarks[0] == SHALLOW
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert "shallow" not in record and "above" not in record


def test_a_model_of_8_bits_refuses_deeper_images(run_folder, mixed, tmp_path):
    model = glance_fast.load(run_folder, "cpu")
    summary = score_directory(model, mixed, tmp_path / "out")
    assert (summary.scored, summary.errors, summary.remarks) == (1, 2, ())
    rows = (tmp_path / "out/scores.csv").read_text().splitlines()
    assert any(row.startswith("12.png,,,,") and REFUSED in row for row in rows)
    with pytest.raises(ImageError, match=f"12.png: {REFUSED}"):
        model.score([mixed / "12.png"])
    with pytest.raises(ImageError, match=f"^image: {REFUSED}"):
        model.score([np.zeros((64, 64), np.uint16)])


def test_watch_says_it_once(model, mixed, tmp_path):
    said = []
    shutil.copy(mixed / "8.png", mixed / "8-again.png")
    source = open_source(str(mixed), take_all=True)
    lines, scored = watch(model, source, overlays=tmp_path / "overlays", say=said.append), {}
    for line in lines:
        scored[line.path] = line
        if len(scored) == 4:
            lines.close()
            break
    assert all(line.error is None for line in scored.values())
    assert said.count(SHALLOW) == 1 and sum(line.startswith(ABOVE) for line in said) == 1
    assert read_image(tmp_path / "overlays/12.png.png").dtype == np.uint8


def test_watch_refuses_deeper_images_for_a_model_of_8_bits(run_folder, mixed):
    lines, found = watch(glance_fast.load(run_folder, "cpu"), open_source(str(mixed), take_all=True)), {}
    for line in lines:
        found[line.path] = line.error
        if len(found) == 3:
            lines.close()
            break
    assert found["8.png"] is None
    assert REFUSED in found["12.png"] and REFUSED in found["16.png"]


def test_calibrate_reads_by_the_runs_range(deep_run, deep_parts, tmp_path, run_folder, reporter, monkeypatch):
    run, good = tmp_path / "run", tmp_path / "good"
    shutil.copytree(deep_run, run)
    good.mkdir()
    rng = np.random.default_rng(9)
    for i in range(9):
        Image.fromarray(draw_deep_part(rng) // 8).save(good / f"{i}.png")
    Image.fromarray(draw_part(rng)).save(good / "of-8-bits.png")
    seen = deep_parts / "train/good/001.png"
    shutil.copy(seen, good / "seen.png")
    said = []
    monkeypatch.setattr(reporter, "say", said.append)
    found = calibrate_run(run, good, device="cpu", reporter=reporter)
    # 9 bits alone would have another range.
    assert found.white == 4095 and len(found.scores) == 10
    assert SHALLOW in said
    assert any("1 photograph that the model was trained on" in line for line in said)
    shutil.copytree(run_folder, tmp_path / "of-8-bits")
    with pytest.raises(UserError, match=f"none of 9 images can be read; .*{REFUSED}"):
        (good / "of-8-bits.png").unlink()
        (good / "seen.png").unlink()
        calibrate_run(tmp_path / "of-8-bits", good, device="cpu")


def test_bench_takes_them(model, deep_parts):
    for images in (photographs(sorted((deep_parts / "test/good").iterdir()), 2, 4095), noise(model)):
        assert images[0].dtype == np.uint16
        assert bench(model, images).rows[0].seconds > 0


@pytest.mark.slow
def test_export_is_checked_on_stored_values(deep_run, run_folder, deep_parts, mixed, tmp_path):
    for check, number in ((None, 3), (deep_parts / "test/punched", 3), (mixed, 3)):
        found = export_run(deep_run, tmp_path / "m.pt2", "torch-export", check=check, overwrite=True)
        assert found.images == number and found.map_difference < 1e-4
    with pytest.raises(UserError, match=f"no image can be read; the last one: .*{REFUSED}"):
        export_run(run_folder, tmp_path / "eight.pt2", "torch-export", check=deep_parts / "test/good")
    assert not (tmp_path / "eight.pt2").exists()


def test_update_takes_them_as_if_they_had_been_there(deep_run, deep_parts, tmp_path, reporter, monkeypatch):
    run, good = shutil.copytree(deep_run, tmp_path / "run"), tmp_path / "good"
    good.mkdir()
    rng = np.random.default_rng(9)
    for i in range(3):
        Image.fromarray(draw_deep_part(rng)).save(good / f"{i}.png")
    Image.fromarray(draw_part(rng)).save(good / "of-8-bits.png")
    shutil.copy(deep_parts / "train/good/001.png", good / "seen.png")
    said = []
    monkeypatch.setattr(reporter, "say", said.append)
    before = glance_fast.load(run, "cpu").score([good / "0.png"]).scores[0]
    found = update_run(run, good, device="cpu", reporter=reporter)
    assert found.new == 4 and (found.before.photographs, found.after.photographs) == (12, 16)
    assert SHALLOW in said and "left out: 1 photograph that the model knows already" in said
    model = glance_fast.load(run, "cpu")
    assert model.calibration.white == 4095 and model.score([good / "0.png"]).scores[0] != before
    # What calibration of all of them gives, from the very images that training read.
    together = [*sorted((deep_parts / "train/good").iterdir()), *sorted(good.iterdir())[:4]]
    other = glance_fast.load(deep_run, "cpu")
    weights = [scale.weight for scale in other.calibration.scales]
    with ImageCache(together, other.config.image_size, white=4095) as cache:
        calibrate(other, cache, np.arange(len(cache)), weights=weights)
    np.testing.assert_allclose(model.calibration.scores, other.calibration.scores, rtol=1e-3, atol=1e-3)
    undo_update(run)
    assert glance_fast.load(run, "cpu").score([good / "0.png"]).scores[0] == before


def test_explain_shows_them(deep_run, deep_parts, mixed, tmp_path, reporter, monkeypatch):
    said = []
    monkeypatch.setattr(reporter, "say", said.append)
    bad, seen = deep_parts / "test/punched/000.png", deep_parts / "train/good/003.png"
    found = explain_images(
        deep_run, [bad, mixed, seen], tmp_path / "why", good=deep_parts, device="cpu", reporter=reporter
    )
    assert [one.error for one in found] == [None] * 5
    assert SHALLOW in said and any(line.startswith(ABOVE) for line in said)
    model = glance_fast.load(deep_run, "cpu")
    scores = model.score([one.path for one in found]).scores
    np.testing.assert_allclose([one.score for one in found], scores, rtol=1e-4, atol=1e-4)
    # A photograph among the good ones is not the nearest to itself.
    assert all(place["nearest"]["path"] != str(seen) for place in found[-1].places)
    # Drawn as bright as its white says: 12 bits are not black.
    drawn = np.asarray(Image.open(found[0].picture).convert("RGB"))
    assert np.mean((drawn > 100) & (drawn < 250)) > 0.1


def test_explain_names_what_is_too_deep_for_a_model_of_8_bits(run_folder, deep_parts, tmp_path):
    bad = deep_parts / "test/punched/000.png"
    (found,) = explain_images(run_folder, [bad], tmp_path / "why", device="cpu")
    assert found.error is not None and REFUSED in found.error and found.picture is None
