"""The report of an evaluation: one HTML file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.files import write_text
from glance_fast.evaluation.overlay import FOUND, TRUTH, colour_stops, draw_outline, heat, overlay, scale

MAX_FPR = 0.3
"""Where PRO's integral ends, as in MVTec's protocol."""

METRICS = {
    "pro": ("PRO", f"share of each defect found, up to {MAX_FPR:.0%} false pixels"),
    "pixel_auroc": ("Pixel AUROC", "how well pixels of defects rank above all others"),
    "image_auroc": ("Image AUROC", "how well defective images rank above good ones"),
}
# By truth and by what the model says.
_VERDICTS = {
    (True, True): ("found", "fine"),
    (True, False): ("missed", "bad"),
    (False, True): ("false alarm", "bad"),
    (False, False): ("called good", "fine"),
}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Curves:
    """What is plotted; None for a curve that is not to be had.

    Attributes
    ----------
    pro, roc : (ndarray, ndarray) or None
        Per-region overlap, and true positive rate of the pixels, over the false positive rate.
    """

    pro: Curve | None = None
    roc: Curve | None = None


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
    """Rows of pictures under one heading; `remark` says what is left out."""

    title: str
    examples: Sequence[Example]
    remark: str = ""


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
    config: Config,
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
        Scale of all maps (`glance_fast.evaluation.overlay.display_range`).
    config : Config
        Settings of the model.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    threshold = metrics["threshold"]["value"]
    figures = [_themed("PRO and ROC curves", lambda dark: plot_curves(curves, dark))]
    if len(scores):
        histogram = _themed(
            "Histogram of image scores", lambda dark: plot_scores(scores, defective, threshold, dark)
        )
        figures.append(histogram)
    body = [
        _header(title, metrics),
        "".join(f'<p class="note">{escape(note)}</p>' for note in metrics["notes"]),
        _cards(metrics),
        "<h2>By type of defect</h2>" + _defect_table(metrics) if metrics["defects"] else "",
        '<h2>Curves and scores</h2><div class="figures">' + "".join(figures) + "</div>",
        "<h2>Images</h2>" + _legend(display),
        *(_group(group, display) for group in groups),
        "<h2>Settings of the model</h2>" + _settings(config),
    ]
    write_text(path, _page(f"{title} - anomaly report", body))


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
        relative = Path(os.path.relpath(row.report, path.parent)).as_posix()
        link = quote(relative.encode("utf-8", "surrogateescape"))
        linked = f'<a href="{link}">{escape(printable(row.name))}</a>'
        # A colon in a link's first part would be taken for a scheme.
        linked = linked.replace('href="', 'href="./', 1) if not link.startswith(("../", "/")) else linked
        cells.append([linked, *_counts(row.metrics), *(_number(row.metrics[key]) for key in METRICS)])
    if len(rows) > 1:
        means = (_mean([row.metrics[key] for row in rows]) for key in METRICS)
        cells.append(["Mean", "", "", "", *map(_number, means)])
    heads = ["Category", "Images", "Missed", "False alarms", *(name for name, _ in METRICS.values())]
    body = [
        f"<header><h1>{escape(title)}</h1></header>",
        _table(heads, cells, "total" if len(rows) > 1 else ""),
        "<dl>" + "".join(f"<dt>{name}</dt><dd>{what}</dd>" for name, what in METRICS.values()) + "</dl>",
    ]
    write_text(path, _page(title, body))


def printable(name: str | Path) -> str:
    """A file's name as text that can be written as UTF-8; bytes that are none are shown as U+FFFD."""
    name = name.as_posix() if isinstance(name, Path) else name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---------------------------------------------------------------- figures

# Told apart without colour vision, too: blue and orange, solid and dashed.
_BLUE, _ORANGE = {False: "#2468a8", True: "#6aaee8"}, {False: "#c2600c", True: "#f0a055"}
_INK, _PAPER = {False: "#2b3036", True: "#d4d8dd"}, {False: "#ffffff", True: "#1b1f24"}


def plot_curves(curves: Curves, dark: bool = False) -> bytes:
    """PRO and pixel ROC over the false positive rate, as a PNG."""
    figure, axes = _figure(dark, "False positive rate of pixels", "Share found")
    if curves.pro is None and curves.roc is None:
        axes.text(0.5, 0.5, "no defective pixels: no curve", ha="center", va="center", color=_INK[dark])
    if curves.pro is not None:
        fpr, overlap = curves.pro
        axes.axvspan(0, MAX_FPR, color=_BLUE[dark], alpha=0.09, lw=0)
        place = (MAX_FPR - 0.01, 0.02)
        axes.text(*place, "counts for PRO", ha="right", color=_INK[dark], alpha=0.75, fontsize=8)
        axes.plot(fpr, overlap, color=_BLUE[dark], lw=1.8, label="PRO (regions, equal weight)")
    if curves.roc is not None:
        axes.plot(*curves.roc, color=_ORANGE[dark], lw=1.8, ls="--", label="ROC (pixels)")
    if axes.lines:
        axes.legend(loc="lower right", frameon=False, labelcolor=_INK[dark], bbox_to_anchor=(1, 0.06))
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _png(figure)


