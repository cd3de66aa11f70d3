"""Layouts are found by looking; which images are normal, which test image has which masks."""

from pathlib import Path

import numpy as np
import pytest
import trees

from glance_fast.data import layouts
from glance_fast.data.images import write_png
from glance_fast.data.layouts import (
    TestSample,
    categories,
    find_layout,
    normal_images,
    open_category,
    read_defects,
    read_sample_mask,
)
from glance_fast.errors import ImageError, UserError


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def _names(root: Path, paths) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def _told(category) -> list[tuple[str, str, list[str]]]:
    """Place, defect and masks of every sample, as names."""
    base = category.base
    return [(_names(base, [s.path])[0], s.defect, _names(base, s.masks)) for s in category.samples]


@pytest.fixture
def made(tmp_path) -> dict[str, Path]:
    """A category in every layout, by the layout's name."""
    made = {
        "MVTec AD": trees.mvtec_ad(tmp_path / "ad"),
        "MVTec AD 2": trees.mvtec_ad2(tmp_path / "ad2"),
        "MVTec LOCO": trees.mvtec_loco(tmp_path / "loco"),
        "VisA": trees.visa(tmp_path / "visa", "candle", "pcb10", "pcb2"),
        "BTAD": trees.btad(tmp_path / "btad/01"),
        "plain folder": trees.sorted_folder(tmp_path / "plain", "good", "cut", "dent"),
        "CSV table": trees.table(tmp_path / "csv/parts.csv", *trees.TABLE),
    }
    assert list(made) and set(made) == {layout.name for layout in layouts.LAYOUTS}
    return made


# ---------------------------------------------------------------- every layout


def test_each_layout_is_found_and_named(made):
    for name, data in made.items():
        assert find_layout(data).name == find_layout(str(data)).name == open_category(data).layout == name
    counts = {name: str(open_category(data)) for name, data in made.items()}
    assert counts == {
        "MVTec AD": "MVTec AD: 2 good and 2 defective test images",
        "MVTec AD 2": "MVTec AD 2: 2 good and 2 defective test images, 4 without public truth",
        "MVTec LOCO": "MVTec LOCO: 2 good and 4 defective test images",
        "VisA": "VisA: 2 good and 2 defective test images",
        "BTAD": "BTAD: 2 good and 2 defective test images",
        "plain folder": "plain folder: 2 good and 4 defective test images",
        "CSV table": "CSV table: 2 good and 2 defective test images",
    }


def test_normal_images_are_those_of_the_training_split(made):
    expected = {
        "MVTec AD": ["train/good/000.png", "train/good/001.png"],
        "MVTec AD 2": ["train/good/000_regular.png", "train/good/001_regular.png"],
        "MVTec LOCO": ["train/good/000.png", "train/good/001.png"],
        "VisA": ["Data/Images/Normal/0000.JPG", "Data/Images/Normal/0001.JPG"],
        "BTAD": ["train/ok/0000.bmp", "train/ok/0001.bmp"],
        "CSV table": ["photos/0.png", "photos/1.png"],
    }
    for name, images in expected.items():
        base = made[name].parent if name == "CSV table" else made[name]
        assert _names(base, normal_images(made[name])) == images


def test_categories_of_all_layouts_below_one_root(made, tmp_path):
    found = categories(tmp_path)
    names = ["ad", "ad2", "btad/01", "loco", "plain", "visa/candle", "visa/pcb2", "visa/pcb10"]
    # A table counts where there is nothing else; see below.
    assert [name for name, _ in found] == names
    assert [path for _, path in found] == [tmp_path / name for name in names]
    for _, path in found:
        assert open_category(path).samples


def test_a_root_that_is_a_category_itself(made, monkeypatch):
    for data in made.values():
        name = "parts" if data.is_file() else data.name
        assert categories(data) == categories(str(data)) == [(name, data)]
    monkeypatch.chdir(made["MVTec AD"])
    assert categories(".") == [("ad", Path())]


