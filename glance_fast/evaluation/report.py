"""The report of an evaluation: one HTML file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.files import write_text
from glance_fast.data.table import printable
from glance_fast.evaluation.overlay import FOUND, TRUTH, colour_stops, draw_outline, heat, overlay, scale
from glance_fast.evaluation.plots import Curves, plot_curves, plot_scores, short
from glance_fast.evaluation.summary import METRICS, SATURATED, SHOWN

_NAMED = METRICS | SATURATED
# By truth and by what the model says.
_VERDICTS = {
    (True, True): ("found", "fine"),
    (True, False): ("missed", "bad"),
    (False, True): ("false alarm", "bad"),
    (False, False): ("called good", "fine"),
}

_TEMPLATES = Environment(
    loader=PackageLoader("glance_fast.evaluation"),
    # Whatever a file is called, it stays text.
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["short"] = short


@dataclass(frozen=True)
class Example:
    """One row of pictures.

    Attributes
    ----------
    name : str
        Path of the image, relative to the data.
    score : float
        Of the image.
    anomalous : bool or None
        The verdict; None where the model has no threshold.
    defective : bool
        The truth.
    why : str
        Why it is shown: "clearest", "median", ...; may be empty.
    image : ndarray of uint8, shape [H, W, 3]
        As large as it is to be shown.
    mask : ndarray of bool, shape [H, W], or None
        Ground truth; None for a good image.
    map : ndarray of float32, shape [h, w]
        Its scores, of any size.
    """

    name: str
    score: float
    anomalous: bool | None
    defective: bool
    why: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    map: NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Rows of pictures under one heading; ``remark`` says what is left out."""

    title: str
    examples: Sequence[Example]
    remark: str = ""


class _Card(NamedTuple):
    """A figure in large print: ``value`` of ``whole``, what it is, and whether that is good news."""

    name: str
    value: str
    what: str
    whole: int | None = None
    kind: str = ""
    interval: str = ""


class IndexRow(NamedTuple):
    """One category in an index: its name, its report, and what ``evaluate`` returned."""

    name: str
    report: Path
    metrics: dict[str, Any]


def write_report(
    path: str | Path,
    title: str,
    metrics: dict[str, Any],
    scores: NDArray[np.float32],
    defective: NDArray[np.bool_],
    curves: Curves,
    groups: Sequence[Group],
    display: tuple[float, float, float | None],
    config: Config | None,
    shown: Sequence[str] = SHOWN,
) -> None:
    """Write the report of one category.

    Parameters
    ----------
    path : path
        The HTML file.
    title : str
        Name of the category.
    metrics : dict
        What ``metrics.json`` holds.
    scores, defective : arrays [B]
        Score and truth of every test image.
    curves : Curves
        To be plotted.
    groups : sequence of Group
        Pictures.
    display : (low, high, outline)
        Scale of all maps (``glance_fast.evaluation.overlay.display_range``).
    config : Config or None
        Settings of the model; None where the maps came as files.
    shown : sequence of str
        Of ``summary.METRICS``, those to show.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    threshold = metrics["threshold"]["value"]
    figures = [_figure("PRO and ROC curves", lambda dark: plot_curves(curves, dark))]
    if len(scores):
        figures.append(
            _figure("Histogram of image scores", lambda dark: plot_scores(scores, defective, threshold, dark))
        )
    page = _TEMPLATES.get_template("report.html.j2").render(
        title=printable(title),
        facts=_facts(metrics),
        notes=metrics["notes"],
        cards=_cards(metrics, shown),
        columns=[_NAMED[key][0] for key in shown],
        defects=_defects(metrics, shown) if metrics["defects"] else [],
        good_images=metrics["good_images"],
        figures=figures,
        low=display[0],
        high=display[1],
        threshold=display[2],
        colours=colour_stops(),
        truth_colour=f"rgb{TRUTH}",
        found_colour=f"rgb{FOUND}",
        groups=[
            {"title": group.title, "remark": group.remark, "rows": [_row(e, display) for e in group.examples]}
            for group in groups
        ],
        settings=[[name, _setting(value)] for name, value in dataclasses.asdict(config).items()]
        if config
        else [],
    )
    write_text(path, page)


def write_index(path: str | Path, rows: Sequence[IndexRow], title: str = "Anomaly reports") -> None:
    """Write an index of several categories: their metrics, and links to their reports.

    Parameters
    ----------
    path : path
        The HTML file. Links are relative to its folder, so that all can be moved together.
    rows : sequence of IndexRow
        One a category.
    title : str
        Heading.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    path = Path(path)
    cells = []
    for row in rows:
        threshold = row.metrics["threshold"]
        counts = [row.metrics["images"], threshold["missed"], threshold["false_positives"]]
        cells.append([printable(row.name), *map(_count, counts), *_numbers(row.metrics, SHOWN)])
    if len(rows) > 1:
        means = {key: mean([row.metrics[key] for row in rows]) for key in SHOWN}
        cells.append(["Mean", "", "", "", *_numbers(means, SHOWN)])
    page = _TEMPLATES.get_template("index.html.j2").render(
        title=printable(title),
        columns=[METRICS[key][0] for key in SHOWN],
        rows=cells,
        links=[_link(row.report, path.parent) for row in rows],
        metrics=[METRICS[key] for key in SHOWN],
    )
    write_text(path, page)


