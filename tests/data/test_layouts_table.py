"""A CSV file of paths and labels."""

from pathlib import Path

import pytest
import trees

from glance_fast.data.layouts import normal_images, open_category
from glance_fast.errors import UserError


def _told(category):
    names = [(s.path.relative_to(category.base).as_posix(), s.defect) for s in category.samples]
    return [(*name, [mask.name for mask in s.masks]) for name, s in zip(names, category.samples, strict=True)]


def test_rows_by_split(tmp_path):
    path = trees.table(tmp_path / "parts.csv", *trees.TABLE)
    assert [image.name for image in normal_images(path)] == ["0.png", "1.png"]
    category = open_category(path)
    assert (category.name, category.notes) == ("parts", ())
    assert _told(category) == [
        ("photos/2.png", "good", []),
        ("photos/3.png", "good", []),
        ("photos/4.png", "cut", ["mask4.png"]),
        ("photos/5.png", "defective", ["mask5.png"]),
    ]


def test_rows_without_a_split_and_without_masks(tmp_path):
    path = trees.table(
        tmp_path / "parts.CSV",
        "label,path",
        "good,photos/0.png",
        "",
        "scratch, photos/4.png",
        "0,photos/1.png",
    )
    assert [image.name for image in normal_images(path)] == ["0.png", "1.png"]
    category = open_category(path)
    assert _told(category) == [
        ("photos/0.png", "good", []),
        ("photos/4.png", "scratch", []),
        ("photos/1.png", "good", []),
    ]
    [note] = category.notes
    assert "parts.CSV has no column 'split'" in note


def test_how_spreadsheets_write(tmp_path):
    path = trees.table(tmp_path / "parts.csv", "x")
    lines = ['"Path ",LABEL,Split,Mask', '"photos/0.png","good, fine",TEST,', "photos/1.png,Good,Train"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert _told(open_category(path)) == [("photos/0.png", "good, fine", [])]
    assert [image.name for image in normal_images(path)] == ["1.png"]


def test_paths_elsewhere_keep_their_maps_below_the_output(tmp_path):
    path = trees.table(tmp_path / "lists/parts.csv", "path,label")
    elsewhere = trees.photograph(tmp_path / "a/0.png")
    path.write_text(f"path,label\n../a/0.png,good\n{elsewhere},bad\n")
    category = open_category(path)
    maps = Path("out/maps/parts")
    targets = [maps / "a/0.tiff", maps / elsewhere.relative_to(elsewhere.anchor).with_suffix(".tiff")]
    assert category.targets(Path("out")) == targets


@pytest.mark.parametrize(
    ("header", "lines", "phrase"),
    [
        (
            "file,label",
            [],
            r"parts.csv: no column path; its first line must name the columns, such as path,label$",
        ),
        ("path;label", ["photos/0.png;good"], "no column path and no label"),
        (
            "path,label",
            ["photos/0.png,good", "photos/9.png,good"],
            r"parts.csv, line 3: \S*photos/9.png: no such file$",
        ),
        ("path,label", ["a.png,good", "b.png,good"], r"line 2: \S*a.png: no such file \(1 more like it\)$"),
        ("path,label", ["photos/0.png,"], "parts.csv, line 2: no label$"),
        ("path,label", [",good"], "parts.csv, line 2: no path$"),
        ("path,label,split", ["photos/0.png,good,val"], "line 2: split: expected train or test, got 'val'"),
        (
            "path,label",
            ["photos/0.png,good", "photos/0.png,bad"],
            "line 3: names photos/0.png again, after line 2$",
        ),
    ],
)
def test_tables_that_are_wrong(tmp_path, header, lines, phrase):
    path = trees.table(tmp_path / "parts.csv", header, *lines)
    for use in (normal_images, open_category):
        with pytest.raises(UserError, match=phrase) as caught:
            use(path)
        assert "\n" not in str(caught.value)


def test_splits_that_are_empty(tmp_path):
    path = trees.table(tmp_path / "parts.csv", "path,label,split", "photos/4.png,cut,train")
    with pytest.raises(
        UserError, match=r"parts\.csv: no good image to learn from; expected rows with label good"
    ):
        normal_images(path)
    with pytest.raises(UserError, match=r"parts\.csv: no image to test; expected rows, with split test"):
        open_category(path)


def test_masks_that_are_missing(tmp_path):
    rows = ["photos/0.png,good,", "photos/4.png,cut,photos/mask4.png", "photos/5.png,cut,"]
    path = trees.table(tmp_path / "parts.csv", "path,label,mask", *rows)
    with pytest.raises(UserError, match=r"line 4: no mask of a defective image, and others have one$"):
        open_category(path)
    path.write_text("path,label,mask\nphotos/4.png,cut,photos/mask7.png\n")
    with pytest.raises(UserError, match=r"parts.csv, line 2: \S*photos/mask7.png: no such file$"):
        open_category(path)


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"a\.csv: no readable CSV file"):
        normal_images(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match=r"b.csv: no image in this folder"):
        normal_images(tmp_path / "b.csv")