def plot_scores(
    scores: NDArray[np.float32], defective: NDArray[np.bool_], threshold: float | None, dark: bool = False
) -> bytes:
    """Histogram of the image scores, good and defective, and the threshold, as a PNG."""
    figure, axes = _figure(dark, "Image score", "Images")
    values = np.asarray(scores, dtype=np.float64)
    every = values if threshold is None else np.append(values, threshold)
    low, high = float(every.min()), float(every.max())
    good = values[~defective] if (~defective).any() else values
    middle, spread = float(np.median(good)), float(np.ptp(good))
    if len(good) > 1 and high - low > 8 * max(spread, 1e-9):
        # Clear defects score so high that all good images would share one bar: compress the far ends.
        width = max(spread, (high - low) / 1e4)
        edges = _compressed(low, high, middle, width, 33)
        axes.set_xscale(
            "function",
            functions=(
                lambda x: np.arcsinh((x - middle) / width),
                lambda x: np.sinh(np.clip(x, -300, 300)) * width + middle,
            ),
        )
        ticks = _ticks(middle, width, low, high)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("Image score (far ends of the axis compressed)")
    else:
        edges = np.linspace(low, high if high > low else low + 1, 33)
    # Rounding must not drop the extremes.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    kinds = ((~defective, "good", _BLUE[dark], None), (defective, "defective", _ORANGE[dark], "////"))
    for which, label, colour, hatch in kinds:
        if which.any():
            shown = f"{label} ({int(which.sum())})"
            style = {"color": colour, "ec": colour, "hatch": hatch, "alpha": 0.55, "lw": 0.6}
            axes.hist(values[which], edges, label=shown, **style)
    if threshold is not None:
        axes.axvline(threshold, color=_INK[dark], lw=1.4, ls=":", label=f"threshold {_short(threshold)}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, labelcolor=_INK[dark], loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    return _png(figure)


def _compressed(low: float, high: float, middle: float, width: float, count: int) -> NDArray[np.float64]:
    """Places that are evenly spread on an axis that is linear about `middle` and logarithmic far off."""
    ends = np.arcsinh((np.array([low, high]) - middle) / width)
    return np.sinh(np.linspace(*ends, count)) * width + middle


def _ticks(middle: float, width: float, low: float, high: float) -> list[float]:
    """Round numbers that keep their distance on the compressed axis, the roundest first."""
    top = math.ceil(math.log10(max(abs(low), abs(high), width)))
    decades = range(top, math.floor(math.log10(width)) - 2, -1)
    rounds = [0.0] + [s * d * 10.0**k for d in (1, 2, 5, 3, 7, 4, 6, 8) for k in decades for s in (1, -1)]
    start, end = np.arcsinh((np.array([low, high]) - middle) / width)
    taken: dict[float, float] = {}
    for value in rounds:
        place = (math.asinh((value - middle) / width) - start) / (end - start)
        if 0 <= place <= 1 and all(abs(place - other) > 0.1 for other in taken.values()):
            taken[value] = place
    return sorted(taken)


def _figure(dark: bool, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps figures alive and picks a backend for the whole process.
    figure = Figure(figsize=(5.6, 3.7), dpi=160, facecolor=_PAPER[dark], layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=_PAPER[dark])
    axes.set_xlabel(xlabel, color=_INK[dark], fontsize=9)
    axes.set_ylabel(ylabel, color=_INK[dark], fontsize=9)
    axes.tick_params(colors=_INK[dark], labelsize=8, length=3)
    axes.grid(color=_INK[dark], alpha=0.13, lw=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=_INK[dark], alpha=0.5, linewidth=0.7)
    return figure, axes


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        legend = axes.get_legend()
        for text in legend.get_texts() if legend else ():
            text.set_fontsize(8)
    buffer = io.BytesIO()
    # Without matplotlib's version and address in the file, equal figures are equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---------------------------------------------------------------- the parts of the page


def _header(title: str, metrics: dict[str, Any]) -> str:
    images, seconds = metrics["images"], metrics["seconds"]
    facts = [
        f"{images} test images",
        f"engine {metrics['engine']}",
        metrics["precision"],
        f"{_short(seconds / images)} s an image" if images else "",
    ]
    line = " · ".join(escape(fact) for fact in facts if fact)
    return f'<header><h1>{escape(printable(title))}</h1><p class="quiet">{line}</p></header>'


def _cards(metrics: dict[str, Any]) -> str:
    threshold = metrics["threshold"]
    good, defective = metrics["good_images"], metrics["defective_images"]
    cards = [(name, _number(metrics[key]), what, "") for key, (name, what) in METRICS.items()]
    if threshold["value"] is not None:
        at = f"at threshold {_short(threshold['value'])}"
        for count, whole, name, what in (
            (threshold["missed"], defective, "Missed", f"defective images called good, {at}"),
            (threshold["false_positives"], good, "False alarms", f"good images called anomalous, {at}"),
        ):
            if whole:
                value = f"{count} <small>of {whole}</small>"
                cards.append((name, value, what, "bad" if count else "fine"))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card {kind}"><div class="name">{name}</div><div class="value">{value}</div>'
            f'<div class="quiet">{what}</div></div>'
            for name, value, what, kind in cards
        )
        + "</div>"
    )


