"""glance-fast explain: pictures, lines and JSON of what is wrong where, and what should be there."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast import UserError, load
from glance_fast.cli import main
from glance_fast.jobs import explain as module
from glance_fast.jobs.explain import explain_images


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command here; gives its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["glance-fast", "explain", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return stop.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def bad(tmp_path):
    """A photograph of a bad part, larger than the model takes it."""
    path = tmp_path / "bad.png"
    Image.fromarray(draw_part(np.random.default_rng(3), defect=True)).resize((192, 128)).save(path)
    return path


def test_an_image_is_explained(cli, run_folder, parts, bad, tmp_path):
    out = tmp_path / "why"
    code, said, err = cli(run_folder, bad, "--good", parts, "--out", out, "--device", "cpu")
    drawn = out / "explained/bad.png.png"
    assert code == 0 and "left out" not in err and Image.open(drawn).size[0] > 1000
    lines = said.splitlines()
    score = float(load(run_folder, "cpu").score([bad]).scores[0])
    assert lines[0].startswith(f"{bad}: score {score:.3g}, ") and lines[0].endswith(f"; {drawn}")
    assert lines[1].startswith("  1. ") and "inconsistency" in lines[1] and "rows" in lines[1]
    assert lines[2].startswith(f"     should be as in {parts}/train/good/0")


def test_as_json(cli, run_folder, parts, bad, tmp_path):
    arguments = (run_folder, bad, "--good", parts, "--device", "cpu", "--json", "--worst", 1)
    code, said, _ = cli(*arguments, "--out", tmp_path / "why")
    (one,) = json.loads(said)["images"]
    assert code == 0 and one["path"] == str(bad) and one["error"] is None
    (place,) = one["places"]
    for box in (place["box"], place["patch"], place["nearest"]["patch"]):
        assert 0 <= box["top"] < box["bottom"] and 0 <= box["left"] < box["right"]
    # In the image's own pixels, three times as wide and twice as high: patches of 32 at steps of 16.
    assert place["patch"]["bottom"] - place["patch"]["top"] in (48, 64)
    assert place["patch"]["right"] - place["patch"]["left"] in (72, 96)
    assert place["box"]["bottom"] <= 128 and place["box"]["right"] <= 192
    # A normal patch is nearer to what is expected than the hole.
    assert 0 <= place["nearest"]["distance"] < place["distance"]
    assert place["word"] and place["meaning"] and isinstance(place["above"], bool)
    assert all(isinstance(place[head], float) for head in ("inconsistency", "distortion", "score"))


def test_without_good_photographs_it_is_told(cli, run_folder, bad, tmp_path):
    code, said, err = cli(run_folder, bad, "--out", tmp_path / "why", "--device", "cpu")
    assert code == 0 and "should be" not in said and (tmp_path / "why/explained/bad.png.png").is_file()
    assert (
        "what should be there is not looked for: give photographs of good parts, such as those of the "
        "training, with --good\n" in err
    )


def test_an_image_among_the_good_ones_is_not_the_nearest_to_itself(run_folder, parts, tmp_path):
    image = sorted((parts / "train/good").iterdir())[4]
    copy = shutil.copy(image, tmp_path / "copy.png")
    (one,) = explain_images(run_folder, [copy], tmp_path / "why", good=parts, device="cpu")
    assert one.places and all(place["nearest"]["path"] != str(image) for place in one.places)


def test_folders_and_images_each_once(run_folder, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    test = parts / "test"
    given = [test / "punched", test / "good/001.png", test / "punched/000.png"]
    found = explain_images(run_folder, given, tmp_path / "why", good=parts, worst=2, device="cpu")
    names = [f"punched/00{i}.png" for i in range(3)] + ["good/001.png"]
    assert [one.path for one in found] == [str(test / name) for name in names]
    assert [one.picture for one in found] == [str(tmp_path / f"why/explained/{name}.png") for name in names]
    assert all(1 <= len(one.places) <= 2 for one in found)
    # Explained alone, the same is said.
    alone = explain_images(run_folder, given[1:2], tmp_path / "one", good=parts, worst=2, device="cpu")
    assert alone[0].places == found[3].places and alone[0].picture.endswith("one/explained/001.png.png")


def test_broken_images_are_told_and_the_others_explained(cli, run_folder, parts, bad, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    good = tmp_path / "good"
    shutil.copytree(parts / "train/good", good)
    (good / "text.png").write_text("no image")
    arguments = (run_folder, tmp_path / "broken.png", bad, "--good", good, "--out", tmp_path / "why")
    code, said, err = cli(*arguments, "--device", "cpu")
    assert code == 3 and said.startswith(f"{bad}: score ")
    assert f"{tmp_path / 'broken.png'}: is not an image" in err and "1 image could not be explained" in err
    assert f"left out: {good / 'text.png'}: is not an image" in err
    found = explain_images(run_folder, [tmp_path / "broken.png"], tmp_path / "other", device="cpu")
    assert found[0].error.startswith("is not an image") and found[0].places == ()


@pytest.mark.parametrize("worst", [0, 21, -1])
def test_wrong_numbers_of_places(run_folder, bad, tmp_path, worst):
    with pytest.raises(UserError, match=f"`worst`: expected a number from 1 to 20, got {worst}"):
        explain_images(run_folder, [bad], tmp_path / "why", worst=worst)


def test_what_is_not_there_or_in_the_way(cli, run_folder, parts, bad, tmp_path):
    def refused(*arguments):
        code, out, err = cli(*arguments, "--device", "cpu")
        assert code == 1 and out == ""
        return err.splitlines()[-1].removeprefix("glance-fast: ")

    out = tmp_path / "why"
    assert refused(run_folder, "none.png", "--out", out) == "none.png: no such image or folder"
    assert "no such folder" in refused(run_folder, bad, "--good", tmp_path / "none", "--out", out)
    assert "is the folder that is read" in refused(run_folder, parts, "--out", parts)
    assert "no such folder" in refused(tmp_path / "none", bad, "--out", out)
    assert "engine: 'dense' is for masked nets" in refused(run_folder, bad, "--out", out, "--engine", "dense")
    assert not out.exists()
    explain_images(run_folder, [bad], out, device="cpu")
    assert "--overwrite replaces what is in it" in cli(run_folder, bad, "--out", out, "--device", "cpu")[2]
    code, _, _ = cli(run_folder, parts / "test/good", "--out", out, "--overwrite", "--device", "cpu")
    assert code == 0 and not (out / "explained/bad.png.png").exists()


def test_a_model_will_do(run_folder, bad, tmp_path):
    model = load(run_folder, "cpu")
    (one,) = explain_images(model, [str(bad)], tmp_path / "why")
    assert one.anomalous == bool(one.score > model.calibration.threshold)
