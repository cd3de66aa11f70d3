"""Evaluation from files to files, against the metrics called directly."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
from PIL import Image

import glance_fast.model
from glance_fast.config import Config
from glance_fast.data import images
from glance_fast.data.images import read_image, resize, write_png
from glance_fast.data.layouts import masks, open_category
from glance_fast.data.masks import read_mask, resize_mask
from glance_fast.data.score_maps import resize_map
from glance_fast.data.table import ScoreRow
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation import gallery, inputs, metrics
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.model import Glance

SIZE = (96, 80)  # height and width of the photographs; the model sees 64x64
THRESHOLD = 1.5
ODD = "Löcher & <b>\"'x'"


@pytest.fixture(scope="module")
def untrained():
    return Glance(Config(image_size=64, patch=32, stride=16, width=8))


@pytest.fixture
def model(untrained):
    """With thresholds that some images pass and some do not."""
    calibration = dataclasses.replace(untrained.calibration, threshold=THRESHOLD, pixel_threshold=THRESHOLD)
    untrained.calibration = calibration
    yield untrained
    untrained.calibration = dataclasses.replace(calibration, threshold=np.inf, pixel_threshold=np.inf)


@pytest.fixture
def plain(monkeypatch):
    """Without figures, which take most of the time."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    for place in ("evaluate.plot_curves", "report.plot_curves", "report.plot_scores"):
        monkeypatch.setattr(f"glance_fast.evaluation.{place}", lambda *_: buffer.getvalue())


def build(data, counts):
    """A category with images that differ, and a rectangle as the defect."""
    rng = np.random.default_rng(3)
    for defect, count in counts.items():
        for i in range(count):
            image = rng.integers(90, 130, (*SIZE, 3)).astype(np.uint8)
            if defect != "good":
                mask = np.zeros(SIZE, np.uint8)
                top, left = rng.integers(5, 50, 2)
                mask[top : top + 20, left : left + 17] = 255
                image[mask > 0] = rng.integers(0, 256, 3)
                write_png(data / "ground_truth" / defect / f"{i:03} a_mask.png", mask)
            write_png(data / "test" / defect / f"{i:03} a.png", image)
    return data


def run(model, data, out, **options):
    return evaluate(model, data, out, **options)


@pytest.fixture
def scored(monkeypatch):
    """What the model returned. Scored again, maps may differ in the last bit, and so do their ranks."""
    results, score = [], Glance.score

    def spy(self, images, *options, **more):
        results.append((list(images), score(self, images, *options, **more)))
        return results[-1][1]

    monkeypatch.setattr(Glance, "score", spy)
    return results