def test_tables_are_categories_where_no_folder_is(tmp_path):
    trees.table(tmp_path / "b10.csv", *trees.TABLE)
    (tmp_path / "b9.csv").write_text("Label, Path\n")
    (tmp_path / "scores.csv").write_text("path,score\n")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe")
    assert categories(tmp_path) == [("b9", tmp_path / "b9.csv"), ("b10", tmp_path / "b10.csv")]
    trees.mvtec_ad(tmp_path / "part")
    assert categories(tmp_path) == [("part", tmp_path / "part")]


def test_links_between_categories_are_followed_once(tmp_path):
    data = trees.mvtec_ad(tmp_path / "data/part")
    (tmp_path / "data/part2").symlink_to(data, target_is_directory=True)
    (tmp_path / "data/loop").mkdir()
    (tmp_path / "data/loop/up").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "root").symlink_to(tmp_path / "data", target_is_directory=True)
    assert [path.resolve() for _, path in categories(tmp_path / "root")] == [data]


@pytest.mark.parametrize(
    ("use", "phrase"),
    [
        (find_layout, r"holds several categories \(c2, c10, deep/c\); give one of them, such as \S*/c2$"),
        (normal_images, "holds several categories"),
        (open_category, "holds several categories"),
    ],
)
def test_several_categories_are_listed(tmp_path, use, phrase):
    _touch(tmp_path, "c10/train/good/1.png", "c2/test/ko/1.png", "deep/c/test_public/bad/1.png", "x/1.png")
    with pytest.raises(UserError, match=phrase):
        use(tmp_path)


def test_so_many_categories_that_only_some_are_listed(tmp_path):
    for i in range(30):
        (tmp_path / f"c{i}/train/good").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\(c0, c1, .*, c19 and 10 more\); give one of them"):
        find_layout(tmp_path)


@pytest.mark.parametrize("use", [find_layout, normal_images, open_category, categories])
def test_paths_that_are_none(tmp_path, use):
    _touch(tmp_path, "file.png")
    for name, phrase in (
        ("none", "no such folder"),
        ("n.csv", "no such file"),
        ("file.png", "is a file, not"),
    ):
        with pytest.raises(UserError, match=f"{name}: {phrase}"):
            use(tmp_path / name)


def test_a_root_without_any_category(tmp_path):
    _touch(tmp_path, "a/1.png", "b/c/2.png")
    with pytest.raises(
        UserError, match=r"no category in it or below it; known layouts: MVTec LOCO, .*CSV table"
    ):
        categories(tmp_path)


def test_output_among_the_images_that_are_searched(made):
    inside = {
        "MVTec AD": "test/out",
        "MVTec AD 2": "test_private/out",
        "MVTec LOCO": "test/out",
        "BTAD": "test/out",
        "plain folder": "out",
    }
    for name, data in made.items():
        category = open_category(data)
        if name in inside:
            with pytest.raises(UserError, match="lies among the test images"):
                category.targets(data / inside[name])
        outside = data.parent / "out"
        assert len(set(category.targets(outside))) == len(category.samples)


def test_maps_mirror_the_tree_of_each_layout(made, tmp_path):
    expected = {
        "MVTec AD": "ad/test/cut/001.tiff",
        "MVTec AD 2": "ad2/test_public/bad/001_regular.tiff",
        "MVTec LOCO": "loco/test/structural_anomalies/001.tiff",
        "VisA": "candle/Data/Images/Anomaly/001.tiff",
        "BTAD": "01/test/ko/0001.tiff",
        "plain folder": "plain/cut/1.tiff",
        "CSV table": "parts/photos/5.tiff",
    }
    for name, data in made.items():
        assert tmp_path / "out/maps" / expected[name] in open_category(data).targets(tmp_path / "out")


# ---------------------------------------------------------------- MVTec AD