def _facts(metrics: dict[str, Any]) -> list[str]:
    """What stands under the title."""
    facts = [f"{metrics['images']} test images"]
    if "bootstrap" in metrics:
        facts.append(f"95 % intervals from {metrics['bootstrap']} resamples of them")
    if "maps" in metrics:
        return [*facts, f"maps of {metrics['maps']}"]
    facts += [f"engine {metrics['engine']}", metrics["precision"]]
    each = metrics["images"] and metrics["seconds"] / metrics["images"]
    return [*facts, f"{short(each)} s an image"] if each else facts


def _cards(metrics: dict[str, Any], shown: Sequence[str]) -> list[_Card]:
    within = metrics.get("intervals", {})
    cards = [
        _Card(_NAMED[key][0], _number(metrics[key]), _NAMED[key][1], interval=_interval(within.get(key)))
        for key in shown
    ]
    threshold = metrics["threshold"]
    if threshold["value"] is None:
        return cards
    at = f"at threshold {short(threshold['value'])}"
    for count, whole, name, what in (
        (threshold["missed"], metrics["defective_images"], "Missed", "defective images called good"),
        (
            threshold["false_positives"],
            metrics["good_images"],
            "False alarms",
            "good images called anomalous",
        ),
    ):
        if whole:
            cards.append(_Card(name, str(count), f"{what}, {at}", whole, "bad" if count else "fine"))
    return cards


def _defects(metrics: dict[str, Any], shown: Sequence[str]) -> list[list[str]]:
    """The table by type of defect."""
    rows = [
        [name, str(found["images"]), _count(found["missed"]), *_numbers(found, shown)]
        for name, found in metrics["defects"].items()
    ]
    whole = [
        str(metrics["defective_images"]),
        _count(metrics["threshold"]["missed"]),
        *_numbers(metrics, shown),
    ]
    return [*rows, ["All", *whole]]


def _row(example: Example, display: tuple[float, float, float | None]) -> dict[str, Any]:
    """One row of pictures, and what is said of it."""
    low, high, outline = display
    tiles = [("Image", _picture(example.image))]
    if example.mask is not None:
        tiles.append(("Truth", _picture(draw_outline(example.image, example.mask, TRUTH))))
    tiles.append(("Map", _picture(heat(scale(example.map, low, high)))))
    tiles.append(("Overlay", _picture(overlay(example.image, example.map, low, high, outline))))
    verdict, kind = "no verdict", "plain"
    if example.anomalous is not None:
        verdict, kind = _VERDICTS[example.defective, example.anomalous]
    return {
        "name": example.name,
        "why": example.why,
        "score": example.score,
        "verdict": verdict,
        "kind": kind,
        "tiles": tiles,
        # All tiles of a row take the photograph's shape: maps come at the model's.
        "ratio": f"{example.image.shape[1]}/{example.image.shape[0]}",
    }


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "automatic" if value is None else str(value)


def _link(report: Path, folder: Path) -> str:
    """The address of a report for a page in a folder."""
    relative = Path(os.path.relpath(report, folder)).as_posix()
    link = quote(relative.encode("utf-8", "surrogateescape"))
    # A colon in a link's first part would be taken for a scheme.
    return link if link.startswith(("../", "/")) else f"./{link}"


def _figure(name: str, plot: Callable[[bool], bytes]) -> dict[str, str]:
    light, dark = (_data_uri(plot(dark), "png") for dark in (False, True))
    return {"name": name, "light": light, "dark": dark}


def _picture(rgb: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    # Full colour resolution: outlines are thin and coloured.
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=88, subsampling=0)
    return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of a metric over categories; None where one of them has none."""
    # A mean over some of the categories would pass for one over all of them.
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _numbers(metrics: dict[str, Any], shown: Sequence[str]) -> list[str]:
    return [_number(metrics[key]) for key in shown]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)
