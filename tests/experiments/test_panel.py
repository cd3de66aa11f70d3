"""Figs. 3 and 4: which images are shown, what stands in a row, and what is written."""

import csv
import json
import shutil

import numpy as np
import pytest
from samples import draw_part

from glance_fast.data.cache import ImageCache
from glance_fast.data.images import read_image, resize, write_png
from glance_fast.data.layouts import normal_images
from glance_fast.data.masks import read_mask
from glance_fast.errors import UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.inputs import find_category
from glance_fast.evaluation.overlay import display_range, heat, overlay, scale
from glance_fast.experiments import panel as module
from glance_fast.experiments.local_alone import without_global
from glance_fast.experiments.panel import choose_rows, panel, shortened
from glance_fast.run import load

FILES = {"experiment.json", "results.csv", "panel.png", "panel.pdf"}


@pytest.fixture
def draw(run_folder, parts, tmp_path, reporter):
    """Run it; gives what is returned, the folder, and the figure that was saved."""

    def run(data=parts, out=tmp_path / "out", **more):
        figures = []
        original = module.save

        def save(figure, stem):
            figures.append(figure)
            return original(figure, stem)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "save", save)
            found = panel(run_folder, data, out, device="cpu", reporter=reporter, **more)
        return found, out, *figures

    return run


def refused(run, data, out, reporter, **more):
    with pytest.raises(UserError) as caught:
        panel(run, data, out, device="cpu", reporter=reporter, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def tiles(figure):
    """Pictures in rows; the last of the figure is the bar of colours."""
    pictures = [axes.images[0].get_array() for axes in figure.axes[:-1]]
    boxes = [axes.get_position().bounds for axes in figure.axes[:-1]]
    rows = {}
    for picture, (left, bottom, *_) in zip(pictures, boxes, strict=True):
        rows.setdefault(round(bottom, 6), []).append((left, np.asarray(picture)))
    return [[p for _, p in sorted(row, key=lambda pair: pair[0])] for _, row in sorted(rows.items())[::-1]]


@pytest.fixture
def kinds(parts, tmp_path):
    """A category with three types of defect: 4, 1 and 2 images."""
    data, rng = tmp_path / "kinds", np.random.default_rng(11)
    shutil.copytree(parts / "train", data / "train")
    for kind, count in (("bent", 4), ("cut", 1), ("odd $x_1$", 2)):
        for i in range(count):
            image = draw_part(rng, defect=True)
            write_png(data / "test" / kind / f"{i}.png", image)
            mask = np.uint8(image[..., 0] == 10) * 255
            write_png(data / "ground_truth" / kind / f"{i}_mask.png", mask)
    return data


# ---------------------------------------------------------------- which images


KINDS = ["bent"] * 5 + ["cut"] * 1 + ["bent"] * 2 + ["scratch"] * 3


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (None, (1, 1, 1)),
        (1, None),
        (2, None),
        (3, (1, 1, 1)),
        (5, (2, 1, 2)),
        (7, (3, 1, 3)),
        (9, (5, 1, 3)),
        (50, (7, 1, 3)),
    ],
)
def test_every_type_of_defect_is_there_before_one_comes_again(rows, counts):
    for seed in range(10):
        chosen = choose_rows(KINDS, [None] * 11, "defects", rows, np.random.default_rng(seed))
        assert chosen == sorted(set(chosen)) and len(chosen) == min(rows or 3, 11)
        found = [sum(KINDS[i] == kind for i in chosen) for kind in ("bent", "cut", "scratch")]
        assert tuple(found) == counts if counts else max(found) == 1


@pytest.mark.parametrize("choose", ["defects", "random"])
def test_the_seed_draws_any_of_them(choose):
    draws = [choose_rows(KINDS, [None] * 11, choose, 3, np.random.default_rng(s)) for s in (*range(60), 0)]
    assert draws[0] == draws[-1] and {i for chosen in draws for i in chosen} == set(range(11))


