"""Figures of an evaluation: curves over the false positive rate, and a histogram of the image scores."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

MAX_FPR = 0.3
"""Where PRO's integral ends, as in MVTec's protocol."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Curves:
    """What is plotted; None for a curve that cannot be computed.

    Attributes
    ----------
    pro, roc : (ndarray, ndarray) or None
        Per-region overlap, and true positive rate of the pixels, over the false positive rate.
    """

    pro: Curve | None = None
    roc: Curve | None = None


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
    """Histogram of the image scores, good and defective, and the threshold, as a PNG.

    Parameters
    ----------
    scores : ndarray
        float32 [N], at least one.
    defective : ndarray
        bool [N].
    threshold : float or None
        None where the model has none.
    dark : bool
        Whether for a dark page.
    """
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
            axes.hist(
                values[which],
                edges.tolist(),
                label=shown,
                color=colour,
                ec=colour,
                hatch=hatch,
                alpha=0.55,
                lw=0.6,
            )
    if threshold is not None:
        axes.axvline(threshold, color=_INK[dark], lw=1.4, ls=":", label=f"threshold {short(threshold)}")
    axes.locator_params("y", integer=True)
    # Above the bars, and close together: long numbers must fit beside each other.
    axes.legend(
        frameon=False,
        labelcolor=_INK[dark],
        loc="upper center",
        bbox_to_anchor=(0.5, 1.14),
        ncols=3,
        columnspacing=1.2,
        handlelength=1.4,
    )
    return _png(figure)


def _compressed(low: float, high: float, middle: float, width: float, count: int) -> NDArray[np.float64]:
    """Places that are evenly spread on an axis that is linear about ``middle`` and logarithmic far off."""
    start, end = np.arcsinh((np.array([low, high]) - middle) / width)
    return np.sinh(np.linspace(start, end, count)) * width + middle


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
    # Small, so that its letters are still read where a phone shows all of it in 360 pixels.
    # Not pyplot: it keeps figures alive and picks a backend for the whole process.
    figure = Figure(figsize=(4.2, 2.775), dpi=640 / 3, facecolor=_PAPER[dark], layout="constrained")
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


def short(value: float) -> str:
    """Three digits, as a person would write them."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.3g}" if decimals > 6 or abs(value) >= 1e6 else f"{value:.{decimals}f}"
