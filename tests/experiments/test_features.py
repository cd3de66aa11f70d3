"""Fig. 5: which patches are drawn, what stands for them under each head, and what is written."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from glance_fast.config import Config
from glance_fast.data.images import read_image, write_png
from glance_fast.data.masks import read_mask
from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import find_category
from glance_fast.experiments import features as module
from glance_fast.experiments.features import (
    COLUMNS,
    HEADS,
    anomalous_shares,
    distortion_points,
    draw,
    features,
    inconsistency_points,
)
from glance_fast.geometry import PatchGrid
from glance_fast.model import Glance
from glance_fast.run import load, save_model

FILES = {"experiment.json", "heads.csv", "results.csv", "features-32.png", "features-32.pdf"}


def rows_of(out, name="results.csv"):
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(run_folder, parts, tmp_path_factory):
    """What is written for all patches of the defective images, and what is returned."""
    from rich.console import Console

    from glance_fast.progress import Reporter

    out = tmp_path_factory.mktemp("out") / "features"
    found = features(run_folder, parts, out, device="cpu", reporter=Reporter(Console(quiet=True)))
    return out, found


def refused(run, data, out, reporter, **more):
    with pytest.raises(UserError) as caught:
        features(run, data, out, device="cpu", reporter=reporter, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- which patches


@pytest.mark.parametrize(
    "grid", [PatchGrid(20, 26, 8, 6), PatchGrid(20, 26, 8, 6, 3), PatchGrid(16, 16, 16, 8, 8)]
)
def test_shares_are_of_the_area_of_each_patch_as_the_nets_see_it(grid):
    masks = np.random.default_rng(0).random((2, grid.height, grid.width)) < 0.3
    shares = anomalous_shares(masks, grid)
    assert shares.shape == (2, len(grid))
    seen = np.pad(masks, ((0, 0), (grid.frame,) * 2, (grid.frame,) * 2), "symmetric")
    for image in range(2):
        for place, (top, left, bottom, right) in enumerate(grid.holes + grid.frame):
            assert shares[image, place] == pytest.approx(seen[image, top:bottom, left:right].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("anomalous", "normal", "patches", "drawn"),
    [
        (50, 50, 20, (10, 10)),
        (50, 50, 21, (10, 11)),
        (3, 97, 20, (3, 17)),
        (97, 3, 20, (17, 3)),
        (100, 0, 20, (20, 0)),
        (0, 100, 20, (0, 20)),
        (4, 5, 20, (4, 5)),
    ],
)
def test_half_of_those_drawn_show_something_of_a_defect(anomalous, normal, patches, drawn):
    shares = np.float32([0.01] * anomalous + [0.0] * normal)
    np.random.default_rng(1).shuffle(shares)
    found = draw(shares.reshape(1, -1), patches, np.random.default_rng(0))
    assert ((shares[found] > 0).sum(), (shares[found] == 0).sum()) == drawn
    assert len(set(found.tolist())) == len(found) and (np.diff(found) > 0).all()


def test_every_patch_of_a_kind_is_as_likely_drawn():
    shares = np.tile(np.float32([0.0, 0.5, 0.0, 1.0]), (5, 5))
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([draw(shares, 10, rng) for _ in range(2000)]), minlength=100)
    assert counts.min() > 140 and counts.max() < 260


# ---------------------------------------------------------------- what stands for them


@pytest.mark.parametrize("net", ["run_folder", "masked_run"])
def test_distances_under_the_inconsistency_head_are_its_scores(net, parts, request):
    model = load(request.getfixturevalue(net), "cpu").requires_grad_(False)
    (scale,), (statistics,) = model.scales, model.calibration.scales
    images = np.stack([model.prepare(sample.path) for sample in find_category(parts, parts / "out").samples])
    ((local, global_),) = model.features(images)
    scores = scale.patch_scores(local, global_, statistics).inconsistency
    places = torch.tensor([0, 3, 3, len(scale.grid) - 1])
    points = inconsistency_points(scale, local[4, places], global_[4, places], places)
    apart = (points.local - points.global_).square().mean(1)
    torch.testing.assert_close(apart, scores[4, places], rtol=1e-3, atol=1e-4)
    # They are those of the features themselves where nothing is whitened.
    plain = Glance(Config(**{**model.config.__dict__, "blend": "paper"}))
    points = inconsistency_points(plain.scales[0], local[4, places], global_[4, places], places)
    assert torch.equal(points.local, local[4, places]) and torch.equal(points.global_, global_[4, places])


@torch.inference_mode()
def test_the_logits_of_the_distortion_head_are_weighted_sums_of_what_stands_for_patches(run_folder):
    head = load(run_folder, "cpu").scales[0].distortion
    local, global_ = torch.randn(2, 20, 128, generator=torch.Generator().manual_seed(0))
    points = distortion_points(head, local, global_)
    logits = [head.last(z)[:, 0] for z in points]
    torch.testing.assert_close(logits[0], head(local, global_))
    torch.testing.assert_close(logits[1], head(global_, global_))
    # A patch that is what its surrounding predicts stands where its surrounding does.
    points = distortion_points(head, global_, global_)
    assert torch.equal(points.local, points.global_)


# ---------------------------------------------------------------- what is written


def test_the_files_are_there(written):
    out, _ = written
    assert {path.name for path in out.iterdir()} == FILES
    image = read_image(out / "features-32.png")
    assert image.shape[1] == 1375 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert (out / "features-32.pdf").read_bytes().startswith(b"%PDF")
    record = json.loads((out / "experiment.json").read_text())
    assert record["experiment"] == "features"
    assert (record["settings"]["patches"], record["settings"]["seed"]) == (800, 0)


def test_a_row_says_which_patch_it_is_and_what_the_model_says_of_it(written, run_folder, parts):
    rows = rows_of(written[0])
    model = load(run_folder, "cpu")
    (grid,) = model.config.grids
    # There are fewer than 800: all are drawn.
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 3 * len(grid)
    assert {row["image"] for row in rows} == {f"test/punched/{i:03}.png" for i in range(3)}
    assert {(row["patch"], row["defect"]) for row in rows} == {("32", "punched")}
    corners = grid.holes[:, :2].tolist()
    by_image = {}
    for row in rows:
        image = parts / row["image"]
        if image not in by_image:
            mask = read_mask(parts / "ground_truth" / "punched" / f"{image.stem}_mask.png")
            by_image[image] = mask, model.patch_scores(model.prepare(image)[None])[0]
        mask, scores = by_image[image]
        place = corners.index([int(row["top"]), int(row["left"])])
        seen = np.pad(mask, grid.frame, "symmetric")
        top, left = (int(row[name]) + grid.frame for name in ("top", "left"))
        assert float(row["share"]) == pytest.approx(seen[top : top + 32, left : left + 32].mean(), abs=1e-6)
        assert float(row["inconsistency"]) == pytest.approx(float(scores.inconsistency[0, place]), rel=1e-3)
        assert float(row["distortion"]) == pytest.approx(float(scores.distortion[0, place]), abs=1e-4)


def test_every_patch_and_its_surrounding_have_a_place_in_each_panel(written):
    rows = rows_of(written[0])
    for head in ("iad", "dad"):
        for kind in ("local", "global"):
            places = {(row[f"{head}_{kind}_x"], row[f"{head}_{kind}_y"]) for row in rows}
            assert len(places) == len(rows)
            assert np.isfinite(np.array(list(places), float)).all()


def test_neighbours_under_a_head_stay_neighbours(run_folder, parts, tmp_path, reporter, monkeypatch):
    seen = []
    whole = module._tsne

    def spy(seed):
        lay_out = whole(seed)

        def laid_out(points):
            seen.append((points, lay_out(points)))
            return seen[-1][1]

        return laid_out

    monkeypatch.setattr(module, "_tsne", spy)
    features(run_folder, parts, tmp_path / "out", device="cpu", reporter=reporter)
    for points, places in seen:
        # Of both kinds together: the order of places is that of points.
        features_, flat = torch.cat(points), torch.from_numpy(places).flatten(0, 1)
        near = [torch.cdist(x, x).fill_diagonal_(torch.inf).argsort(1)[:, :10] for x in (features_, flat)]
        kept = np.mean(
            [len(set(a) & set(b)) / 10 for a, b in zip(*map(torch.Tensor.tolist, near), strict=True)]
        )
        assert kept > 0.4, "by chance it would be a tenth"


def test_separation_is_the_auroc_of_a_heads_score_by_what_patches_show(written):
    out, found = written
    rows = rows_of(out)
    assert [(row.patch, row.head) for row in found] == [(32, "IAD"), (32, "DAD")]
    shares = np.array([float(row["share"]) for row in rows])
    kept = (shares > 0.5) | (shares == 0)
    for row, column in zip(found, ("inconsistency", "distortion"), strict=True):
        scores = np.array([float(r[column]) for r in rows])
        if (shares > 0.5).any():
            assert row.auroc == pytest.approx(roc_auc_score(shares[kept] > 0.5, scores[kept]), abs=1e-6)
        else:
            assert row.auroc is None
        assert (row.anomalous, row.normal) == ((shares > 0.5).sum(), (shares == 0).sum())
    kept_rows = rows_of(out, "heads.csv")
    assert [row["head"] for row in kept_rows] == list(HEADS)
    assert [row["auroc"] for row in kept_rows] == ["" if r.auroc is None else str(r.auroc) for r in found]


def with_large_holes(parts, data):
    """The category with defects that fill patches."""
    shutil.copytree(parts, data)
    for path in (data / "test" / "punched").iterdir():
        image, mask = read_image(path), np.zeros((64, 64), np.uint8)
        image[:40, :40], mask[:40, :40] = 10, 255
        write_png(path, image)
        write_png(data / "ground_truth" / "punched" / f"{path.stem}_mask.png", mask)
    return data


def test_large_defects_have_a_separation(run_folder, parts, tmp_path, reporter):
    data, out = with_large_holes(parts, tmp_path / "data"), tmp_path / "out"
    found = features(run_folder, data, out, device="cpu", reporter=reporter)
    test_separation_is_the_auroc_of_a_heads_score_by_what_patches_show((out, found))
    assert all(0 <= row.auroc <= 1 and row.anomalous > 3 for row in found)


def test_the_seed_decides(run_folder, parts, tmp_path, reporter):
    texts = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        features(run_folder, parts, out, patches=20, seed=seed, device="cpu", reporter=reporter)
        assert len(rows_of(out)) == 20
        texts.append([(row["image"], row["top"], row["left"], row["iad_local_x"]) for row in rows_of(out)])
    assert texts[0] == texts[1]
    assert [row[:3] for row in texts[1]] != [row[:3] for row in texts[2]]


def test_every_patch_size_has_a_picture(parts, tmp_path, reporter, small):
    two = {**small, "image_size": 128, "patch": [32, 64], "stride": [16, 32], "finetune_steps": [2, 2]}
    save_model(Glance(Config(**two)), tmp_path / "run")
    out = tmp_path / "out"
    found = features(tmp_path / "run", parts, out, patches=12, device="cpu", reporter=reporter)
    assert [(row.patch, row.head) for row in found] == [(p, h) for p in (32, 64) for h in HEADS]
    assert FILES | {"features-64.png", "features-64.pdf"} == {path.name for path in out.iterdir()}
    assert [row["patch"] for row in rows_of(out)] == ["32"] * 12 + ["64"] * 12


def test_images_are_scored_in_any_portions(run_folder, parts, tmp_path, reporter, monkeypatch):
    tables = []
    for number in (1, 2, 16):
        monkeypatch.setattr(Glance, "at_once", lambda model, number=number: number)
        features(run_folder, parts, tmp_path / str(number), patches=24, device="cpu", reporter=reporter)
        tables.append(rows_of(tmp_path / str(number)))
    for other in tables[1:]:
        for row, expected in zip(other, tables[0], strict=True):
            assert [row[n] for n in ("image", "top", "left")] == [
                expected[n] for n in ("image", "top", "left")
            ]
            assert float(row["inconsistency"]) == pytest.approx(float(expected["inconsistency"]), rel=1e-3)


# ---------------------------------------------------------------- what goes wrong


def test_without_scikit_learn(run_folder, parts, tmp_path, reporter, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    line = refused(run_folder, parts, tmp_path / "out", reporter)
    assert line == (
        "scikit-learn is missing, which has t-SNE; pip install 'glance-fast[experiments]' installs it"
    )
    assert not (tmp_path / "out").exists()


def test_too_few_patches(run_folder, parts, tmp_path, reporter):
    line = refused(run_folder, parts, tmp_path / "out", reporter, patches=9)
    assert line == "patches: at least 10 are needed, got 9"


def test_no_defective_images(run_folder, parts, tmp_path, reporter):
    shutil.copytree(parts / "test" / "good", tmp_path / "data" / "test" / "good")
    line = refused(run_folder, tmp_path / "data", tmp_path / "out", reporter)
    assert line == (f"{tmp_path / 'data'}: no defective test images; this needs some, with their masks")
    assert not (tmp_path / "out").exists()


def test_wrong_folders(run_folder, parts, tmp_path, reporter):
    assert "no such folder" in refused(run_folder, tmp_path / "none", tmp_path / "out", reporter)
    assert "no model.safetensors in it" in refused(parts, parts, tmp_path / "out", reporter)
    assert "is the folder that is read" in refused(run_folder, parts, parts, reporter)
    assert "lies among the test images" in refused(run_folder, parts, parts / "test" / "out", reporter)


def test_what_is_there_is_replaced_only_where_that_is_asked_for(
    written, run_folder, parts, tmp_path, reporter
):
    out = shutil.copytree(written[0], tmp_path / "out")
    before = (out / "results.csv").read_bytes()
    assert "is not empty" in refused(run_folder, parts, out, reporter, patches=20)
    bad = shutil.copytree(parts, tmp_path / "bad")
    (bad / "test" / "punched" / "001.png").write_text("no image")
    assert "001.png" in refused(run_folder, bad, out, reporter, overwrite=True)
    assert (out / "results.csv").read_bytes() == before
    features(run_folder, parts, out, patches=20, device="cpu", overwrite=True, reporter=reporter)
    assert len(rows_of(out)) == 20 and {path.name for path in out.iterdir()} == FILES