@pytest.mark.parametrize(
    ("choose", "rows", "chosen"),
    [
        ("worst", 2, [3, 1]),
        ("best", 2, [4, 0]),
        ("worst", None, [3, 1, 5, 0, 4]),
        ("best", 50, [4, 0, 5, 1, 3]),
    ],
)
def test_the_worst_and_the_best_come_in_their_order(choose, rows, chosen):
    pros = [0.8, 0.3, None, 0.1, 0.9, 0.5]
    assert choose_rows(["x"] * 6, pros, choose, rows, np.random.default_rng(0)) == chosen


def test_six_where_nothing_else_is_said():
    assert len(choose_rows(["x"] * 9, [0.5] * 9, "worst", None, np.random.default_rng(0))) == 6
    assert len(choose_rows(["x"] * 9, [0.5] * 9, "random", None, np.random.default_rng(0))) == 6


# ---------------------------------------------------------------- what is measured


def test_pro_is_of_the_image_alone_with_and_without_global_net(draw, run_folder, parts):
    found, out, _ = draw()
    model = load(run_folder, "cpu")
    with ImageCache(normal_images(parts), model.config.image_size) as cache:
        alone = without_global(model, cache)
    samples = [sample for sample in find_category(parts, parts / "out").samples if sample.defect != "good"]
    assert [row.image for row in found] == [f"test/punched/{i:03}.png" for i in range(3)]
    for row, sample in zip(found, samples, strict=True):
        mask = read_mask(*sample.masks)
        for judge, pro in ((model, row.pro), (alone, row.pro_local)):
            expected = metrics.pro_auc(judge.score([sample.path]).maps, [mask])
            assert pro == pytest.approx(expected, abs=1e-4)
    assert any(abs(row.pro - row.pro_local) > 1e-3 for row in found)
    assert {path.name for path in out.iterdir()} == FILES
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["image"], float(r["pro"]), float(r["pro_local"])) for r in rows] == [
        (r.image, r.pro, r.pro_local) for r in found
    ]
    assert [r["row"] for r in rows] == ["" if r.row is None else str(r.row) for r in found]
    settings = json.loads((out / "experiment.json").read_text())["settings"]
    assert (settings["choose"], settings["rows"], settings["plain"]) == ("defects", None, False)


def test_all_defective_images_are_measured_and_those_chosen_have_rows(draw, kinds):
    found, *_ = draw(kinds, choose="worst", rows=2)
    assert len(found) == 7
    order = sorted(found, key=lambda row: row.pro)
    assert [row.row for row in order] == [1, 2, None, None, None, None, None]


# ---------------------------------------------------------------- what a row shows


def test_a_row_shows_photograph_truth_maps_and_overlay(draw, run_folder, parts):
    found, _, figure = draw(choose=["punched/001.png"])
    (row,) = tiles(figure)
    image = read_image(parts / "test/punched/001.png")
    mask = read_mask(parts / "ground_truth/punched/001_mask.png")
    model = load(run_folder, "cpu")
    with ImageCache(normal_images(parts), model.config.image_size) as cache:
        alone = without_global(model, cache)
    with_, without = (judge.score([image]).maps[0] for judge in (model, alone))
    shown = resize(image, (384, 384))
    np.testing.assert_array_equal(row[0], shown)
    np.testing.assert_array_equal(row[1][::6, ::6, 0] > 0, mask)
    for tile, judge, score_map in ((row[2], alone, without), (row[3], model, with_)):
        low, high, _ = display_range(judge.calibration)
        expected = heat(scale(module.resize_map(score_map, (384, 384)), low, high))
        # A step of the colours, for scores differ in their last digits.
        assert np.abs(np.int32(tile) - expected).max() <= 8
    assert np.abs(np.int32(row[2]) - row[3]).max() > 30
    expected = overlay(shown, with_, *display_range(model.calibration))
    assert (np.abs(np.int32(row[4]) - expected).max(2) <= 8).mean() > 0.999
    assert texts(figure)[:8] == [
        "Photograph", "Truth", "Without Global-Net", "With Global-Net", "Overlay", "punched/001.png", "",
        f"PRO {found[0].pro_local:.3f}"
    ]  # fmt: skip
    assert texts(figure)[8] == f"PRO {found[0].pro:.3f}" and texts(figure)[-3:] == [
        "normal", "twice that", "threshold"
    ]  # fmt: skip


