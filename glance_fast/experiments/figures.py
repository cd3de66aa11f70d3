"""Pictures of experiments."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glance_fast.data.files import atomic_write

if TYPE_CHECKING:
    from glance_fast.experiments.measure import Table

# Told apart without colour vision, too.
COLOURS = ("#2468a8", "#c2600c", "#4f9d69", "#8a8f98", "#8e4585", "#b59f1c")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = (":", "-", "--")
_INK = "#2b3036"


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels beside each other, in inches; they share the vertical axis."""
    # Not pyplot: it keeps figures alive and picks a backend for the whole process.
    figure = Figure(figsize=(width, height), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    found = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes in found:
        axes.grid(color=_INK, alpha=0.13, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=8, length=3)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set(color=_INK, alpha=0.5, linewidth=0.7)
    return figure, found


def dots(tables: Sequence[Table], titles: Mapping[str, str]) -> Figure:
    """Every row a line, every column a mark, a panel a metric."""
    names = [name for name, _ in tables[0].rows]
    figure, all_axes = panels(len(tables), 3.1 * len(tables) + 0.9, 0.26 * len(names) + 1.2)
    methods = list(dict.fromkeys(method for table in tables for method in table.columns))
    for axes, table in zip(all_axes, tables, strict=True):
        for method in table.columns:
            number = methods.index(method)
            points = [
                (row[table.columns.index(method)], place)
                for place, (_, row) in enumerate(table.rows)
                if row[table.columns.index(method)] is not None
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    MARKERS[number % len(MARKERS)],
                    color=COLOURS[number % len(COLOURS)],
                    ms=5,
                    label=method,
                )
        axes.set_title(titles[table.metric], fontsize=9, color=_INK)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(map(str, labels), lines, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def lines(
    curves: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str
) -> Figure:
    """A line a pair of names: a colour and a mark for the first, a style for the second."""
    figure, (axes,) = panels(1, 5.2, 3.4)
    firsts, seconds = (list(dict.fromkeys(pair[i] for pair in curves)) for i in (0, 1))
    for (first, second), (x, y) in curves.items():
        number = firsts.index(first)
        axes.plot(
            x,
            y,
            ls=STYLES[seconds.index(second) % len(STYLES)],
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            lw=1.6,
            ms=4,
            label=f"{first}, {second}",
        )
    axes.set_xlabel(xlabel, fontsize=9, color=_INK)
    axes.set_ylabel(ylabel, fontsize=9, color=_INK)
    if curves:
        # Styles would not be told apart in a handle of the usual length.
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, handlelength=4)
    return figure


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG, whole or not at all; equal figures are equal bytes.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    buffer = io.BytesIO()
    # Without matplotlib's version and address in the file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
