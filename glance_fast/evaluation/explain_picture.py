"""A picture of what ``evaluation.explain`` found: the photograph, its worst places, what is normal there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from glance_fast.calibration import Calibration
from glance_fast.data.depth import shown_as
from glance_fast.data.images import resize
from glance_fast.evaluation.explain import MEANING, Explained, Place
from glance_fast.evaluation.overlay import display_range, overlay
from glance_fast.evaluation.plots import short
from glance_fast.geometry import Hole

_INK, _PALE, _PAPER = "#2b3036", "#8a9099", "#ffffff"
# Told apart without colour vision, too: by the number beside them.
_FRAME, _NORMAL = "#e8590c", "#2b8a3e"
_HEADS = (("does not belong here", "#2468a8"), ("looks damaged", "#c2600c"))
# Inches.
_PHOTO, _HIGHEST, _TEXT, _GAP, _HEAD, _EDGE = 4.3, 6.0, 3.2, 0.2, 0.62, 0.16
# A side of a patch, by how many there are at least.
_TILES = {1: 2.4, 2: 2.05, 3: 1.65}
_DPI = 150
# A photograph is shown with so many pixels at most along its longer side, and a patch with as much around it.
_MOST_PIXELS, _AROUND = 1000, 0.75
# Deviations at which a bar ends, at least.
_LEAST_SCALE = 12.0


class Shown(NamedTuple):
    """A normal patch to show.

    Attributes
    ----------
    name : str
        Of its photograph.
    image : ndarray of uint8, shape [H, W, 3]
        The photograph.
    box : Hole
        The patch, in pixels of the model's image size.
    distance : float
        s_IAD that it would have in the place.
    """

    name: str
    image: NDArray[np.uint8]
    box: Hole
    distance: float


def picture(
    name: str,
    image: NDArray[np.uint8],
    found: Explained,
    nearest: Sequence[Shown | None],
    calibration: Calibration,
    size: tuple[int, int],
) -> bytes:
    """The photograph with its map and its worst places, and each of these beside the nearest normal patch.

    Parameters
    ----------
    name : str
        Of the image.
    image : ndarray of uint8, shape [H, W, 3]
        Its own size.
    found : Explained
        What is to be shown.
    nearest : sequence of Shown or None
        One a place; None where it is not known.
    calibration : Calibration
        Of the model.
    size : (height, width)
        The model's image size.

    Returns
    -------
    bytes
        A PNG.
    """
    rows = max(len(found.places), 1)
    side = _TILES[min(rows, max(_TILES))]
    photo_high = min(_PHOTO * image.shape[0] / image.shape[1], _HIGHEST)
    inner = max(rows * (side + _GAP) - _GAP, photo_high)
    width = _EDGE + _PHOTO + 2 * _GAP + 2 * (side + _GAP) + _TEXT + _EDGE
    height = _HEAD + inner + _EDGE
    # Not pyplot: it keeps figures alive and picks a backend for the whole process.
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        place = (left / width, 1 - (top + high) / height, wide / width, high / height)
        made = figure.add_axes(place)
        made.set_axis_off()
        return made

    def write(x: float, y: float, text: str, size: float = 9, **more: Any) -> None:
        # A dollar sign in a file's name is no formula.
        how: dict[str, Any] = {"color": _INK, "va": "center", "parse_math": False} | more
        figure.text(x / width, 1 - y / height, text, fontsize=size, **how)

    write(_EDGE, 0.2, _shortened(name, 32), 11, fontweight="bold")
    write(_EDGE, 0.45, _verdict(found, calibration), 9, color=_PALE)
    photo = axes(_EDGE, _HEAD, _PHOTO, photo_high)
    _draw_photograph(photo, image, found, calibration, size)
    left = _EDGE + _PHOTO + 2 * _GAP
    if not any(place.found for place in found.places):
        words = "no pixel lies above the threshold; these are the highest" if found.places else ""
        write(left, 0.2, words, 9, color=_PALE)
    write(left + side / 2, 0.45, "what is there", 9, ha="center", color=_FRAME)
    write(left + side * 1.5 + _GAP, 0.45, "what should be there", 9, ha="center", color=_NORMAL)
    write(left + 2 * (side + _GAP), 0.45, "by which head, in deviations of normal pixels", 9, color=_PALE)
    if not found.places:
        write(left, _HEAD + 0.2, "The map is flat: no place is worse than another.", 9)
    most = max([_LEAST_SCALE, *(v for p in found.places for v in (p.inconsistency, p.distortion))])
    for row, (place, normal) in enumerate(zip(found.places, nearest, strict=True)):
        top = _HEAD + row * (side + _GAP)
        _draw_patch(axes(left, top, side, side), image, place.box, size, _FRAME)
        tile = axes(left + side + _GAP, top, side, side)
        if normal is not None:
            _draw_patch(tile, normal.image, normal.box, size, _NORMAL)
        else:
            tile.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=_PALE, ls=(0, (4, 4)), lw=1))
            words = "not looked for:\ngive photographs\nof good parts"
            tile.text(0.5, 0.5, words, ha="center", va="center", fontsize=8, color=_PALE)
        x = left + 2 * (side + _GAP)
        sure = place.found or found.score > calibration.threshold
        title: dict[str, Any] = {"fontweight": "bold", "color": _INK if sure else _PALE}
        write(x, top + 0.12, f"{row + 1}  {place.word}", 11, **title)
        weak = "" if sure else "a weak sign: "
        write(x, top + 0.34, weak + MEANING[place.word], 8.5, color=_PALE)
        threshold = calibration.pixel_threshold
        limit = f", threshold {short(threshold)}" if np.isfinite(threshold) else ""
        write(x, top + 0.56, f"score {short(place.region.peak)}{limit}", 8.5)
        bars = axes(x, top + 0.7, _TEXT, 0.5)
        _draw_bars(bars, place, most)
        if normal is not None:
            here, there = short(place.distance), short(normal.distance)
            write(x, top + 1.34, f"off what is expected by {here}; the normal patch by {there}", 8)
            write(x, top + 1.53, _shortened(normal.name, 34), 8, color=_PALE)
    buffer = io.BytesIO()
    # Without matplotlib's version and address in the file, equal figures are equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _verdict(found: Explained, calibration: Calibration) -> str:
    """The image's score, and what it means."""
    said = f"score {short(found.score)}"
    if np.isfinite(calibration.threshold):
        word = "anomalous" if found.score > calibration.threshold else "called good"
        said += f", threshold {short(calibration.threshold)}: {word}"
    return said


