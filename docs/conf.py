"""Sphinx' settings: ``sphinx-build -W --keep-going docs build/site``, then open build/site/index.html."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, str(Path(__file__).parent))
from generate import with_generated

import glance_fast

project = "glance-fast"
version = release = glance_fast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
# Headings can be linked to, by the names that GitHub gives them too.
myst_heading_anchors = 3
html_theme = "furo"
html_title = "glance-fast"
html_static_path, html_css_files = ["static"], ["wide.css"]
# Dashes alone: quotes in prose may be what somebody types.
smartquotes_action = "D"
html_show_sphinx = html_copy_source = False
# Nothing is loaded from elsewhere: machines at a line have no internet connection.
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def generate(app: Any, page: str, source: list[str]) -> None:
    """Put what is generated in place of a page's marks."""
    source[0] = with_generated(source[0])


def equation(self: Any, node: nodes.math) -> None:
    """An equation within a line."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed(self: Any, node: nodes.math_block) -> None:
    """An equation on its own lines."""
    self.body.append(f"<p>{tex2mathml(node.astext(), as_block=True)}</p>")
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Have Sphinx call the functions above."""
    app.connect("source-read", generate)
    app.add_html_math_renderer("mathml", (equation, None), (displayed, None))