def test_samples_and_masks_of_mvtec_ad(tmp_path):
    _touch(tmp_path, "test/good/0.png", "test/crack/10.png", "test/crack/2.png", "test/hole/1.jpg")
    _touch(tmp_path, "ground_truth/crack/10_mask.png", "ground_truth/crack/2.png")
    _touch(tmp_path, "ground_truth/hole/1_mask.png", "ground_truth/crack/2_mask.png.txt")
    assert _told(open_category(tmp_path)) == [
        ("test/crack/2.png", "crack", ["ground_truth/crack/2.png"]),
        ("test/crack/10.png", "crack", ["ground_truth/crack/10_mask.png"]),
        ("test/good/0.png", "good", []),
        ("test/hole/1.jpg", "hole", ["ground_truth/hole/1_mask.png"]),
    ]


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        (["train/good/1.png"], "no folder 'test'"),
        (["test/1.png"], "1.png: lies directly in 'test'; move it to test/good or to test/<defect>"),
        (["test/crack/1.png"], "1.png: has no mask; expected .*ground_truth/crack/1_mask.png$"),
        (
            ["test/crack/1.png", "test/crack/2.png", "ground_truth/hole/1_mask.png"],
            r"has no mask.*\(1 more like",
        ),
        (["test/good/1.png", "test/crack/1.png", "ground_truth/hole/1_mask.png"], "has no mask"),
        (["test/notes.txt"], "no image"),
    ],
)
def test_test_folder_refused(tmp_path, files, phrase):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=phrase):
        open_category(tmp_path)


def test_no_masks_at_all_leave_what_can_be_known_of_images(tmp_path):
    _touch(tmp_path, "train/good/1.png", "test/good/1.png", "test/crack/1.png", "ground_truth/readme.txt")
    category = open_category(tmp_path)
    assert _told(category) == [("test/crack/1.png", "crack", []), ("test/good/1.png", "good", [])]
    assert category.layout == "MVTec AD"


def test_two_images_of_one_name_are_refused_and_a_category_is_named_by_its_folder(tmp_path, monkeypatch):
    data = _touch(tmp_path / "part", "test/good/1.png", "test/good/1.bmp", "train/good/1.png")
    monkeypatch.chdir(data / "test")
    category = open_category("..")
    assert category.name == "part"
    with pytest.raises(UserError, match=r"1\.png: has the same name as 1\.bmp; rename one"):
        category.targets(tmp_path)


def test_sample_mask(tmp_path):
    truth = np.zeros((6, 8), np.uint8)
    truth[1:3, 4:7] = 255
    write_png(tmp_path / "m.png", truth)
    sample = TestSample(tmp_path / "i.png", "crack", (tmp_path / "m.png",))
    np.testing.assert_array_equal(read_sample_mask(sample, (6, 8)), truth > 0)
    with pytest.raises(ImageError, match=r"the mask is 8x6, its image 6x8 \(.*i.png\)"):
        read_sample_mask(sample, (8, 6))
    normal = read_sample_mask(TestSample(tmp_path / "i.png", "good"), (5, 4))
    assert normal.shape == (5, 4) and normal.dtype == bool and not normal.any()


# ---------------------------------------------------------------- MVTec AD 2


def test_samples_of_ad2_are_the_public_ones(tmp_path):
    category = open_category(trees.mvtec_ad2(tmp_path / "can"))
    truth = "test_public/ground_truth/bad/{}_regular_mask.png"
    assert _told(category) == [
        ("test_public/bad/000_regular.png", "bad", [truth.format("000")]),
        ("test_public/bad/001_regular.png", "bad", [truth.format("001")]),
        ("test_public/good/000_regular.png", "good", []),
        ("test_public/good/001_regular.png", "good", []),
    ]
    assert _names(tmp_path / "can", category.unlabelled) == [
        "test_private/000_regular.png",
        "test_private/001_regular.png",
        "test_private_mixed/000_mixed.png",
        "test_private_mixed/001_mixed.png",
    ]
    assert open_category(trees.mvtec_ad2(tmp_path / "rice", private=False)).unlabelled == []


def test_ad2_without_what_is_needed(tmp_path):
    _touch(tmp_path / "a", "train/good/1.png", "test_private/000_regular.png")
    assert _names(tmp_path / "a", normal_images(tmp_path / "a")) == ["train/good/1.png"]
    with pytest.raises(UserError, match="a: no folder 'test_public' in it, which should hold good, bad and"):
        open_category(tmp_path / "a")
    _touch(tmp_path / "b", "test_public/bad/1.png", "test_public/bad/2.png")
    _touch(tmp_path / "b", "test_public/ground_truth/bad/2_mask.png")
    with pytest.raises(UserError, match=r"1\.png: has no mask; expected .*ground_truth/bad/1_mask\.png$"):
        open_category(tmp_path / "b")
    with pytest.raises(UserError, match="b: no folder 'train/good' in it"):
        normal_images(tmp_path / "b")


