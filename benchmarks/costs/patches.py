"""What an image costs by its number of patches, and one photograph with its map: a picture for the README.

    python -m benchmarks.costs.patches --run RUN --photograph FILE
    python -m benchmarks.costs.patches --plot

Times ``Glance.score`` on one image, by each engine, with patches of 32 pixels: at 256 pixels with more and
more patches of it, and at the closest stride in larger images. Beside them the paper's procedure, Global-Net
alone in a pass a patch. Then as many images at once as ``COUNTS`` says. All is kept in
``benchmarks/results/cost.json``; ``--plot`` draws what that holds without measuring. A model of the demo's
gravel and one of its test photographs make ``benchmarks/results/scored.png``. Both become ``docs/cost.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.costs.machine import describe
from benchmarks.report import machine_name, seconds
from benchmarks.tables import ROOT
from glance_fast.config import Config
from glance_fast.data.images import read_image, resize, write_png
from glance_fast.device import has_bf16
from glance_fast.evaluation.overlay import display_range, heat, overlay
from glance_fast.model import Glance
from glance_fast.nets.preprocess import to_input
from glance_fast.run import load

RESULTS, PICTURE = ROOT / "benchmarks/results", ROOT / "docs/cost.png"
SIDE, PATCH, CLOSEST = 256, 32, 8  # pixels; the last is the least stride
POINTS = ((256, 32), (256, 24), (256, 16), (256, 8), (384, 8), (512, 8))  # side, stride
ROUNDS, FEWER, DEFINED = 5, 3, 2  # the second for images that are larger, the third for the definition
MOST_DEFINED = 841  # patches: beyond, the definition takes too long to wait for
KEPT = 31 << 20  # bytes, just below glibc's largest threshold
COUNTS, COUNTED_AT = (1, 2, 4, 8), 16  # images at once, and their stride
SHOWN = 256  # pixels of the photograph's side
CREDIT = "scikit-image's gravel, CC0;\na defect planted"
LOOKS = {  # label, colour
    ("definition", "fp32"): ("a pass a patch,\nas the paper has it", "#c9622d"),
    ("dense", "fp32"): ("dense", "#2a6fbb"),
    ("dense", "bf16"): ("dense, bf16", "#5b9bd9"),
    ("grouped", "fp32"): ("grouped (approx.)", "#3c8d5a"),
}
GREY, APART = "#555555", 0.068  # text; between two labels, as a share of the axis


@dataclass(frozen=True)
class Row:
    """One point of a line.

    Attributes
    ----------
    side, stride : int
        Of the image, fitted to the stride, and between patches, pixels.
    seconds : float
        An image: the median of the rounds.
    """

    version: str
    precision: str
    side: int
    stride: int
    patches: int
    rounds: int
    seconds: float


def medians(runs: dict[Any, tuple[int, Callable[[], object]]]) -> dict[Any, float]:
    """Seconds of every run, by its rounds; all in turn, so that a slow moment of the machine meets each.

    The first of several is not counted: plans and tables are made in it, once for a size of image.
    """
    found: dict[Any, list[float]] = {key: [] for key in runs}
    for index in range(max(rounds for rounds, _ in runs.values()) + 1):
        for key, (rounds, run) in runs.items():
            if index <= rounds and (index or rounds > 1):
                started = time.perf_counter()
                run()
                found[key].append(time.perf_counter() - started)
    return {key: median(times[len(times) > 1 :]) for key, times in found.items()}


def build(side: int, stride: int, **settings: Any) -> tuple[Glance, NDArray[np.uint8]]:
    """An untrained model and a picture of noise; neither changes what the arithmetic costs."""
    model = Glance(
        Config(net="pyramid", image_size=side, patch=PATCH, stride=stride, pretrained=False, **settings)
    )
    return model, np.random.default_rng(0).integers(0, 256, (*model.config.image_size, 3), np.uint8)


@torch.inference_mode()
def define(model: Glance, image: NDArray[np.uint8]) -> torch.Tensor:
    """The paper's procedure."""
    # Drawing needs no pytest.
    from benchmarks.bench_engines import by_definition

    x = to_input(torch.from_numpy(image[None])).contiguous(memory_format=torch.channels_last)
    return by_definition(model.scales[0].global_net, x, torch.from_numpy(model.scales[0].grid.holes))


