"""The picture of an explanation: frames where they belong, whatever the image and its name are like."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from glance_fast.calibration import Calibration, ScaleStatistics
from glance_fast.evaluation.explain import Explained, Place
from glance_fast.evaluation.explain_picture import Shown, picture
from glance_fast.evaluation.regions import Region
from glance_fast.geometry import Hole

ORANGE, GREEN = (232, 89, 12), (43, 138, 62)
CALIBRATION = Calibration((ScaleStatistics(),), threshold=2.0, pixel_threshold=5.0)


def place(top=16, left=24, peak=7.0, **more):
    region = Region(top, left, top + 8, left + 8, 64, peak, top + 4, left + 4)
    box = Hole(top, left, top + 16, left + 16)
    return Place(region, peak > 5, 0, 0, box, 7.0, 1.0, 4.0, torch.zeros(3), **more)


def draw(places, nearest=None, image=None, name="part.png", calibration=CALIBRATION, score=1.0):
    image = np.full((64, 64, 3), 128, np.uint8) if image is None else image
    found = Explained(score, np.zeros((64, 64), np.float32), list(places))
    data = picture(name, image, found, nearest or [None] * len(found.places), calibration, (64, 64))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), data


def shown(value=128, top=0):
    return Shown("good/1.png", np.full((64, 64, 3), value, np.uint8), Hole(top, 0, top + 16, 16), 0.4)


def count(image, colour):
    return int((np.abs(image.astype(int) - colour).max(2) < 6).sum())


def test_what_is_there_is_framed_beside_what_should_be_there():
    alone, _ = draw([place()])
    both, _ = draw([place()], [shown()])
    # A heading is green as well.
    assert count(both, GREEN) > count(alone, GREEN) + 300
    assert count(alone, ORANGE) > 1000


def test_more_places_make_more_rows():
    one, _ = draw([place()])
    two, _ = draw([place(), place(top=40)])
    six, _ = draw([place(top=8 * i) for i in range(6)])
    assert six.shape[0] > two.shape[0] >= one.shape[0] > 300
    assert count(six, ORANGE) > count(two, ORANGE) > 0


def test_the_normal_patch_is_shown_as_it_is():
    image, _ = draw([place()], [shown(value=201)])
    assert count(image, (201, 201, 201)) > 5000


def test_the_same_is_the_same_file():
    assert draw([place()], [shown()])[1] == draw([place()], [shown()])[1]


@pytest.mark.parametrize("size", [(64, 64), (300, 40), (40, 300), (1500, 1200), (1, 1)])
def test_images_of_any_size(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    # Beyond the border on each side.
    places = [place(-8, -8), place(56, 56), place(20, -4)]
    drawn, _ = draw(places, [shown(), shown(top=-8), None], image)
    assert drawn.std() > 10 and count(drawn, ORANGE) > 100


@pytest.mark.parametrize("name", ["a$b$.png", "x" * 300, "ü\n.png", "\\alpha^2_{", ""])
def test_any_name(name):
    normal = shown()._replace(name=name)
    assert draw([place()], [normal], name=name)[0].std() > 10


def test_a_flat_map_is_said():
    flat, _ = draw([])
    assert flat.std() > 5 and count(flat, ORANGE) < 1000


def test_a_model_without_a_threshold():
    never = dataclasses.replace(CALIBRATION, threshold=math.inf, pixel_threshold=math.inf)
    assert draw([place()], calibration=never)[0].std() > 10


def test_a_weak_place_is_told_from_a_found_one():
    assert draw([place(peak=4.0)])[1] != draw([place(peak=6.0)])[1]
    # Neither with a word in ink: it is no verdict.
    ink = (43, 48, 54)
    weak, sure = (count(draw([place(peak=peak)])[0], ink) for peak in (4.0, 6.0))
    assert weak < sure
    # Of an image that is called anomalous, the highest place is the reason.
    assert count(draw([place(peak=4.0)], score=3.0)[0], ink) > weak


@pytest.mark.parametrize("heads", [(123.4, 0.1), (123.4, 99.9), (0.1, 123.4)])
@pytest.mark.parametrize("peak", [0.123, 4.87654, 12345.6])
def test_no_line_is_cut_off(heads, peak):
    one = dataclasses.replace(
        place(peak=peak), inconsistency=heads[0], distortion=heads[1], distance=1234.567
    )
    drawn, _ = draw([one] * 3, [shown()._replace(name="w" * 99, distance=0.12345)] * 3, name="w" * 99)
    assert (drawn[:, -4:] == 255).all() and (drawn[-4:] == 255).all()
