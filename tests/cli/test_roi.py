"""``--roi`` of train, score-dir and evaluate: what it says of wrong masks, and what it changes."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from commands import never, one_line, score_dir, tree
from trees import box, save

import glance_fast
from glance_fast.data.files import read_tensors

PART = (slice(8, 40), slice(8, 40))


@pytest.fixture
def mask(tmp_path):
    return save(tmp_path / "roi.png", box(part=PART))


def rows(out):
    lines = (out / "scores.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(",", 4), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("command", ["train", "score-dir", "evaluate"])
def test_wrong_masks_are_one_line(cli, run_folder, parts, photos, tmp_path, monkeypatch, command):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    given = {"train": [parts], "score-dir": [run_folder, photos], "evaluate": [run_folder, parts]}[command]
    more = {"train": ["--set", "image_size=64", "--set", "patch=32", "--set", "stride=16"]}.get(command, [])
    empty, grey = save(tmp_path / "empty.png", box(0)), save(tmp_path / "grey.png", box(90))
    (tmp_path / "text.png").write_text("no image")
    for path, message in (
        (tmp_path / "none.png", "no such file or folder; --roi is a mask, or a folder of masks"),
        (empty, "nothing is marked in it; white is where to look"),
        (grey, "not a binary mask: it holds 90 among 2 values"),
        (tmp_path / "text.png", "is not an image of a kind that is read"),
    ):
        out = tmp_path / "out"
        line = one_line(cli(command, *given, "--out", out, "--device", "cpu", "--roi", path, *more))
        assert line.startswith(f"{path}: {message}"), line
        assert not out.exists()


def test_train_with_a_region(cli, parts, tmp_path, mask):
    run = tmp_path / "run"
    settings = [
        "image_size=64",
        "patch=32",
        "stride=16",
        "width=8",
        "finetune_steps=2",
        "steps=6",
        "variants=8",
    ]
    more = [word for setting in settings for word in ("--set", setting)]
    code, _, _ = cli("train", parts, "--out", run, "--device", "cpu", "--roi", mask, *more)
    assert code == 0
    tensors, _ = read_tensors(run / "model.safetensors", "")
    assert (tensors["inside"].numpy() == (box(part=PART) > 0)).all()
    # From then on it need not be named.
    code, _, _ = score_dir(cli, run, parts / "test", tmp_path / "own")
    assert code == 0
    inside = box(part=PART) > 0
    for path in (tmp_path / "own" / "maps").rglob("*.tiff"):
        found = tifffile.imread(path)
        assert len(np.unique(found[~inside])) == 1 and found[~inside].max() <= min(0, found[inside].min())


def test_train_refuses_masks_that_it_cannot_use(cli, parts, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(parts / "train" / "good", data)
    among, flat = save(data / "roi.png", box(part=PART)), save(tmp_path / "flat.png", box(size=(30, 64)))
    run, small = tmp_path / "run", ["--set", "image_size=64", "--set", "patch=32", "--set", "stride=16"]

    def train(mask, *more):
        return one_line(cli("train", data, "--out", run, "--device", "cpu", "--roi", mask, *small, *more))

    folder = save(tmp_path / "masks" / "000.png", box(part=PART)).parent
    assert train(folder).startswith(f"{folder}: is a folder; a model learns place by place what is normal")
    assert train(among) == f"{among}: lies among the photographs, and would be trained on; move it away"
    among.unlink()
    # Photographs have been read by then.
    code, out, err = cli("train", data, "--out", run, "--device", "cpu", "--roi", flat, *small)
    said = err.splitlines()[-1].removeprefix("glance-fast: ")
    assert (
        code == 1
        and not out
        and said.startswith(
            f"{data}/000.png: is 64x64, and the mask of its region of interest, {flat}, is 64x30:"
        )
    )
    assert not run.exists() or not (run / "model.safetensors").exists()
    # An old model is not lost to such a mask.
    shutil.copytree(parts, run)
    for path in list(run.iterdir()):
        shutil.rmtree(path)
    (run / "model.safetensors").write_text("old")
    assert train(flat, "--overwrite").startswith(f"{data}/000.png: is 64x64")
    assert (run / "model.safetensors").read_text() == "old"


def test_score_dir_with_one_mask(cli, run_folder, photos, tmp_path, mask):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert score_dir(cli, run_folder, photos, whole)[0] == 0
    code, said, _ = score_dir(cli, run_folder, photos, out, "--roi", mask, "--overlays", "--regions")
    assert code == 0 and said.startswith("2 images scored")
    inside = box(part=PART) > 0
    for name in ("0.png.tiff", "1.png.tiff"):
        ours, theirs = (tifffile.imread(folder / "maps" / name) for folder in (out, whole))
        assert ours[~inside].max() <= min(0, ours[inside].min()) and (ours != theirs).any()
        # Far from the border the map is made of the same patches.
        np.testing.assert_allclose(ours[20:28, 20:28], theirs[20:28, 20:28], rtol=0.2, atol=0.5)
    threshold = json.loads((out / "run.json").read_text())["pixel_threshold"]
    for line in (out / "regions.jsonl").read_text().splitlines():
        for region in json.loads(line)["regions"]:
            found = region["box"]
            assert region["peak"] > threshold
            assert min(found["top"], found["left"]) >= 8 and max(found["bottom"], found["right"]) <= 40
    before = tree(out)
    # The same mask goes on, under another name; another one does not.
    same, other = save(tmp_path / "b.png", box(1, part=PART)), save(tmp_path / "c.png", box())
    assert score_dir(cli, run_folder, photos, out, "--roi", same, "--resume")[0] == 0
    for more in (["--roi", other], []):
        line = one_line(score_dir(cli, run_folder, photos, out, *more, "--resume"))
        assert line.startswith(f"{out}: was begun with another --roi; give the same, or use another --out")
    assert tree(out)[next(p for p in before if p.name == "scores.csv")] == (out / "scores.csv").read_bytes()


def test_scores_without_a_region_from_before_are_gone_on_with(cli, run_folder, photos, tmp_path):
    out = tmp_path / "out"
    assert score_dir(cli, run_folder, photos, out)[0] == 0
    record = json.loads((out / "run.json").read_text())
    assert record.pop("roi") is None
    (out / "run.json").write_text(json.dumps(record))
    assert score_dir(cli, run_folder, photos, out, "--resume")[0] == 0


@pytest.mark.parametrize("net", ["surround", "masked"])
def test_score_dir_with_a_mask_for_each(cli, run_folder, masked_run, photos, tmp_path, net):
    run, masks, out = (
        {"surround": run_folder, "masked": masked_run}[net],
        tmp_path / "masks",
        tmp_path / "out",
    )
    for name in ("2.png", "3.png", "4.png"):
        shutil.copy(photos / "1.png", photos / name)
    save(masks / "0.png", box(part=PART))
    save(masks / "1_mask.png", box(size=(32, 32), part=(slice(20, 30), slice(20, 30))))
    save(masks / "3.png", box(size=(64, 40), part=PART))
    save(masks / "4.png", box(0))
    code, said, _ = score_dir(cli, run, photos, out, "--roi", masks)
    assert code == 3 and said.startswith("2 images scored")
    found = {row["path"]: row for row in rows(out)}
    assert (
        found["2.png"]["error"].strip('"') == f"has no mask of its region of interest; expected {masks}/2.png"
    )
    assert (
        f"is 64x64, and the mask of its region of interest, {masks}/3.png, is 40x64"
        in found["3.png"]["error"]
    )
    assert found["4.png"]["error"].strip('"').startswith(f"its mask {masks}/4.png: nothing is marked in it")
    # The second photograph is looked at in the lower right alone.
    score_map = tifffile.imread(out / "maps" / "1.png.tiff")
    assert score_map[40:60, 40:60].min() >= score_map[:38].max()
    save(masks / "2.png", box(part=PART))
    assert score_dir(cli, run, photos, out, "--roi", masks, "--resume")[0] == 3
    assert not {row["path"]: row for row in rows(out)}["2.png"]["error"]


def test_masks_among_the_photographs_are_refused(cli, run_folder, photos, tmp_path):
    inner = save(photos / "masks" / "0.png", box(part=PART)).parent
    line = one_line(score_dir(cli, run_folder, photos, tmp_path / "out", "--roi", inner))
    assert line == f"{inner}: lies in {photos}, where masks would be taken for photographs; move it away"
    assert "holds" in one_line(
        score_dir(cli, run_folder, photos / "masks", tmp_path, "--roi", tmp_path / "x.png")
    )


def test_evaluate_counts_what_lies_inside(cli, run_folder, parts, tmp_path):
    """Beside a mask with a hole: a defect under it is not looked for, and its pixels are no false ones."""
    truth = sorted((parts / "ground_truth" / "punched").iterdir())
    hidden = np.asarray(tifffile.imread(truth[0]) if truth[0].suffix == ".tiff" else _read(truth[0])) > 0
    mask = save(tmp_path / "roi.png", np.where(hidden, 0, 255).astype(np.uint8))
    found = {}
    for name, more in (("whole", []), ("roi", ["--roi", mask])):
        out = tmp_path / name
        code, _, err = cli("evaluate", run_folder, parts, "--out", out, "--device", "cpu", *more)
        assert code == 0, err
        found[name] = json.loads((out / "metrics.json").read_text())
    assert found["whole"]["defective_images"] == 3 and found["roi"]["defective_images"] == 2
    assert found["roi"]["good_images"] == 3
    notes = " ".join(found["roi"]["notes"])
    assert "Only the region of interest counts" in notes
    assert "defects all lie outside the region of interest: 1. Left out." in notes
    assert not list((tmp_path / "roi" / "maps").rglob("000.tiff"))[1:]
    # Masks that hold all of it change nothing.
    white = save(tmp_path / "white.png", box(255, part=(slice(None), slice(None))))
    assert (
        cli("evaluate", run_folder, parts, "--out", tmp_path / "all", "--device", "cpu", "--roi", white)[0]
        == 0
    )
    everything = json.loads((tmp_path / "all" / "metrics.json").read_text())
    for name in ("pro", "pixel_auroc", "image_auroc"):
        assert everything[name] == pytest.approx(found["whole"][name], abs=1e-4)


def _read(path):
    from PIL import Image

    return Image.open(path)


def test_evaluate_with_a_folder_that_lacks_masks_names_all_photographs(cli, run_folder, parts, tmp_path):
    masks = save(tmp_path / "masks" / "good" / "000.png", box(part=PART)).parent.parent
    line = one_line(
        cli("evaluate", run_folder, parts, "--out", tmp_path / "out", "--device", "cpu", "--roi", masks)
    )
    assert line.startswith(f"{parts}/test/good/001.png: has no mask of its region of interest; expected ")
    assert "and 4 more: " in line and not (tmp_path / "out").exists()


def test_evaluate_maps_with_a_region(cli, run_folder, parts, tmp_path, mask):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli("evaluate", run_folder, parts, "--out", first, "--device", "cpu", "--roi", mask)[0] == 0
    code, _, err = cli("evaluate", first / "maps", parts, "--out", second, "--roi", mask)
    assert code == 0, err
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
    for name in ("pro", "pixel_auroc", "pixel_ap"):
        assert one[name] == pytest.approx(other[name], abs=1e-6)
    # Without the mask, what lies outside counts again.
    third = tmp_path / "third"
    assert cli("evaluate", first / "maps", parts, "--out", third)[0] == 0
    assert json.loads((third / "metrics.json").read_text())["pixel_auroc"] != one["pixel_auroc"]


def test_a_model_with_a_region_is_refused_by_experiments_on_whole_photographs(run_folder, parts, tmp_path):
    import torch

    from glance_fast import UserError
    from glance_fast.run import of_whole_photographs

    model = glance_fast.load(run_folder, "cpu")
    assert of_whole_photographs(model, run_folder) is model
    model.inside = torch.ones(64, 64, dtype=torch.bool)
    with pytest.raises(
        UserError, match="was trained with a region of interest; this needs a model without one"
    ):
        of_whole_photographs(model, run_folder)