def _defect_table(metrics: dict[str, Any]) -> str:
    def row(name: str, of: dict[str, Any], images: int, missed: int | None) -> list[str]:
        return [name, str(images), _count(missed), *(_number(of[key]) for key in METRICS)]

    rows = [
        row(escape(name), found, found["images"], found["missed"])
        for name, found in metrics["defects"].items()
    ]
    rows.append(row("All", metrics, metrics["defective_images"], metrics["threshold"]["missed"]))
    heads = ["Defect", "Images", "Missed", *(name for name, _ in METRICS.values())]
    good = metrics["good_images"]
    against = f"Each type against all {good} good images." if good else "No good images to compare with."
    return _table(heads, rows, "total") + f'<p class="quiet">{against}</p>'


def _legend(display: tuple[float, float, float | None]) -> str:
    low, high, outline = display
    marks = [f"<span>{_short(low)}</span>"]
    if outline is not None:
        marks.append(f"<span>threshold {_short(outline)}</span>")
    marks.append(f"<span>{_short(high)} and above</span>")
    stops = ", ".join(colour_stops())
    lines = [("truth", "ground truth")] + ([("found", "marked by the model")] if outline is not None else [])
    keys = "".join(f'<span><span class="line {kind}"></span> {name}</span>' for kind, name in lines)
    return (
        '<div class="legend"><div class="scale"><div class="bar" style="background:'
        f'linear-gradient(90deg, {stops})"></div><div class="marks">{"".join(marks)}</div></div>'
        f'<p class="quiet keys"><span>Score of a pixel, on one scale for all images</span>{keys}</p></div>'
    )


def _group(group: Group, display: tuple[float, float, float | None]) -> str:
    rows = "".join(_example(example, display) for example in group.examples)
    remark = f'<p class="quiet">{escape(group.remark)}</p>' if group.remark else ""
    return f"<section><h3>{escape(group.title)}</h3>{rows}{remark}</section>"


def _example(example: Example, display: tuple[float, float, float | None]) -> str:
    low, high, outline = display
    tiles = [("Image", _picture(example.image))]
    if example.mask is not None:
        tiles.append(("Truth", _picture(draw_outline(example.image, example.mask, TRUTH))))
    tiles.append(("Map", _picture(heat(scale(example.map, low, high)))))
    tiles.append(("Overlay", _picture(overlay(example.image, example.map, low, high, outline))))
    # All tiles of a row take the photograph's shape: maps come at the model's.
    ratio = f"aspect-ratio:{example.image.shape[1]}/{example.image.shape[0]}"
    name = escape(example.name)
    pictures = "".join(
        f'<figure><img src="{source}" alt="{what}: {name}" style="{ratio}">'
        f"<figcaption>{what}</figcaption></figure>"
        for what, source in tiles
    )
    if example.anomalous is None:
        verdict, kind = "no verdict", "plain"
    else:
        verdict, kind = _VERDICTS[example.defective, example.anomalous]
    return (
        f'<article><div class="caption"><span class="file">{name}</span>'
        f'<span class="why">{escape(example.why)}</span>'
        f'<span class="score">score {_short(example.score)}</span>'
        f'<span class="chip {kind}">{verdict}</span></div>'
        f'<div class="tiles">{pictures}</div></article>'
    )


