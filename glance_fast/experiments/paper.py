"""The figures that the paper prints, to be shown beside those measured: ``paper.toml``."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = 'Wang et al., "Glancing at the Patch", CVPR 2021'


@cache
def printed() -> dict[str, Any]:
    """All of ``paper.toml``."""
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))


def figure_of(table: str, category: str) -> Any:
    """What a table of the paper has for a category; None where it has none.

    Parameters
    ----------
    table : {"pro", "pixel_auroc", "cifar10", "cifar10_gradcon", "lambda_s"}
        A table of ``paper.toml``.
    category : str
        Of MVTec AD or CIFAR-10, in any letters, with spaces, hyphens or underscores.
    """
    return printed()[table].get(_name(category))


def kind_of(category: str) -> str | None:
    """Whether the paper counts a category as "texture" or as "object"; None where it does not have it."""
    if _name(category) in printed()["textures"]:
        return "texture"
    return "object" if _name(category) in printed()["pro"] else None


def _name(category: str) -> str:
    return re.sub(r"[\s-]+", "_", category.strip().casefold())
