"""Pictures for print, as wide as a page's text: PNG, and PDF with letters that stay letters."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glance_fast.data.files import atomic_write

WIDTH = 6.875
"""Of the text on a page of CVPR, inches."""
DPI = 200
SUFFIXES = (".png", ".pdf")


def blank(height: float) -> Figure:
    """A figure ``WIDTH`` wide; its height is in inches."""
    # Not pyplot: it keeps figures alive and picks a backend for the whole process.
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem`` with each of ``SUFFIXES``; equal figures are equal bytes.

    Raises
    ------
    UserError
        A file cannot be written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    # Type 42 is TrueType: what publishers ask for.
    with warnings.catch_warnings(), rc_context({"pdf.fonttype": 42}):
        # A file's name may have letters that the font lacks, which become boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        for path, date in zip(paths, ("Software", "CreationDate"), strict=True):
            with atomic_write(path) as temporary:
                figure.savefig(temporary, dpi=DPI, metadata={date: None})
    return paths