def by_patches(points: Iterable[tuple[int, int]] = POINTS, **settings: Any) -> list[Row]:
    """Every version at every side and stride, point by point, as a user has one model."""
    found = []
    for side, stride in points:
        model, image = build(side, stride, **settings)
        patches, rounds = len(model.scales[0].grid), ROUNDS if side <= SIDE else FEWER
        versions = [("dense", "fp32"), ("grouped", "fp32")] + [("dense", "bf16")] * has_bf16(model.device)
        runs = {v: (rounds, lambda m=model, i=image, v=v: m.score([i], *v)) for v in versions}
        if patches <= MOST_DEFINED and side <= SIDE:
            runs["definition", "fp32"] = DEFINED, lambda m=model, i=image: define(m, i)
        place = model.config.image_size[0], stride, patches
        found += [Row(*kind, *place, runs[kind][0], taken) for kind, taken in medians(runs).items()]
    return found


def by_images(side: int = SIDE, stride: int = COUNTED_AT, **settings: Any) -> list[dict[str, float]]:
    """Seconds an image of the dense engine, by how many it is given."""
    model, image = build(side, stride, **settings)
    runs = {n: (ROUNDS, lambda n=n: model.score([image] * n, "dense", "fp32")) for n in COUNTS}
    return [{"images": n, "seconds_an_image": taken / n} for n, taken in medians(runs).items()]


def lines(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by version and precision, in the order of ``LOOKS``, each by patches."""
    ordered = sorted(rows, key=lambda row: row.patches)
    found = {kind: [row for row in ordered if (row.version, row.precision) == kind] for kind in LOOKS}
    return {kind: line for kind, line in found.items() if line}


def slope(rows: list[Row]) -> float | None:
    """The power of the number of patches that the time grows by; None from fewer than two points."""
    if len(rows) < 2:
        return None
    return float(np.polyfit(np.log([r.patches for r in rows]), np.log([r.seconds for r in rows]), 1)[0])


def slopes(rows: list[Row]) -> dict[str, dict[str, float | None]]:
    """Of each line: more patches of one image, larger images at the closest stride, and all points."""
    return {
        ", ".join(kind): {
            "one image": slope([row for row in line if row.side <= SIDE]),
            "larger images": slope([row for row in line if row.stride == CLOSEST]),
            "all": slope(line),
        }
        for kind, line in lines(rows).items()
    }


def measure() -> dict[str, Any]:
    """All that the file of results holds."""
    # glibc keeps blocks up to the largest it has seen freed; before that, every pass of the definition maps
    # its memory anew, which takes half as long again.
    torch.ones(KEPT, dtype=torch.uint8)
    rows = by_patches()
    return {
        "machine": describe(),
        "rows": [asdict(row) for row in rows],
        "slopes": slopes(rows),
        "images": by_images(),
    }


def summary(found: dict[str, Any]) -> str:
    """Times, slopes, and times an image as Markdown."""
    rows = [Row(**row) for row in found["rows"]]
    text = ["| version | side | stride | patches | an image |", "|---|---|---|---|---|"]
    for kind, line in lines(rows).items():
        for row in line:
            cells = [", ".join(kind), row.side, row.stride, f"{row.patches:,}", seconds(row.seconds)]
            text.append(f"| {' | '.join(map(str, cells))} |")
    text.append("")
    for name, powers in found["slopes"].items():
        each = (f"{where} {power:.2f}" for where, power in powers.items() if power is not None)
        text.append(f"slope of {name}: {', '.join(each)}")
    each = (f"{row['images']}: {seconds(row['seconds_an_image'])}" for row in found["images"])
    return "\n".join([*text, f"an image, of so many at once: {', '.join(each)}"])


def scored(run: Path, path: Path) -> NDArray[np.uint8]:
    """A photograph, and beside it the same with the map that a trained model gives it; uint8 [H, 2 W, 3]."""
    model = load(run)
    image, found = read_image(path), model.score([path])
    shown = resize(image, (SHOWN, SHOWN))
    return np.hstack([shown, overlay(shown, found.maps[0], *display_range(model.calibration))])


def picture(found: dict[str, Any], pair: NDArray[np.uint8] | None, path: Path) -> None:
    """Cost on the left, a photograph and its map on the right if there is one, written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Read at 800 pixels, so an inch is 100 of them; saved finer, a pixel of the photograph to one of it.
    width, height, dpi = (8.0, 3.1, 160) if pair is not None else (4.4, 3.1, 160)
    style = {"font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left"}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=(width, height), dpi=dpi)

        def axes(left: float, bottom: float, wide: float, high: float) -> Any:
            """By inches."""
            return figure.add_axes((left / width, bottom / height, wide / width, high / height))

        def note(left: float, bottom: float, text: str) -> None:
            figure.text(left / width, bottom / height, text, fontsize=6.5, color=GREY, va="bottom")

        draw_cost(axes(0.45, 0.8, 2.8, 2.0), [Row(**row) for row in found["rows"]])
        note(0.1, 0.06, machine_name({"glance_fast": found["machine"]}))
        if pair is not None:
            half = pair.shape[1] // 2
            sides = ((4.6, "Gravel, smeared", pair[:, :half]), (6.3, "Its score map", pair[:, half:]))
            for left, title, shown in sides:
                place = axes(left, 1.2, 1.6, 1.6)
                place.imshow(shown)
                place.set_title(title)
                place.set_axis_off()
            draw_scale(axes(6.3, 1.04, 1.6, 0.09))
            note(4.6, 0.87, CREDIT)
            note(6.3, 0.65, "outlined: above the threshold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        pyplot.close(figure)


def draw_cost(axes: Any, rows: list[Row]) -> None:
    """Seconds by patches, a line a version with its name at its end."""
    found, times = lines(rows), [row.seconds for row in rows]
    low, high = min(times) / 1.5, max(times) * 1.5
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(min(row.patches for row in rows) / 1.25, max(row.patches for row in rows) * 1.15)
    for kind, line in found.items():
        axes.plot([r.patches for r in line], [r.seconds for r in line], color=LOOKS[kind][1], linewidth=1.6)
        for row in line:
            # Hollow where the image is another.
            face = LOOKS[kind][1] if row.side <= SIDE else "white"
            axes.plot(row.patches, row.seconds, "o", color=LOOKS[kind][1], markerfacecolor=face, markersize=4)
    ends = {kind: float(np.log(line[-1].seconds / low) / np.log(high / low)) for kind, line in found.items()}
    for kind, place in spread(ends).items():
        name, colour = LOOKS[kind]
        axes.text(found[kind][-1].patches * 1.2, low * (high / low) ** place, name, color=colour, va="center")
    draw_gain(axes, rows)
    if max(row.side for row in rows) > SIDE:
        text = f"○ larger images,\n    stride {CLOSEST}"
        axes.text(0.99, 0.06, text, transform=axes.transAxes, ha="right", fontsize=7, color=GREY)
    name_ticks(axes, rows, low, high)
    axes.set_xlabel("patches in an image")
    axes.set_title("Seconds an image")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_gain(axes: Any, rows: list[Row]) -> None:
    """How many times as fast as the definition, where that is measured last."""
    defined = [row for row in rows if row.version == "definition"]
    last = max(defined, key=lambda row: row.patches, default=None)
    for row in rows:
        if last and (row.version, row.precision, row.patches) == ("dense", "fp32", last.patches):
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 5, "shrinkB": 5}
            place = (row.patches, row.seconds), (last.patches, last.seconds)
            axes.annotate("", *place, arrowprops=arrow)
            text = f"{last.seconds / row.seconds:.0f} times\nas fast"
            middle = (row.seconds * last.seconds) ** 0.5
            axes.text(row.patches * 1.08, middle * 1.2, text, color=GREY, va="center")