def direct(scored, data):
    """Samples, maps, image scores, masks and labels without any of the code under test."""
    samples = open_category(data).samples
    given = [image for images, _ in scored for image in images]
    assert len(given) == len(samples)
    for image, sample in zip(given, samples, strict=True):
        assert np.array_equal(image, resize(read_image(sample.path), (64, 64)))
    maps = np.concatenate([result.maps for _, result in scored])
    scores = np.concatenate([result.scores for _, result in scored])
    truth = [
        resize_mask(read_mask(s.masks[0]), (64, 64)) if s.masks else np.zeros((64, 64), bool) for s in samples
    ]
    return samples, maps, scores, np.stack(truth), np.array([s.defect != "good" for s in samples])


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Text(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_data(self, data):
        self.seen.append(data)


def test_everything_agrees_with_direct_calls(model, scored, tmp_path):
    data = build(tmp_path / "a part", {"good": 4, ODD: 3, "cut": 3})
    calls = []
    found = run(model, data, tmp_path / "out", progress=lambda *call: calls.append(call))
    samples, maps, scores, masks, defective = direct(scored, data)

    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")) == found
    assert found["pro"] == metrics.pro_auc(maps, masks)
    assert found["pixel_auroc"] == metrics.pixel_auroc(maps, masks)
    assert found["image_auroc"] == metrics.image_auroc(scores, defective)
    assert set(found["defects"]) == {ODD, "cut"}
    for defect, numbers in found["defects"].items():
        which = [i for i, s in enumerate(samples) if s.defect in ("good", defect)]
        assert numbers["pro"] == metrics.pro_auc(maps[which], masks[which])
        assert numbers["pixel_auroc"] == metrics.pixel_auroc(maps[which], masks[which])
        assert numbers["image_auroc"] == metrics.image_auroc(scores[which], defective[which])
        called = [scores[i] > THRESHOLD for i in which if defective[i]]
        assert (numbers["images"], numbers["missed"]) == (3, 3 - sum(called))
        assert numbers["recall"] == sum(called) / 3
    above = scores > THRESHOLD
    assert found["threshold"] == {
        "value": THRESHOLD,
        "false_positives": int((above & ~defective).sum()),
        "missed": int((~above & defective).sum()),
        "f1": metrics.f1_score(above, defective),
    }
    assert found.items() >= metrics.pixel_metrics(maps, masks).items()
    assert found["image_ap"] == metrics.image_average_precision(scores, defective)
    assert found["image_f1_max"] == metrics.image_f1_max(scores, defective)
    assert (found["images"], found["engine"], found["precision"]) == (10, "auto", "fp32")
    assert found["seconds"] > 0 and found["notes"] == []
    assert calls == [(0, 10), (8, 10), (10, 10)]

    table = rows(tmp_path / "out" / "scores.csv")
    # Those of score-dir, and the truth.
    assert list(table[0]) == [*ScoreRow._fields, "defect", "label"]
    share = model.calibration.share_above
    assert [row["above"] for row in table] == [f"{share(float(score)):.3g}" for score in scores]
    assert [row["path"] for row in table] == [s.path.relative_to(data).as_posix() for s in samples]
    assert [row["defect"] for row in table] == [s.defect for s in samples]
    assert [row["label"] for row in table] == [str(int(d)) for d in defective]
    assert [row["anomalous"] for row in table] == [str(int(a)) for a in above]
    assert (np.array([row["score"] for row in table], np.float32) == scores).all()

    for sample, score_map in zip(samples, maps, strict=True):
        path = tmp_path / "out" / "maps" / "a part" / "test" / sample.defect / f"{sample.path.stem}.tiff"
        written = tifffile.imread(path)
        assert written.dtype == np.float32 and written.shape == SIZE
        assert (written == resize_map(score_map, SIZE)).all()
    # Nothing temporary or else is left.
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) == 10 + 4

    assert Image.open(tmp_path / "out" / "curves.png").format == "PNG"
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    text = Text(html).seen
    assert "http" not in html and "<b>" not in html
    assert f"Defect: {ODD}" in text and f"{found['pro']:.3f}" in text
    for sample, called in zip(samples, above, strict=True):
        if called == (sample.defect == "good"):
            assert f"{sample.defect}/{sample.path.name}" in text  # every wrong verdict is shown


def test_the_category_is_named_by_its_folder_however_it_is_given(untrained, plain, tmp_path, monkeypatch):
    data = build(tmp_path / "bolt", {"good": 1, "cut": 1})
    monkeypatch.chdir(data / "test")
    for i, given in enumerate(("..", "../../bolt", str(data))):
        run(untrained, given, tmp_path / str(i))
        assert (tmp_path / str(i) / "maps" / "bolt" / "test" / "good" / "000 a.tiff").is_file()


