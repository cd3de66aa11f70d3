"""Pictures for print."""

import re
import warnings

import numpy as np
import pytest
from PIL import Image

from glance_fast.data.images import read_image
from glance_fast.errors import UserError
from glance_fast.experiments.prints import DPI, WIDTH, blank, save


def figure(text="Global-Net"):
    drawn = blank(1.5)
    drawn.text(0.1, 0.5, text)
    return drawn


def test_both_files_are_as_large_as_print_wants_them(tmp_path):
    png, pdf = save(figure(), tmp_path / "panel")
    assert (png, pdf) == (tmp_path / "panel.png", tmp_path / "panel.pdf")
    with Image.open(png) as image:
        assert image.size == (round(WIDTH * DPI), round(1.5 * DPI))
        assert np.allclose(image.info["dpi"], 200, atol=0.1)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf.read_bytes())
    assert [float(side) for side in box.groups()] == [WIDTH * 72, 1.5 * 72]


def test_letters_stay_letters(tmp_path):
    pdf = save(figure(), tmp_path / "panel")[1].read_bytes()
    assert b"/Type0" in pdf and b"/TrueType" not in pdf and b"/Type3" not in pdf


def test_the_background_is_white(tmp_path):
    assert (read_image(save(figure(), tmp_path / "panel")[0])[0] == 255).all()


def test_equal_figures_are_equal_bytes(tmp_path):
    for first, second in zip(save(figure(), tmp_path / "a"), save(figure(), tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert save(figure("other"), tmp_path / "c")[0].read_bytes() != (tmp_path / "a.png").read_bytes()


def test_letters_that_the_font_lacks_are_no_remark(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure("写真"), tmp_path / "panel")


def test_a_dot_in_the_name_is_no_suffix(tmp_path):
    assert [path.name for path in save(figure(), tmp_path / "v1.5")] == ["v1.5.png", "v1.5.pdf"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "panel.png").mkdir()
    with pytest.raises(UserError, match=r"panel\.png: cannot be written"):
        save(figure(), tmp_path / "panel")