def _settings(config: Config) -> str:
    values = dataclasses.asdict(config)
    rows = [[escape(name), escape(_setting(value))] for name, value in values.items()]
    return '<div class="settings">' + _table(["Setting", "Value"], rows) + "</div>"


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "automatic" if value is None else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _themed(name: str, plot: Any) -> str:
    light, dark = (_data_uri(plot(dark), "png") for dark in (False, True))
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{name}"></picture>'
    )


def _picture(rgb: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    # Full colour resolution: outlines are thin and coloured.
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=88, subsampling=0)
    return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _counts(metrics: dict[str, Any]) -> list[str]:
    threshold = metrics["threshold"]
    return [str(metrics["images"]), _count(threshold["missed"]), _count(threshold["false_positives"])]


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    # A mean over some of the categories would pass for one over all of them.
    return None if None in values else float(np.mean(values))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _short(value: float) -> str:
    """Three digits, as a person would write them."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.3g}" if decimals > 6 or abs(value) >= 1e6 else f"{value:.{decimals}f}"


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(printable(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


_STYLE = (
    """
:root { --paper: #f5f6f7; --card: #ffffff; --ink: #20262c; --quiet: #5b656f; --rule: #dfe3e7;
  --bad: #b3261e; --bad-soft: #fbe9e7; --fine: #22663c; --fine-soft: #e6f2ea; --link: #1d5fa0; }
@media (prefers-color-scheme: dark) { :root { --paper: #13161a; --card: #1b1f24; --ink: #e2e6ea;
  --quiet: #9aa5b0; --rule: #31383f; --bad: #ff9d94; --bad-soft: #45211e; --fine: #8fd6a8;
  --fine-soft: #1b3626; --link: #7fb8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 12px; }
h3 { font-size: 16px; margin: 28px 0 10px; overflow-wrap: anywhere; }
header { margin-bottom: 20px; }
header p { margin: 4px 0 0; }
a { color: var(--link); }
small { font-size: .6em; font-weight: 400; color: var(--quiet); }
.quiet { color: var(--quiet); font-size: 13px; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 6px 0 0; }
.note { background: var(--card); border-left: 4px solid var(--quiet); padding: 8px 14px; margin: 8px 0;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.card .name { font-weight: 600; font-size: 14px; }
.card .value { font-size: 30px; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.card .quiet { font-size: 12.5px; line-height: 1.4; }
.card.bad .value { color: var(--bad); }
.card.fine .value { color: var(--fine); }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; border-top: 1px solid var(--rule); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; white-space: normal; overflow-wrap: anywhere;
  min-width: 5em; }
thead th { border-top: 0; color: var(--quiet); font-size: 13px; font-weight: 500; }
table.total tbody tr:last-child > * { border-top: 2px solid var(--rule); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.figures img { display: block; width: 100%; height: auto; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; padding: 10px; }
.scale { max-width: 560px; }
.bar { height: 12px; border-radius: 3px; }
.marks { display: flex; justify-content: space-between; font-size: 13px; }
.line { display: inline-block; width: 18px; height: 4px; border-radius: 2px; vertical-align: middle;
  outline: 1px solid #0006; }
.line.truth { background: rgb"""
    + str(TRUTH)
    + """; }
.line.found { background: rgb"""
    + str(FOUND)
    + """; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px;
  margin: 0 0 12px; break-inside: avoid; }
.caption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; margin-bottom: 8px;
  font-size: 14px; }
.file { font-weight: 600; overflow-wrap: anywhere; }
.why { color: var(--quiet); flex: 1 1 auto; }
.score { font-variant-numeric: tabular-nums; }
.chip { padding: 1px 9px; border-radius: 10px; font-size: 13px; }
.chip.bad { color: var(--bad); background: var(--bad-soft); font-weight: 600; }
.chip.fine { color: var(--fine); background: var(--fine-soft); }
.chip.plain { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }
.tiles figure { margin: 0; }
.tiles img { display: block; width: 100%; border-radius: 4px; object-fit: fill; }
figcaption { color: var(--quiet); font-size: 12.5px; margin-top: 2px; }
.settings table { font-size: 13.5px; }
.settings td { text-align: left; white-space: normal; width: 65%; }
.settings thead th { text-align: left; }
.settings th, .settings td { padding: 4px 14px; }
dl { color: var(--quiet); font-size: 13px; margin: 16px 0; }
dt { font-weight: 600; }
dd { margin: 0 0 6px; }
@media (max-width: 640px) { main { padding: 20px 12px 40px; } th, td { padding: 7px 9px; }
  thead th { white-space: normal; vertical-align: bottom; } thead th:first-child { min-width: 0; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { body { background: none; } .wide { overflow: visible; } }
"""
)