def test_a_test_set_without_defects_is_scored(model, tmp_path):
    data = build(tmp_path / "part", {"good": 2})
    found = run(model, data, tmp_path / "out")
    assert [found[name] for name in ("pro", "pixel_auroc", "image_auroc")] == [None] * 3
    assert found["defects"] == {} and found["threshold"]["missed"] is None
    assert found["threshold"]["false_positives"] is not None
    [note] = found["notes"]
    assert "No defective images" in note
    assert note in Text((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).seen
    assert len(rows(tmp_path / "out" / "scores.csv")) == 2


def test_a_test_set_without_good_images_has_pixel_metrics(model, scored, plain, tmp_path):
    data = build(tmp_path / "part", {"cut": 3})
    found = run(model, data, tmp_path / "out")
    _, maps, _, masks, _ = direct(scored, data)
    assert found["image_auroc"] is None and found["defects"]["cut"]["image_auroc"] is None
    assert found["pro"] == metrics.pro_auc(maps, masks) == found["defects"]["cut"]["pro"]
    assert "No good images" in found["notes"][0]
    assert found["threshold"]["false_positives"] is None and found["threshold"]["missed"] is not None


def test_empty_masks_count_for_images_alone(model, plain, tmp_path):
    data = build(tmp_path / "part", {"good": 2, "cut": 2})
    write_png(data / "ground_truth" / "cut" / "001 a_mask.png", np.zeros(SIZE, np.uint8))
    found = run(model, data, tmp_path / "out")
    assert found["pro"] is not None and "Empty masks of defective images: 1." in found["notes"][0]
    write_png(data / "ground_truth" / "cut" / "000 a_mask.png", np.zeros(SIZE, np.uint8))
    found = run(model, data, tmp_path / "out")
    assert found["pro"] is None and found["image_auroc"] is not None
    assert found["notes"] == ["All masks are empty: PRO and pixel AUROC cannot be computed."]


def test_an_uncalibrated_model_gives_no_verdicts(untrained, plain, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    found = run(untrained, data, tmp_path / "out")
    assert found["threshold"] == {"value": None, "false_positives": None, "missed": None, "f1": None}
    assert {row["anomalous"] for row in rows(tmp_path / "out" / "scores.csv")} == {""}
    assert "not calibrated" in found["notes"][0]


def test_a_defect_that_vanishes_by_resizing_is_kept_as_one_pixel(model, scored, plain, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    mask = read_mask(data / "ground_truth" / "cut" / "000 a_mask.png")
    mask[90, 77] = True  # less than half of one of the model's pixels
    write_png(data / "ground_truth" / "cut" / "000 a_mask.png", mask.astype(np.uint8) * 255)
    found = run(model, data, tmp_path / "out")
    samples, maps, _, masks, _ = direct(scored, data)
    assert not masks[:, 60, 62].any()
    masks[[s.defect == "cut" for s in samples], 60, 62] = True
    assert found["pro"] == metrics.pro_auc(maps, masks)
    assert found["notes"][0].startswith("Defects that vanish at the model's image size, 64x64: 1.")


def test_bad_files_are_all_named_before_anything_is_scored(model, tmp_path, monkeypatch):
    data = build(tmp_path / "part", {"good": 2, "cut": 3})
    monkeypatch.setattr(type(model), "score", lambda *_: pytest.fail("scored in spite of bad files"))
    bad = data / "test" / "good" / "001 a.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(ImageError) as caught:
        run(model, data, tmp_path / "out")
    assert caught.value.path == bad and "\n" not in str(caught.value)

    mask = data / "ground_truth" / "cut" / "000 a_mask.png"
    mask.write_bytes(mask.read_bytes()[:60])
    small = data / "ground_truth" / "cut" / "001 a_mask.png"
    write_png(small, np.zeros((10, 10), np.uint8))
    with pytest.raises(ImageError) as caught:
        run(model, data, tmp_path / "out")
    for name in (bad, mask, small):
        assert str(name) in str(caught.value)
    assert "\n" not in str(caught.value) and "2 more" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_file_is_listed_and_decoded_once(model, plain, tmp_path, monkeypatch):
    data = build(tmp_path / "part", {"good": 2, "cut": 3})
    seen = []

    def counted(module, name):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, *more: (seen.append(path), whole(path, *more))[1])

    counted(inputs, "open_category")
    for module in (images, inputs, glance_fast.model):
        counted(module, "read_image")
    counted(masks, "read_mask")
    out = tmp_path / "out"
    category = inputs.find_category(data, out)
    photographs = inputs.read_photographs(category, model.prepare, model.config.image_size)
    found = evaluate(model, category, out, photographs=photographs)
    files = [path for path in data.rglob("*.png") if path.is_file()]
    assert sorted(seen) == sorted([data, *files]) and len(files) == 8 and found["images"] == 5


def test_maps_go_where_evaluate_is_told_and_no_other_photographs_are_taken(model, plain, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    category = inputs.find_category(data, tmp_path / "first")
    evaluate(model, category, tmp_path / "second")
    assert not (tmp_path / "first").exists() and len(list(tmp_path.glob("second/maps/**/*.tiff"))) == 2
    with pytest.raises(UserError, match="among the test images"):
        evaluate(model, category, data / "test" / "result")
    smaller = inputs.read_photographs(category, lambda image: image[:32, :32], (32, 32))
    with pytest.raises(UserError, match=r"photographs: \[2, 32, 32\] were read, and \[2, 64, 64\] are to be"):
        evaluate(model, category, tmp_path / "third", photographs=smaller)
    assert not (tmp_path / "third").exists()


def test_a_missing_mask_is_named(model, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 2})
    (data / "ground_truth" / "cut" / "001 a_mask.png").unlink()
    with pytest.raises(UserError, match=r"001 a\.png: has no mask; expected .*001 a_mask\.png"):
        run(model, data, tmp_path / "out")


def test_no_category(model, tmp_path):
    with pytest.raises(UserError, match="no folder 'test'"):
        run(model, tmp_path, tmp_path / "out")


def test_two_images_of_one_name_are_refused(model, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    write_png(data / "test" / "good" / "000 a.bmp", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match="has the same name as"):
        run(model, data, tmp_path / "out")


def test_output_among_the_test_images_is_refused(model, plain, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    with pytest.raises(UserError, match="among the test images"):
        run(model, data, data / "test" / "result")
    run(model, data, data / "result")


def test_scores_that_are_not_finite_are_the_models_fault(model, tmp_path, monkeypatch):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    score = type(model).score

    def broken(*arguments, **more):
        result = score(*arguments, **more)
        result.maps[1, 3, 4] = np.nan
        return result

    monkeypatch.setattr(type(model), "score", broken)
    with pytest.raises(UserError, match=r"good.000 a\.png: its scores are not finite"):
        run(model, data, tmp_path / "out")


def test_chunks_are_as_large_as_the_precision_allows(model, plain, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Glance, "at_once", lambda _, precision="auto": asked.append(precision) or 3)
    monkeypatch.setattr(glance_fast.model, "has_bf16", lambda device: True)
    run(model, build(tmp_path / "part", {"good": 1, "cut": 1}), tmp_path / "out", precision="bf16")
    assert set(asked) == {"bf16"}


def test_an_unknown_engine_is_refused(model, tmp_path):
    data = build(tmp_path / "part", {"good": 1, "cut": 1})
    with pytest.raises(UserError, match="engine: 'fast' is none of"):
        evaluate(model, data, tmp_path / "out", engine="fast")
    with pytest.raises(UserError, match="engine: 'grouped' is for masked nets"):
        evaluate(model, data, tmp_path / "out", engine="grouped")
    assert not (tmp_path / "out").exists()


def test_a_masked_net_is_evaluated_by_the_engine_asked_for(plain, scored, tmp_path):
    masked = Glance(Config(net="pyramid", image_size=64, patch=32, stride=16, width=8))
    data = build(tmp_path / "part", {"good": 2, "cut": 2})
    asked, score = [], Glance.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Glance, "score", lambda *a, **more: (asked.append(a[2:]), score(*a, **more))[1])
        found = run(masked, data, tmp_path / "out", engine="grouped")
    assert found["engine"] == "grouped" and asked == [("grouped", "auto")]
    _, maps, _, masks, _ = direct(scored, data)
    assert found["pro"] == metrics.pro_auc(maps, masks)


def test_only_so_many_misses_are_shown_and_the_rest_is_counted(model, plain, tmp_path, monkeypatch):
    data = build(tmp_path / "part", {"good": 1, "cut": 6})
    model.calibration = dataclasses.replace(model.calibration, threshold=1e9)
    monkeypatch.setattr(gallery, "MOST_WRONG", 2)
    found = run(model, data, tmp_path / "out")
    assert found["threshold"]["missed"] == 6
    text = Text((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).seen
    # Two misses, the clearest and the median, all of them below this threshold.
    assert text.count("missed") == 4 and "2 more missed images stand in scores.csv." in text


def test_the_report_shows_the_metrics_that_are_asked_for(model, tmp_path):
    data = build(tmp_path / "part", {"good": 2, "cut": 2})
    found = run(model, data, tmp_path / "out", shown=["pixel_ap", "image_f1_max"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Pixel AP" in page and f"{found['pixel_ap']:.3f}" in page and "Image F1-max" in page
    assert "Pixel AUROC" not in page and found["pixel_auroc"] is not None
    for wrong in (["ap"], [], "pro"):
        with pytest.raises(UserError, match="metrics: expected some of pro, pro_5"):
            run(model, data, tmp_path / "out", shown=wrong)
