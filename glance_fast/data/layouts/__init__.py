"""Layouts of data sets: which images are normal, which test image has which truth.

A layout is found by looking at the folder. Each has a module; ``record`` says what all of them come down to.
"""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.folders import check_folder, natural_key, subfolders
from glance_fast.data.layouts import btad, mvtec_ad, mvtec_ad2, mvtec_loco, plain, table, visa
from glance_fast.data.layouts.masks import Defect, read_defects, read_sample_mask
from glance_fast.data.layouts.record import Category, Layout, Saturation, TestSample, name_of
from glance_fast.errors import UserError

__all__ = [
    "LAYOUTS",
    "Category",
    "Defect",
    "Layout",
    "Saturation",
    "TestSample",
    "categories",
    "find_layout",
    "normal_images",
    "open_category",
    "read_defects",
    "read_sample_mask",
]

# The first that holds a folder is taken: a layout that adds to another comes before it.
_OF_FOLDERS = tuple(module.LAYOUT for module in (mvtec_loco, mvtec_ad2, visa, btad, mvtec_ad, plain))
LAYOUTS = (*_OF_FOLDERS, table.LAYOUT)
"""All that are known."""

# Categories that an error lists.
_LISTED = 20


def find_layout(data: str | Path) -> Layout:
    """Find the layout of a category.

    Parameters
    ----------
    data : path
        A folder, or a CSV file of paths and labels.

    Returns
    -------
    Layout
        That of a plain folder where it is like no other.

    Raises
    ------
    UserError
        There is no such file or folder, or it holds several categories, of which one must be chosen.
    """
    data = Path(data)
    if table.is_table(data):
        if not data.is_file():
            raise UserError(f"{data}: no such file")
        return table.LAYOUT
    check_folder(data)
    layout = _layout_of(data)
    if layout is not None:
        return layout
    found = _below(data)
    if found:
        listed = ", ".join(name for name, _ in found[:_LISTED])
        others = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise UserError(
            f"{data}: holds several categories ({listed}{others}); give one of them, such as {found[0][1]}"
        )
    return plain.LAYOUT


def normal_images(data: str | Path) -> list[Path]:
    """Find the normal images to learn from.

    Parameters
    ----------
    data : path
        A category in any layout (then the normal images of its training split), or any folder that holds
        normal images only.

    Returns
    -------
    list of pathlib.Path
        In natural order; in a table's order where a table lists them.

    Raises
    ------
    UserError
        As ``find_layout``; or there is no normal image where the layout has them, or images of defects lie
        beside.
    """
    return find_layout(data).normal(Path(data))


def open_category(data: str | Path) -> Category:
    """Find the test images of a category, and what is known of their defects.

    Parameters
    ----------
    data : path
        A category in any layout.

    Returns
    -------
    Category

    Raises
    ------
    UserError
        As ``find_layout``; or there are no test images where the layout has them, or some defective ones have
        masks and others have none.
    """
    return find_layout(data).category(Path(data))


def categories(root: str | Path) -> list[tuple[str, Path]]:
    """List all categories in a folder or below it, in any layout.

    Parameters
    ----------
    root : path
        A folder of categories, at any depth; or a category itself.

    Returns
    -------
    list of (str, pathlib.Path)
        The name of each, which is its path below ``root`` or, where ``root`` is the only one, its own name;
        and what ``normal_images`` and ``open_category`` take. In natural order. CSV files of paths and labels
        count where they lie directly in ``root`` and no folder is a category. Some may have no images to
        learn from, or none to test: the two functions say so.

    Raises
    ------
    UserError
        There is none, or a folder cannot be read.
    """
    root = Path(root)
    if table.is_table(root) or _layout_of(root) is not None:
        find_layout(root)
        return [(root.stem if root.is_file() else name_of(root), root)]
    check_folder(root)
    found = _below(root)
    if not found:
        tables = [path for path in root.iterdir() if path.is_file() and table.holds_paths_and_labels(path)]
        found = [(path.stem, path) for path in sorted(tables, key=lambda path: natural_key(Path(path.name)))]
    if not found:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise UserError(f"{root}: no category in it or below it; known layouts: {known}")
    return found


def _layout_of(folder: Path) -> Layout | None:
    """The layout in which a folder is a category."""
    return next((layout for layout in _OF_FOLDERS if layout.holds(folder)), None)


def _below(root: Path) -> list[tuple[str, Path]]:
    """Names and folders of the categories below a folder; nothing is looked for inside of one."""
    found: list[tuple[str, Path]] = []
    seen: set[Path] = set()

    def visit(folder: Path) -> None:
        for child in subfolders(folder):
            real = child.resolve()
            if real in seen:
                continue
            seen.add(real)
            if _layout_of(child) is not None:
                found.append((child.relative_to(root).as_posix(), child))
            else:
                visit(child)

    visit(root)
    return found