def spread(places: dict[Any, float]) -> dict[Any, float]:
    """Places along an axis, from low to high, moved up as far as two would touch."""
    found: dict[Any, float] = {}
    for key, place in sorted(places.items(), key=lambda item: item[1]):
        found[key] = max(place, max(found.values(), default=-1.0) + APART)
    return found


def name_ticks(axes: Any, rows: list[Row], low: float, high: float) -> None:
    """Patches, with what makes them so many, of the image as it is and of the largest; plain seconds."""
    largest = max(row.side for row in rows)
    ticks = {r.patches: f"{r.patches:,}\nstride {r.stride}" for r in rows if r.side == SIDE}
    ticks |= {r.patches: f"{r.patches:,}\n{r.side} px" for r in rows if r.side == largest > SIDE}
    axes.set_xticks(list(ticks), list(ticks.values()))
    times = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 3)]
    times = [t for t in times if low <= t <= high]
    axes.set_yticks(times, [f"{t:g}" for t in times])
    axes.minorticks_off()


def draw_scale(axes: Any) -> None:
    """What the map's colours mean."""
    axes.imshow(heat(np.linspace(0, 1, 256))[None], aspect="auto", extent=(0, 2, 0, 1))
    axes.set_xticks([0, 1, 2], ["normal", "threshold", "twice it"], fontsize=7, color=GREY)
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.set_yticks([])
    axes.tick_params(length=2, color=GREY)
    axes.spines[:].set_visible(False)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", action="store_true", help="draw what was measured before")
    parser.add_argument("--run", type=Path, help="folder of a model trained on the demo's gravel")
    parser.add_argument("--photograph", type=Path, help="what it scores")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    kept, pair = options.results / "cost.json", options.results / "scored.png"
    if (options.run is None) != (options.photograph is None):
        raise SystemExit("--run and --photograph go together")
    if not options.plot:
        options.results.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    print(summary(found))
    if options.run:
        write_png(pair, scored(options.run, options.photograph))
    picture(found, read_image(pair) if pair.is_file() else None, options.picture)


if __name__ == "__main__":
    main()