# ---------------------------------------------------------------- MVTec LOCO


def test_masks_and_saturations_of_loco(tmp_path):
    category = open_category(trees.mvtec_loco(tmp_path / "box"))
    assert _told(category)[2:] == [
        (
            "test/logical_anomalies/000.png",
            "logical_anomalies",
            ["ground_truth/logical_anomalies/000/000.png"],
        ),
        (
            "test/logical_anomalies/001.png",
            "logical_anomalies",
            [f"ground_truth/logical_anomalies/001/{name}.png" for name in ("000", "001")],
        ),
        *(
            (
                f"test/structural_anomalies/00{i}.png",
                "structural_anomalies",
                [f"ground_truth/structural_anomalies/00{i}/000.png"],
            )
            for i in range(2)
        ),
    ]
    both = category.samples[3]
    defects = read_defects(both, (64, 64), category.saturations)
    assert [(int(mask.sum()), saturation) for mask, saturation in defects] == [(192, 30), (192, 96)]
    whole = read_sample_mask(both, (64, 64))
    assert whole.sum() == 192 + 128 and (whole == (defects[0].mask | defects[1].mask)).all()
    assert read_defects(category.samples[0], (64, 64), category.saturations) == []


@pytest.mark.parametrize(
    ("threshold", "relative", "area", "pixels"),
    [(30, False, 192, 30), (30, False, 12, 12), (0.5, True, 193, 96), (1.0, True, 7, 7), (0.1, True, 4, 1)],
)
def test_how_much_of_a_defect_suffices(threshold, relative, area, pixels):
    assert layouts.Saturation(threshold, relative).pixels(area) == pixels