def test_plain_rows_have_one_map_and_need_no_normal_images(draw, run_folder, kinds):
    shutil.rmtree(kinds / "train")
    found, _, figure = draw(kinds, plain=True)
    assert all(row.pro_local is None and row.pro is not None for row in found)
    assert [len(row) for row in tiles(figure)] == [4, 4, 4]
    assert texts(figure)[:4] == ["Photograph", "Truth", "Anomaly map", "Overlay"]
    assert sum(text.startswith("PRO") for text in texts(figure)) == 3


def test_rows_come_by_type_and_names_are_no_formulas(draw, kinds):
    found, out, figure = draw(kinds)
    shown = [row for row in found if row.row is not None]
    assert [(row.row, row.defect) for row in shown] == [(1, "bent"), (2, "cut"), (3, "odd $x_1$")]
    assert any(text.startswith("odd $x_1$/") for text in texts(figure))
    assert [len(row) for row in tiles(figure)] == [5, 5, 5]
    assert (read_image(out / "panel.png") < 255).any()


def test_images_that_are_named_come_in_that_order_and_may_be_good(draw, parts):
    names = ["good/002.png", str(parts / "test/punched/000.png"), "test/punched/002.png"]
    found, _, figure = draw(choose=names)
    assert [(row.row, row.image) for row in found] == [
        (1, "test/good/002.png"), (2, "test/punched/000.png"), (3, "test/punched/002.png")
    ]  # fmt: skip
    assert found[0].pro is None and found[0].pro_local is None and found[1].pro is not None
    rows = tiles(figure)
    assert not rows[0][1].any() and rows[1][1].any()
    np.testing.assert_array_equal(rows[0][0], resize(read_image(parts / "test/good/002.png"), (384, 384)))


@pytest.mark.parametrize(("height", "width", "ratio"), [(64, 128, 0.5), (96, 64, 1.5), (256, 64, 1.5)])
def test_rows_are_as_high_as_their_images_up_to_a_limit(draw, kinds, height, width, ratio):
    path = kinds / "test" / "cut" / "0.png"
    write_png(path, resize(read_image(path), (height, width)))
    mask = read_mask(kinds / "ground_truth" / "cut" / "0_mask.png")
    taller = resize(np.repeat(np.uint8(mask)[..., None] * 255, 3, 2), (height, width))[..., 0] > 127
    write_png(kinds / "ground_truth" / "cut" / "0_mask.png", np.uint8(taller) * 255)
    _, _, figure = draw(kinds, choose=["cut/0.png"], plain=True)
    inches = figure.get_size_inches()
    for axes in figure.axes[:-1]:
        box = axes.get_position(original=True)
        assert box.height * inches[1] / (box.width * inches[0]) == pytest.approx(ratio)


def test_nothing_overlaps_and_nothing_is_cut_off(draw, kinds):
    long = kinds / "test" / "bent" / f"{'a long name ' * 12}.png"
    (kinds / "test" / "bent" / "0.png").rename(long)
    mask = kinds / "ground_truth" / "bent" / "0_mask.png"
    mask.rename(mask.with_name(f"{long.stem}_mask.png"))
    _, _, figure = draw(kinds, rows=7)
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.texts if t.get_text()]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    for i, box in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        for other in boxes[:i]:
            apart = (
                min(box.x1, other.x1) - max(box.x0, other.x0) < 1
                or min(box.y1, other.y1) - max(box.y0, other.y0) < 1
            )
            assert apart


