"""``train`` and ``evaluate`` on data sets in the layouts that people have."""

import json
import shutil

import pytest
import trees
from commands import never, one_line

from glance_fast.data.layouts import normal_images


@pytest.fixture
def evaluated(cli, run_folder, tmp_path):
    """Evaluate a category; gives what was said, the metrics, and the folder."""

    def run(data, *more):
        out = tmp_path / "results"
        code, said, err = cli("evaluate", run_folder, data, "--out", out, "--device", "cpu", *more)
        assert code == 0, err
        return said, err, json.loads((out / "metrics.json").read_text(encoding="utf-8")), out

    return run


def test_loco_from_the_command_line(evaluated, tmp_path):
    data = trees.mvtec_loco(tmp_path / "loco/box")
    said, err, found, out = evaluated(data, "--metrics", "all")
    assert "MVTec LOCO: 2 good and 4 defective test images\n" in err
    assert found["layout"] == "MVTec LOCO" and 0 <= found["spro_5"] <= found["spro_30"] <= 1
    assert "sPRO" in said and f"{found['spro_30']:.3f}" in said
    for kind in ("logical_anomalies", "structural_anomalies"):
        assert f"{found['defects'][kind]['spro_5']:.3f}" in said
    # Where MVTec's evaluation of LOCO looks below --anomaly_maps_dir.
    assert len(list(out.glob("maps/box/test/*_anomalies/*.tiff"))) == 4


def test_visa_from_the_command_line(evaluated, tmp_path, cli, run_folder):
    data = trees.visa(tmp_path / "visa", "candle", "pcb1")
    said, err, found, out = evaluated(data)
    assert "VisA: 2 good and 2 defective test images\n" in err
    assert found["layout"] == "VisA" and f"{found['pro']:.3f}" in said and "candle" in said
    assert (out / "maps/candle/Data/Images/Anomaly/001.tiff").is_file()
    line = one_line(cli("evaluate", run_folder, data.parent, "--out", tmp_path / "other"))
    assert line.startswith(f"{data.parent}: holds several categories (candle, pcb1); give one of them")


def test_a_table_from_the_command_line(evaluated, tmp_path):
    path = trees.table(tmp_path / "parts.csv", *trees.TABLE)
    said, err, found, out = evaluated(path, "--json")
    assert json.loads(said) == found and found["layout"] == "CSV table" and found["images"] == 4
    assert err.count("CSV table") == 0 and (out / "maps/parts/photos/5.tiff").is_file()
    assert "photos/4.png," in (out / "scores.csv").read_text()


def test_ad2_is_written_for_its_server_and_replaced_as_a_whole(evaluated, tmp_path):
    data = trees.mvtec_ad2(tmp_path / "can")
    _, err, _, out = evaluated(data)
    assert "MVTec AD 2: 2 good and 2 defective test images, 4 without public truth\n" in err
    assert len(list(out.glob("anomaly_images/can/*/*.tiff"))) == 4
    assert len(list(out.glob("anomaly_images_thresholded/can/*/*.png"))) == 4
    shutil.rmtree(data / "test_private_mixed")
    evaluated(data, "--overwrite")
    assert len(list(out.glob("anomaly_images*/can/*/*"))) == 4


def test_folders_and_btad_from_the_command_line(evaluated, tmp_path):
    _, err, found, _ = evaluated(trees.sorted_folder(tmp_path / "plain", "good", "cut"))
    assert "plain folder: 2 good and 2 defective test images\n" in err and "No masks: where" in err
    assert found["pro"] is None and found["image_auroc"] is not None
    _, err, found, _ = evaluated(trees.btad(tmp_path / "01"), "--overwrite")
    assert "BTAD: 2 good and 2 defective test images\n" in err and found["pro"] is not None


@pytest.mark.parametrize(
    ("build", "broken", "message"),
    [
        (trees.mvtec_loco, "ground_truth/logical_anomalies/001", "001.png: has no mask; expected "),
        (trees.mvtec_ad2, "test_public", "no folder 'test_public' in it"),
        (
            lambda data: trees.visa(data.parent, "part"),
            "Data/Masks",
            "000.png: no such file (1 more like it)",
        ),
        (trees.btad, "ground_truth/ko/0001.bmp", "test/ko/0001.bmp: has no mask"),
    ],
)
def test_what_is_missing_is_one_line(cli, run_folder, tmp_path, build, broken, message):
    data = build(tmp_path / "part")
    path = data / broken
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    out = tmp_path / "out"
    assert message in one_line(cli("evaluate", run_folder, data, "--out", out))
    assert not out.exists()


def test_train_names_the_layout_and_takes_its_normal_images(cli, parts, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "glance_fast.training.fit.fit", lambda paths, *_, layout, **more: seen.append((layout, paths))
    )
    rows = [f"{path},good" for path in normal_images(parts)]
    path = tmp_path / "parts.csv"
    path.write_text("\n".join(["path,label", *rows, f"{parts / 'test/punched/000.png'},punched"]))
    assert cli("train", path, "--out", tmp_path / "run")[0] == 0
    assert cli("train", parts, "--out", tmp_path / "run2")[0] == 0
    assert seen == [("CSV table", normal_images(parts)), ("MVTec AD", normal_images(parts))]
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    few = trees.table(tmp_path / "few.csv", *trees.TABLE)
    line = one_line(cli("train", few, "--out", tmp_path / "run3"))
    assert line == f"{few}: 2 images; at least 8 are needed to train"
    path.write_text("path,label\nnone.png,good\n")
    line = one_line(cli("train", path, "--out", tmp_path / "run3"))
    assert line == f"{path}, line 2: {tmp_path}/none.png: no such file"
    assert not (tmp_path / "run3").exists()


@pytest.mark.slow
def test_a_model_is_trained_and_evaluated_on_a_table(cli, parts, small, tmp_path):
    """The whole way; the settings are those of the tests' run folder."""
    rows = [f"{path},good,,train" for path in normal_images(parts)]
    rows += [f"{parts}/test/good/{i:03}.png,ok,,test" for i in range(3)]
    truth = parts / "ground_truth/punched"
    rows += [f"{parts}/test/punched/{i:03}.png,punched,{truth}/{i:03}_mask.png,test" for i in range(3)]
    path = tmp_path / "plates.csv"
    path.write_text("\n".join(["path,label,mask,split", *rows]))
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    code, _, err = cli("train", path, "--out", tmp_path / "run", "--device", "cpu", *settings)
    assert code == 0 and "CSV table: 9 images to train on, 3 held out" in err
    results = []
    for data in (path, parts):
        out = tmp_path / f"{data.name}-out"
        assert cli("evaluate", tmp_path / "run", data, "--out", out, "--device", "cpu")[0] == 0
        results.append(json.loads((out / "metrics.json").read_text()))
    ours, theirs = results
    assert (ours.pop("layout"), theirs.pop("layout")) == ("CSV table", "MVTec AD")
    for found in results:
        found.pop("seconds")
    assert ours == theirs and ours["images"] == 6