def test_loco_without_a_config_has_masks_alone(tmp_path):
    data = trees.mvtec_loco(tmp_path / "box")
    (data / "defects_config.json").unlink()
    category = open_category(data)
    assert category.layout == "MVTec LOCO" and category.saturations is None
    assert read_sample_mask(category.samples[3], (64, 64)).sum() == 192 + 128


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "expected a list"),
        ("[1]", r"1: expected pixel_value from 1 to 255"),
        (
            '[{"pixel_value": 0, "saturation_threshold": 1, "relative_saturation": false}]',
            "pixel_value from 1",
        ),
        ('[{"pixel_value": 1, "saturation_threshold": 1.5, "relative_saturation": true}]', "up to 1 where"),
        (
            '[{"pixel_value": 1, "saturation_threshold": 0, "relative_saturation": false}]',
            "expected pixel_value",
        ),
        (
            '[{"pixel_value": 1, "saturation_threshold": "a", "relative_saturation": false}]',
            "saturation_thre",
        ),
        ('[{"pixel_value": 1, "saturation_threshold": 5}]', "relative_saturation true or false"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('[{"pixel_value": ' + "9" * 5000 + "}]", "cannot be read as JSON"),
        ('["' + "x" * 9999 + '"]', "expected pixel_value"),
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_configs_of_loco_that_are_none(tmp_path, text, phrase):
    data = trees.mvtec_loco(tmp_path / "box")
    (data / "defects_config.json").write_text(text)
    with pytest.raises(UserError, match=f"defects_config.json: .*{phrase}") as caught:
        open_category(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_masks_of_loco_that_are_wrong(tmp_path):
    data = trees.mvtec_loco(tmp_path / "box")
    category = open_category(data)
    sample = category.samples[3]
    second = sample.masks[1]
    for values, phrase in (
        (
            trees.box(7),
            "001.png: holds the value 7, but defects_config.json of its category names 253, 254, 255",
        ),
        (
            trees.box(255) + trees.box(1, part=(slice(0, 2), slice(0, 2))),
            "needed is one value .* it holds 1, 255",
        ),
        (trees.box(0), "needed is one value beside 0, of one kind of defect; it holds none"),
        (trees.box(255, (64, 60)), "the mask is 60x64, its image 64x64"),
        (np.dstack([trees.box(255)] * 2 + [trees.box(0)]), "has colours; needed is one channel"),
    ):
        trees.save(second, values)
        with pytest.raises(ImageError, match=phrase):
            read_defects(sample, (64, 64), category.saturations)
    for mask in sample.masks:
        mask.unlink()
    with pytest.raises(UserError, match=r"no image in this folder"):
        open_category(data)
    second.parent.rmdir()
    with pytest.raises(UserError, match=r"001.png: has no mask; expected \S*/logical_anomalies/001/000.png$"):
        open_category(data)


# ---------------------------------------------------------------- VisA


def test_samples_of_visa(tmp_path, monkeypatch):
    data = trees.visa(tmp_path / "visa", "candle", "pcb1")
    category = open_category(data)
    assert _told(category) == [
        ("Data/Images/Normal/0002.JPG", "good", []),
        ("Data/Images/Normal/0003.JPG", "good", []),
        ("Data/Images/Anomaly/000.JPG", "anomaly", ["Data/Masks/Anomaly/000.png"]),
        ("Data/Images/Anomaly/001.JPG", "anomaly", ["Data/Masks/Anomaly/001.png"]),
    ]
    for sample in category.samples[2:]:
        assert (read_sample_mask(sample, (64, 64)) == (trees.box() > 0)).all()
    monkeypatch.chdir(data)
    here = open_category(".")
    assert here.name == "candle" and _told(here) == _told(category)
    assert [path.name for path in normal_images(".")] == ["0000.JPG", "0001.JPG"]


def test_visa_in_its_converted_form_is_mvtec_ad(tmp_path):
    _touch(
        tmp_path, "train/good/0000.JPG", "test/good/0002.JPG", "test/bad/000.JPG", "ground_truth/bad/000.png"
    )
    category = open_category(tmp_path)
    assert category.layout == "MVTec AD"
    assert _told(category)[0] == ("test/bad/000.JPG", "bad", ["ground_truth/bad/000.png"])


def test_visa_whose_table_is_wrong(tmp_path):
    data = trees.visa(tmp_path / "visa", "candle")
    split = tmp_path / "visa/split_csv/1cls.csv"
    whole = split.read_text()
    (data / "Data/Images/Normal/0001.JPG").unlink()
    with pytest.raises(UserError, match=r"1cls.csv, line 3: \S*/Normal/0001.JPG: no such file$"):
        normal_images(data)
    for path in (data / "Data/Masks/Anomaly").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"line 6: \S*/Masks/Anomaly/000.png: no such file \(1 more like it\)$"
    ):
        open_category(data)
    for text, phrase in (
        (whole.replace("label", "kind"), "1cls.csv: no column label; its first line must name the columns"),
        ("", "no column object and no split and no label and no image and no mask; "),
        (whole.replace("candle,test", "candle,TEST"), "names no image of 'candle' in split 'test'"),
        (whole.replace(",candle/Data/Masks/Anomaly/001.png", ","), "line 7: no mask of a defective image"),
    ):
        split.write_text(text)
        with pytest.raises(UserError, match=phrase):
            open_category(data)
    split.write_text(whole.replace("train,normal", "train,anomaly"))
    with pytest.raises(UserError, match="names no normal image of 'candle' in split 'train'"):
        normal_images(data)
    split.unlink()
    with pytest.raises(UserError, match=r"split_csv/1cls.csv: no such file; it comes with VisA"):
        normal_images(data)


# ---------------------------------------------------------------- BTAD


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_samples_of_btad(tmp_path, suffix):
    category = open_category(trees.btad(tmp_path / "01", suffix))
    masks = [f"ground_truth/ko/{name}{suffix}" for name in ("0000", "0001")]
    assert _told(category) == [
        ("test/ko/0000.bmp", "ko", masks[:1]),
        ("test/ko/0001.bmp", "ko", masks[1:]),
        ("test/ok/0000.bmp", "good", []),
        ("test/ok/0001.bmp", "good", []),
    ]
    assert (read_sample_mask(category.samples[0], (64, 64)) == (trees.box() > 0)).all()


def test_btad_without_what_is_needed(tmp_path):
    data = trees.btad(tmp_path / "01")
    (data / "ground_truth/ko/0001.bmp").unlink()
    with pytest.raises(UserError, match=r"ko/0001\.bmp: has no mask; expected .*ground_truth/ko/0001\.png$"):
        open_category(data)
    with pytest.raises(UserError, match="no folder 'test' in it, which should hold test/ok and test/ko"):
        open_category(_touch(tmp_path / "02", "train/ok/1.png"))
    with pytest.raises(UserError, match="no folder 'train/ok' in it"):
        normal_images(_touch(tmp_path / "03", "test/ko/1.png"))


# ---------------------------------------------------------------- plain folders


def test_any_folder_of_good_parts_can_be_learnt_from(tmp_path):
    _touch(tmp_path, "a/deep/3.png", "a/4.png", "b/good/1.png", "c/train/Normal/1.png", "c/train/sick/1.png")
    assert _names(tmp_path, normal_images(tmp_path / "a")) == ["a/4.png", "a/deep/3.png"]
    assert _names(tmp_path, normal_images(tmp_path / "b")) == ["b/good/1.png"]
    assert _names(tmp_path, normal_images(tmp_path / "c")) == ["c/train/Normal/1.png"]


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        (["train/1.png"], "'train' but no 'train/good'"),
        (["test/crack/1.png"], "'test' but no 'train/good'"),
        (["ground_truth/crack/1.png"], "'ground_truth' but no 'train/good'"),
        # Learning from all of these would take the cracks for normal.
        (
            ["good/1.png", "crack/1.png"],
            r"has a folder 'good' beside others \(crack\); give \S*/good to learn",
        ),
    ],
)
def test_defects_are_not_learnt_from(tmp_path, files, phrase):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=phrase):
        normal_images(tmp_path)