def test_long_names_lose_their_middle():
    assert shortened("short", 44) == "short" and shortened("x" * 44, 44) == "x" * 44
    assert shortened("abcdefghij", 5) == "ab…ij" and len(shortened("y" * 99, 44)) <= 44


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"choose": "nicest"},
            "choose: expected defects, worst, best, random or paths of images, got 'nicest'",
        ),
        ({"choose": []}, "choose: from 1 to 50 images can be named, got 0"),
        (
            {"choose": ["a.png"], "rows": 3},
            "rows: the images that `choose` names are the rows; leave `rows` away",
        ),
        ({"rows": 0}, "rows: expected an integer from 1 to 50, got 0"),
        ({"rows": 51}, "rows: expected an integer from 1 to 50, got 51"),
    ],
)
def test_what_cannot_be_meant(run_folder, parts, tmp_path, reporter, more, line):
    assert refused(run_folder, parts, tmp_path / "out", reporter, **more) == line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("003.png", "{parts} has no test image 003.png"),
        ("", "{parts} has no test image "),
        ("unched/000.png", "{parts} has no test image unched/000.png"),
        ("train/good/000.png", "{parts} has no test image train/good/000.png"),
        ("000.png", "000.png may be test/good/000.png or test/punched/000.png; give more of its path"),
    ],
)
def test_names_that_are_not_one_image(run_folder, parts, tmp_path, reporter, name, said):
    line = refused(run_folder, parts, tmp_path / "out", reporter, choose=["punched/000.png", name])
    assert line == f"choose: {said.format(parts=parts)}"


def test_without_normal_images(run_folder, kinds, tmp_path, reporter):
    shutil.rmtree(kinds / "train")
    line = refused(run_folder, kinds, tmp_path / "out", reporter)
    assert line.startswith(f"{kinds}: no folder 'train/good' in it")
    assert line.endswith("; or leave the maps without Global-Net away (`plain=True`)")
    for i in range(8):
        write_png(kinds / "train" / "good" / f"{i}.png", draw_part(np.random.default_rng(i)))
    (kinds / "train" / "good" / "7.png").write_text("no image")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("of an earlier one")
    line = refused(run_folder, kinds, tmp_path / "out", reporter, overwrite=True)
    assert line == (
        f"{kinds}: at least 8 normal images are needed for maps without Global-Net, and 7 can be read; "
        "`plain=True` leaves these maps away"
    )
    assert (tmp_path / "out" / "results.csv").read_text() == "of an earlier one"


def test_no_defective_images(run_folder, parts, tmp_path, reporter):
    shutil.copytree(parts / "test" / "good", tmp_path / "data" / "test" / "good")
    line = refused(run_folder, tmp_path / "data", tmp_path / "out", reporter, plain=True)
    assert line.startswith(f"{tmp_path / 'data'}: no defective test images")


def test_masks_without_a_defect(draw, run_folder, kinds, tmp_path, reporter):
    for path in (kinds / "ground_truth").rglob("*.png"):
        write_png(path, np.zeros((64, 64), np.uint8))
    line = refused(run_folder, kinds, tmp_path / "out", reporter, choose="worst", plain=True)
    assert line == (
        f"{kinds}: no image has both defective and good pixels, so that none is the worst; "
        "`choose=random` draws some"
    )
    found, _, figure = draw(kinds, choose="random", plain=True)
    assert all(row.pro is None for row in found) and not any("PRO" in text for text in texts(figure))


def test_wrong_folders(run_folder, parts, tmp_path, reporter):
    assert "no such folder" in refused(run_folder, tmp_path / "none", tmp_path / "out", reporter)
    assert "no model.safetensors in it" in refused(parts, parts, tmp_path / "out", reporter)
    assert "is the folder that is read" in refused(run_folder, parts, run_folder, reporter)
    assert "lies among the test images" in refused(run_folder, parts, parts / "test" / "out", reporter)


def test_what_is_there_is_replaced_only_where_that_is_asked_for(draw, run_folder, parts, tmp_path, reporter):
    _, out, _ = draw(plain=True)
    before = (out / "results.csv").read_bytes()
    assert "is not empty" in refused(run_folder, parts, out, reporter)
    bad = shutil.copytree(parts, tmp_path / "bad")
    (bad / "test" / "punched" / "001.png").write_text("no image")
    assert "001.png" in refused(run_folder, bad, out, reporter, overwrite=True)
    assert (out / "results.csv").read_bytes() == before
    draw(overwrite=True)
    assert (out / "results.csv").read_bytes() != before and {path.name for path in out.iterdir()} == FILES