def _draw_photograph(
    axes: Axes, image: NDArray[np.uint8], found: Explained, calibration: Calibration, size: tuple[int, int]
) -> None:
    """The photograph, glowing where its map does, with numbered frames."""
    share = min(1.0, _MOST_PIXELS / max(image.shape[:2]))
    shown = tuple(max(1, round(side * share)) for side in image.shape[:2])
    small = shown_as(resize(image, (shown[0], shown[1])), None)
    axes.imshow(overlay(small, found.map, *display_range(calibration)), interpolation="antialiased")
    axes.set_anchor("N")
    for number, place in enumerate(found.places, start=1):
        top, left, bottom, right = _scaled(place.box, size, small.shape[:2])
        _frame(axes, top, left, bottom, right, _FRAME)
        axes.text(
            left,
            top,
            f" {number} ",
            va="bottom" if top > 0.08 * small.shape[0] else "top",
            fontsize=9,
            fontweight="bold",
            color="white",
            bbox={"facecolor": _FRAME, "edgecolor": "none", "pad": 1.2},
        )


def _draw_patch(axes: Axes, image: NDArray[np.uint8], box: Hole, size: tuple[int, int], colour: str) -> None:
    """A patch in a frame, with what is around it."""
    around = round(_AROUND * (box.bottom - box.top))
    # What lies beyond the border is not there to be shown: the window stays inside.
    top = min(max(box.top - around, 0), max(size[0] - (box.bottom - box.top) - 2 * around, 0))
    left = min(max(box.left - around, 0), max(size[1] - (box.right - box.left) - 2 * around, 0))
    window = Hole(
        top,
        left,
        min(top + box.bottom - box.top + 2 * around, size[0]),
        min(left + box.right - box.left + 2 * around, size[1]),
    )
    rows, columns = image.shape[:2]
    seen = _scaled(window, size, (rows, columns))
    corners = [round(value) for value in seen]
    part = image[corners[0] : max(corners[2], corners[0] + 1), corners[1] : max(corners[3], corners[1] + 1)]
    axes.imshow(part, interpolation="bicubic" if max(part.shape) < 200 else "antialiased")
    inner = _scaled(box, size, (rows, columns))
    _frame(
        axes,
        inner[0] - corners[0],
        inner[1] - corners[1],
        inner[2] - corners[0],
        inner[3] - corners[1],
        colour,
    )


def _scaled(box: Hole, size: tuple[int, int], to: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box in pixels of another size, without what lies beyond the border."""
    y, x = to[0] / size[0], to[1] / size[1]
    return (
        max(box.top, 0) * y,
        max(box.left, 0) * x,
        min(box.bottom, size[0]) * y,
        min(box.right, size[1]) * x,
    )


def _frame(axes: Axes, top: float, left: float, bottom: float, right: float, colour: str) -> None:
    """A frame that is seen on bright and on dark."""
    corner, wide, high = (left - 0.5, top - 0.5), right - left, bottom - top
    for line, width in (("white", 3.4), (colour, 1.8)):
        axes.add_patch(Rectangle(corner, wide, high, fill=False, ec=line, lw=width, clip_on=False))


def _draw_bars(axes: Axes, place: Place, most: float) -> None:
    """What each head says, in deviations of normal pixels."""
    axes.set(xlim=(0, 1), ylim=(2, 0))
    for row, ((label, colour), value) in enumerate(
        zip(_HEADS, (place.inconsistency, place.distortion), strict=True)
    ):
        axes.text(0, row + 0.5, label, va="center", fontsize=8, color=_INK)
        axes.barh(row + 0.5, 0.48, height=0.5, left=0.42, color="#eceef1")
        axes.barh(row + 0.5, 0.48 * np.clip(value / most, 0, 1), height=0.5, left=0.42, color=colour)
        axes.text(1, row + 0.5, f"{value:.1f}", va="center", ha="right", fontsize=8, color=_INK)


def _shortened(name: str, letters: int) -> str:
    """The end of a name that has more letters."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"
