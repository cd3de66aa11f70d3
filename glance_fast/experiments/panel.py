"""Fig. 3 and 4: photographs, truth and maps in rows, beside the maps of Local-Net alone."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import TestSample, normal_images
from glance_fast.data.score_maps import resize_map
from glance_fast.data.table import printable
from glance_fast.errors import UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.inputs import Category, Photographs, find_category, read_photographs
from glance_fast.evaluation.overlay import display_range, heat, overlay, scale
from glance_fast.evaluation.plots import short
from glance_fast.experiments.defective import defective
from glance_fast.experiments.local_alone import without_global
from glance_fast.experiments.prints import SUFFIXES, WIDTH, blank, save
from glance_fast.experiments.study import study
from glance_fast.jobs.output import apart
from glance_fast.jobs.record import provenance_of
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import load, of_whole_photographs
from glance_fast.tiles import whole_only
from glance_fast.training.fit import LEAST_IMAGES

CHOICES = ("defects", "worst", "best", "random")
COLUMNS: dict[str, type] = {"row": int, "image": str, "defect": str, "pro": float, "pro_local": float}
PANEL = "panel"
ROWS, MOST_ROWS = 6, 50


@dataclass(frozen=True)
class Measured:
    """A test image, and how well its maps show its defects.

    Attributes
    ----------
    row : int or None
        Of the picture, from 1; None where it is not shown.
    image, defect : str
        Its path below the data, and the type of its defect.
    pro : float or None
        PRO over this image alone; None where nothing of it is defective, or all.
    pro_local : float or None
        The same of the map without Global-Net; None where there is none.
    """

    row: int | None
    image: str
    defect: str
    pro: float | None
    pro_local: float | None


def panel(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    choose: str | Sequence[str] = "defects",
    rows: int | None = None,
    plain: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> list[Measured]:
    """Show test images with their truth, their maps with and without Global-Net, and the overlay.

    The map without Global-Net is that of ``without_global``: it knows how patches look, and where, but
    nothing of what is around them. Each map is shown from what is normal (dark) to twice its own threshold
    (bright), so that the two can be compared.

    Parameters
    ----------
    run : path
        A run folder.
    data : path
        A category with test images and their masks, as for ``evaluate``, and the normal images that the run
        was trained on.
    out : path
        Folder to write.

        =======================  ==============================================================
        ``panel.png, panel.pdf``  the picture
        ``results.csv``          every image that was scored, and PRO over it alone
        ``experiment.json``      what it was made of
        =======================  ==============================================================
    choose : {"defects", "worst", "best", "random"} or sequence of str
        Which images: drawn by ``seed``, as many of each type of defect; those with the lowest or the highest
        PRO of their own; drawn from all that are defective; or these, by their paths, or by as much of the
        end of a path as tells it from all others.
    rows : int, optional
        How many; one a type of defect, or 6 where these are not looked at.
    plain : bool
        Leave the maps without Global-Net away; no normal images are needed then.
    seed : int
        Of what is drawn.
    device, memory_mib
        As for ``load``.
    overwrite : bool
        Replace what an earlier one wrote.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of Measured
        All defective images, or those of ``choose``, in the order of the data.

    Raises
    ------
    UserError
        ``choose`` or ``rows`` cannot be meant, there are no defective images or too few normal ones, or as
        for ``load``, ``find_category`` and ``study``.
    """
    run, data, out = Path(run), Path(data), Path(out)
    _check(choose, rows)
    apart(out, run, data)
    category = find_category(data, out)
    category = defective(category) if isinstance(choose, str) else _named(category, choose)
    normal = [] if plain else _normal(data)
    model = of_whole_photographs(load(run, device, memory_mib=memory_mib), run)
    whole_only(model.config, "panel")
    model.memory_share()
    photographs = read_photographs(
        category, model.prepare, model.config.image_size, white=model.calibration.white
    )
    if choose in ("worst", "best") and not any(map(_has_pro, photographs.masks)):
        raise UserError(
            f"{data}: no image has both defective and good pixels, so that none is the {choose}; "
            "`choose=random` draws some"
        )
    settings = provenance_of(model, data, "auto", "auto")
    settings |= {"choose": choose, "rows": rows, "plain": plain, "seed": seed}
    pictures = tuple(PANEL + suffix for suffix in SUFFIXES)
    # What is wrong with the normal images is said before an earlier picture is replaced.
    with (
        nullcontext() if plain else _read_normal(model, data, normal, reporter) as cache,
        study(out, "panel", settings, COLUMNS, pictures, overwrite=overwrite) as kept,
    ):
        models = [model]
        if cache is not None:
            with reporter.task("calibrating without Global-Net", None) as advance:
                models.append(without_global(model, cache, advance))
        with reporter.task("scoring", len(models) * len(category.samples)) as advance:
            pros, *others = _pros(models, photographs, advance)
        chosen = list(range(len(category.samples)))
        if isinstance(choose, str):
            rng = np.random.default_rng(seed)
            chosen = choose_rows([s.defect for s in category.samples], pros, choose, rows, rng)
        place = {image: row for row, image in enumerate(chosen, start=1)}
        measured = []
        for i, sample in enumerate(category.samples):
            image = printable(sample.path.relative_to(category.data))
            found = place.get(i), image, printable(sample.defect), pros[i]
            measured.append(Measured(*found, others[0][i] if others else None))
        kept.add(*map(dataclasses.asdict, measured))
        save(_picture(models, category.samples, photographs, measured, chosen), out / PANEL)
    return measured


def choose_rows(
    defects: Sequence[str],
    pros: Sequence[float | None],
    choose: str,
    rows: int | None,
    rng: np.random.Generator,
) -> list[int]:
    """Which images to show.

    Parameters
    ----------
    defects : sequence of str
        The type of each image's defect.
    pros : sequence of float or None
        How well each is shown.
    choose : {"defects", "worst", "best", "random"}
    rows : int or None
        As for ``panel``.
    rng : Generator

    Returns
    -------
    list of int
        Their indices, in the order of the data or of their PRO; fewer than ``rows`` where there are not so
        many.
    """
    if choose in ("worst", "best"):
        ranked = sorted((pro, i) for i, pro in enumerate(pros) if pro is not None)
        best_first = reversed(ranked) if choose == "best" else ranked
        return [i for _, i in best_first][: rows or ROWS]
    order = rng.permutation(len(defects)).tolist()
    if choose == "random":
        return sorted(order[: rows or ROWS])
    seen: defaultdict[str, int] = defaultdict(int)
    turns = []
    for i in order:
        turns.append((seen[defects[i]], i))
        seen[defects[i]] += 1
    # The first of every type, then the second of every type, and so on; the draw decides between equals.
    turns.sort(key=lambda turn: turn[0])
    return sorted(i for _, i in turns[: rows or min(len(seen), MOST_ROWS)])


def _check(choose: str | Sequence[str], rows: int | None) -> None:
    if isinstance(choose, str) and choose not in CHOICES:
        raise UserError(f"choose: expected {', '.join(CHOICES)} or paths of images, got {choose!r}")
    if not isinstance(choose, str):
        if rows is not None:
            raise UserError("rows: the images that `choose` names are the rows; leave `rows` away")
        if not 1 <= len(choose) <= MOST_ROWS:
            raise UserError(f"choose: from 1 to {MOST_ROWS} images can be named, got {len(choose)}")
    if rows is not None and not 1 <= rows <= MOST_ROWS:
        raise UserError(f"rows: expected an integer from 1 to {MOST_ROWS}, got {rows}")


def _named(category: Category, names: Sequence[str]) -> Category:
    """The category with the images of these names alone, in their order."""
    samples = []
    for name in names:
        wanted = Path(name)
        found = [
            sample
            for sample in category.samples
            if sample.path.parts[-len(wanted.parts) :] == wanted.parts
            or sample.path.resolve() == wanted.resolve()
        ]
        if not found:
            raise UserError(f"choose: {category.data} has no test image {name}")
        if len(found) > 1:
            these = " or ".join(printable(sample.path.relative_to(category.data)) for sample in found[:2])
            raise UserError(f"choose: {name} may be {these}; give more of its path")
        samples += found
    return dataclasses.replace(category, samples=samples)


def _normal(data: Path) -> list[Path]:
    """The normal images, without which there is no map without Global-Net."""
    try:
        return normal_images(data)
    except UserError as error:
        raise UserError(f"{error}; or leave the maps without Global-Net away (`plain=True`)") from error


def _read_normal(model: Glance, data: Path, paths: list[Path], reporter: Reporter) -> ImageCache:
    with reporter.task("reading normal images", len(paths)) as advance:
        size, limit, white = model.config.image_size, model.config.cache_mib << 20, model.calibration.white
        cache = ImageCache(paths, size, limit, progress=advance, white=white)
    for error in cache.errors:
        reporter.say(f"left out: {error}")
    if len(cache) < LEAST_IMAGES:
        cache.close()
        raise UserError(
            f"{data}: at least {LEAST_IMAGES} normal images are needed for maps without Global-Net, and "
            f"{len(cache)} can be read; `plain=True` leaves these maps away"
        )
    return cache


def _has_pro(mask: NDArray[np.bool_]) -> bool:
    """Whether PRO over the image alone is defined."""
    return bool(mask.any() and not mask.all())


def _pros(
    models: Sequence[Glance], photographs: Photographs, progress: Callable[..., None]
) -> list[list[float | None]]:
    """PRO over every image alone, for each model; None where it is not defined."""
    found: list[list[float | None]] = []
    done = 0
    for model in models:
        pros: list[float | None] = []
        step = model.at_once()
        for start in range(0, len(photographs.prepared), step):
            part = slice(start, start + step)
            maps = model.score(photographs.prepared[part]).maps
            for score_map, mask in zip(maps, photographs.masks[part], strict=True):
                pros.append(metrics.pro_auc([score_map], [mask]) if _has_pro(mask) else None)
            done += len(maps)
            progress(done)
        found.append(pros)
    return found


# Inches: between tiles, the line of text over a row, the heads of the columns, the legend.
_GAP, _LINE, _HEAD, _FOOT = 0.05, 0.17, 0.2, 0.36
# Sides of a tile: a higher image is shown smaller.
_HIGHEST = 1.5
_INK = "#2b3036"
# Letters of a name that two tiles have room for.
_LETTERS = 44


class _Tile(NamedTuple):
    """A picture in a row, and what stands over it."""

    picture: NDArray[np.uint8]
    title: str = ""


def _picture(
    models: Sequence[Glance],
    samples: Sequence[TestSample],
    photographs: Photographs,
    measured: Sequence[Measured],
    chosen: Sequence[int],
) -> Figure:
    """All rows, under the heads of the columns."""
    maps = [model.score([photographs.prepared[i] for i in chosen]).maps for model in models]
    ranges = [display_range(m.calibration, found) for m, found in zip(models, maps, strict=True)]
    rows = []
    for row, i in enumerate(chosen):
        image, mask = photographs.shown[i]
        truth = np.zeros_like(image)
        if mask is not None:
            truth[mask] = 255
        heats = []
        for found, (low, high, _) in zip(maps, ranges, strict=True):
            heats.append(heat(scale(resize_map(found[row], image.shape[:2]), low, high)))
        titles = ["" if p is None else f"PRO {short(p)}" for p in (measured[i].pro, measured[i].pro_local)]
        shown = [_Tile(*pair) for pair in zip(heats, titles, strict=False)]
        name = shortened(f"{measured[i].defect}/{printable(samples[i].path.name)}", _LETTERS)
        over = overlay(image, maps[0][row], *ranges[0])
        # The map without comes first, as Fig. 4 has it.
        rows.append([_Tile(image, name), _Tile(truth), *reversed(shown), _Tile(over)])
    heads = ["Without Global-Net", "With Global-Net"] if len(models) > 1 else ["Anomaly map"]
    return _laid_out(rows, ["Photograph", "Truth", *heads, "Overlay"], len(models), ranges[0])


def shortened(name: str, letters: int) -> str:
    """A name with its middle left out where it has more letters."""
    if len(name) <= letters:
        return name
    half = (letters - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _laid_out(
    rows: Sequence[Sequence[_Tile]],
    heads: Sequence[str],
    maps: int,
    display: tuple[float, float, float | None],
) -> Figure:
    """Tiles in rows, as high as their images, and the colours of the maps below them."""
    side = (WIDTH - _GAP * (len(heads) - 1)) / len(heads)
    heights = [side * min(row[0].picture.shape[0] / row[0].picture.shape[1], _HIGHEST) for row in rows]
    total = _HEAD + sum(heights) + _LINE * len(rows) + _FOOT
    figure = blank(total)
    lefts = [column * (side + _GAP) for column in range(len(heads))]

    def write(x: float, y: float, text: str, size: float, **more: Any) -> None:
        # A dollar sign in a file's name is no formula.
        figure.text(
            x / WIDTH, y / total, text, fontsize=size, color=_INK, va="center", parse_math=False, **more
        )

    for left, head in zip(lefts, heads, strict=True):
        write(left + side / 2, total - _HEAD / 2, head, 8.5, ha="center")
    top = total - _HEAD
    for row, height in zip(rows, heights, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            write(left + 0.02, top - _LINE / 2, tile.title, 7)
            box = left / WIDTH, (top - _LINE - height) / total, side / WIDTH, height / total
            axes = figure.add_axes(box)
            axes.imshow(tile.picture, interpolation="antialiased")
            axes.set_axis_off()
        top -= _LINE + height
    _draw_colours(figure, lefts[2], maps * (side + _GAP) - _GAP, total, display, write)
    return figure


def _draw_colours(
    figure: Figure,
    left: float,
    width: float,
    total: float,
    display: tuple[float, float, float | None],
    write: Callable[..., None],
) -> None:
    """What the colours of the maps mean."""
    bar = figure.add_axes((left / WIDTH, (_FOOT - 0.16) / total, width / WIDTH, 0.09 / total))
    bar.imshow(heat(np.linspace(0, 1, 256, dtype=np.float32))[None], aspect="auto")
    bar.set_axis_off()
    low, _, threshold = display
    ends = ("normal", "twice that") if threshold is not None and low == 0 else ("low", "high")
    write(left, 0.1, ends[0], 7, ha="left")
    write(left + width, 0.1, ends[1], 7, ha="right")
    if threshold is not None:
        write(left + width / 2, 0.1, "threshold", 7, ha="center")