@pytest.mark.parametrize("good", ["good", "ok", "Normal"])
@pytest.mark.parametrize("below", ["", "test/"])
def test_a_plain_folder_of_sorted_images(tmp_path, good, below):
    _touch(
        tmp_path, f"{below}{good}/2.png", f"{below}cut/10.png", f"{below}cut/9.png", f"{below}dent/a/1.png"
    )
    category = open_category(tmp_path)
    assert category.layout == "plain folder"
    told = {(f"{below}{good}/2.png", "good"), (f"{below}cut/9.png", "cut"), (f"{below}dent/a/1.png", "dent")}
    assert {(place, defect) for place, defect, masks in _told(category) if not masks} == told | {
        (f"{below}cut/10.png", "cut")
    }


@pytest.mark.parametrize("truth", ["ground_truth", "masks", "mask"])
def test_masks_of_a_plain_folder_must_be_complete_and_are_no_defects(tmp_path, truth):
    _touch(tmp_path, "good/1.png", "cut/1.png", "cut/2.png", f"{truth}/cut/1_mask.png")
    with pytest.raises(UserError, match=rf"cut/2\.png: has no mask; expected .*{truth}/cut/2_mask\.png$"):
        open_category(tmp_path)
    _touch(tmp_path, f"{truth}/cut/2.png")
    category = open_category(tmp_path)
    assert _told(category)[:2] == [
        ("cut/1.png", "cut", [f"{truth}/cut/1_mask.png"]),
        ("cut/2.png", "cut", [f"{truth}/cut/2.png"]),
    ]
    assert len(category.samples) == 3


def test_a_folder_that_cannot_be_evaluated(tmp_path):
    for files in (
        ["1.png"],
        ["good/1.png"],
        ["cut/1.png"],
        ["good/1.png", "cut/1.png", "train/1.png"],
        ["train/normal/1.png", "train/sick/1.png"],
    ):
        data = _touch(tmp_path / "-".join(files).replace("/", "-"), *files)
        with pytest.raises(
            UserError, match=r"no folder 'test' in it, .* and no folder 'good' beside folders of"
        ):
            open_category(data)
    with pytest.raises(
        UserError, match=r"lies directly in 'mixed'; move it to mixed/good or to mixed/<defect>"
    ):
        open_category(_touch(tmp_path / "mixed", "good/1.png", "cut/1.png", "1.png"))
