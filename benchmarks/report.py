"""A saved run of the benchmarks as tables and a picture; the tables of speed in README and docs/speed.md.

    pytest benchmarks --benchmark-only --benchmark-json=run.json
    python -m benchmarks.report run.json --out DIR
    python -m benchmarks.report

Writes ``speed.md`` and ``speed.png`` to DIR, keeps medians, spreads and the machine in
``benchmarks/results`` (``cpu.json``, or the GPU's name). From ``cpu.json`` it rewrites the README's table,
the groups of ``SHORTEST``, and those of ``docs/speed.md``, the groups of ``SHORT`` and all; without a run, it
does no more than that. A group is compared with its baseline: the one a benchmark marks by
``benchmark.extra_info["role"] = "baseline"``, or else the slowest. One marked ``"floor"`` is what no version
can be expected to beat.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tables import README, ROOT, rewrite

RESULTS = ROOT / "benchmarks/results"
ROLES = ("baseline", "floor", "")
VERSIONS = ("python", "torch", "triton", "numba")
COLUMN = 70  # lines of a column of the picture
BAR, OURS, SLOWER = 0.3, "#2a6fbb", "#c9622d"  # inches a bar, colours
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
PAGE = ROOT / "docs/speed.md"
# Groups that a short table shows, by how they begin; and versions that it names beside the baseline.
SHORTEST = (
    "the default model on an image of 256x256",
    "an image of 256x256, 841 patches",
    "training on",
)
SHORT = (
    *SHORTEST,
    "surround_conv2d, 8 grids of 31x31, 11x11 without 7x7 and 16, float32",
    "partial_conv2d forward, 8 maps of 64x64, 64 channels, float32",
    "score_patches, by position, 8 x",
    "idw 16 nearest",
    "PRO and pixel AUROC",
)
NAMED = ("PatchCore",)


@dataclass(frozen=True)
class Row:
    """One benchmark.

    Attributes
    ----------
    median, iqr : float
        Seconds: the middle of all rounds, and the width that holds the middle half of them.
    role : {"baseline", "floor", ""}
        What it is to its group.
    machine : str
        Where it was measured, in words.
    """

    group: str
    name: str
    median: float
    iqr: float
    rounds: int
    role: str
    machine: str


def machine_name(info: dict) -> str:
    """A machine in words."""
    own = info["glance_fast"]
    where = own["processor"] if own["device"] == "cpu" else own["device"]
    versions = ", ".join(f"{name} {own[name]}" for name in VERSIONS if own.get(name, "none") != "none")
    return f"{where}, {own['threads']} threads, {versions}"


def read(run: dict) -> list[Row]:
    """The rows of pytest-benchmark's JSON, in its order."""
    machine, rows = machine_name(run["machine_info"]), []
    for found in run["benchmarks"]:
        inside = re.search(r"\[(.+)\]$", found["name"])
        name = inside[1] if inside else found["name"].removeprefix("test_")
        name = found["extra_info"].get("version", name)
        stats, role = found["stats"], found["extra_info"].get("role", "")
        if role not in ROLES:
            raise ValueError(f"{found['fullname']}: role {role!r} is none of {ROLES}")
        group = found["group"] or found["fullname"]
        rows.append(Row(group, name, stats["median"], stats["iqr"], stats["rounds"], role, machine))
    return rows


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by group, in order of appearance, each group from fast to slow."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return {name: sorted(found, key=lambda r: r.median) for name, found in groups.items()}


def baseline(rows: list[Row]) -> Row:
    """What a group is compared with."""
    marked = [row for row in rows if row.role == "baseline"]
    if len(marked) > 1:
        raise ValueError(f"group {rows[0].group!r} has {len(marked)} baselines")
    return marked[0] if marked else max(rows, key=lambda row: row.median)


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    unit, scale = next((u for u in UNITS if value >= u[1]), UNITS[-1])
    digits = value / scale
    return f"{digits:.{max(0, 3 - len(str(int(digits))))}f} {unit}"


def ratio(value: float) -> str:
    """A ratio with as many decimals as it deserves."""
    decimals = next((d for d, least in ((0, 100), (1, 10), (2, 0.1), (3, 0.01)) if value >= least), 4)
    return f"{value:.{decimals}f}"


def table(rows: list[Row]) -> str:
    """A Markdown table: medians, spreads, and each group's ratios."""
    lines = [
        "| work | version | median | half of the runs within | speed, baseline = 1 | time, floor = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for group, found in grouped(rows).items():
        base = baseline(found)
        floor = next((row for row in found if row.role == "floor"), None)
        for index, row in enumerate(found):
            name = f"{row.name} (baseline)" if row is base else row.name
            over = ratio(row.median / floor.median) if floor else ""
            cells = [group if not index else "", name, seconds(row.median), seconds(row.iqr)]
            lines.append(f"| {' | '.join([*cells, ratio(base.median / row.median), over])} |")
    return "\n".join(lines)


def digest(rows: list[Row], groups: Sequence[str] = ("",)) -> str:
    """A Markdown table of one line a group: our version beside the baseline, ``NAMED`` ones and any floor.

    Parameters
    ----------
    rows : list of Row
        All groups.
    groups : sequence of str
        How the names of those that are shown begin, in the order to show them.
    """
    head = ["work", "ours", "baseline", "times as fast", "time, floor = 1"]
    lines = []
    by_name = grouped(rows)
    shown = [name for start in groups for name in by_name if name.startswith(start)]
    for group in dict.fromkeys(shown):
        found = by_name[group]
        own = next((row for row in found if row.name == "ours"), None)
        if own is None:
            continue
        floor = next((row for row in found if row.role == "floor"), None)
        over = ratio(own.median / floor.median) if floor else ""
        others = [baseline(found), *(row for row in found if row.name in NAMED)]
        beside = "; ".join(f"{row.name}: {seconds(row.median)}" for row in others)
        times = "; ".join(ratio(row.median / own.median) for row in others)
        lines.append([group, seconds(own.median), beside, times, over])
    if not any(line[-1] for line in lines):
        head, *lines = (line[:-1] for line in (head, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def machines(rows: list[Row]) -> str:
    """A line for each machine that the rows come from."""
    return "\n".join(f"Measured on {name}." for name in dict.fromkeys(row.machine for row in rows))


def with_machines(text: str, rows: list[Row]) -> str:
    """A table, and what it was measured on."""
    return f"{text}\n\n{machines(rows)}"


def picture(rows: list[Row], path: Path) -> None:
    """Each group's ratios as bars from its baseline, to the right where faster, written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = in_columns(grouped(rows))
    lines = max(sum(len(found) + 2 for found in column.values()) for column in columns)
    size = 9 * len(columns), 1.2 + BAR * lines
    figure, all_axes = pyplot.subplots(1, len(columns), figsize=size, squeeze=False)
    times = [baseline(found).median / r.median for found in grouped(rows).values() for r in found]
    for axes, column in zip(all_axes[0], columns, strict=True):
        draw(axes, column)
        axes.set_ylim(lines - 0.5, -0.7)
        ratio_axis(axes, min(times), max(times))
    figure.text(0.01, 0.004, machines(rows), fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def in_columns(groups: dict[str, list[Row]]) -> list[dict[str, list[Row]]]:
    """Groups in order, side by side in columns of about equal length."""
    lengths = {name: len(found) + 2 for name, found in groups.items()}
    count = max(1, round(sum(lengths.values()) / COLUMN))
    columns: list[dict[str, list[Row]]] = [{} for _ in range(count)]
    before = 0
    for name, found in groups.items():
        middle = before + lengths[name] / 2
        columns[int(middle * count / sum(lengths.values()))][name] = found
        before += lengths[name]
    return [column for column in columns if column]


def draw(axes, groups: dict[str, list[Row]]) -> None:
    """Bars of groups below each other."""
    place, labels = 0, []
    for group, found in groups.items():
        axes.text(0, place, group, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        axes.plot([1, 1], [place + 0.5, place + 0.5 + len(found)], color="black", linewidth=0.8)
        for row in found:
            place += 1
            times = baseline(found).median / row.median
            axes.barh(place, times - 1, left=1, height=0.75, color=OURS if times >= 1 else SLOWER)
            axes.text(max(times, 1), place, f" {ratio(times)}", va="center", fontsize=9)
            labels.append((place, f"{row.name} ({row.role})" if row.role else row.name))
        place += 2
    axes.set_yticks([p for p, _ in labels], [name for _, name in labels], fontsize=9)


def ratio_axis(axes, low: float, high: float) -> None:
    """A logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(0.8 * low, 1.5 * high)
    digits = (1, 2, 5) if high / low < 100 else (1,)
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in digits]
    ticks = [t for t in ticks if 0.8 * low <= t <= 1.5 * high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("speed; the baseline is 1")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def kept_in(path: Path) -> list[Row]:
    """What a file of results holds; nothing where there is none."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def keep(rows: list[Row], path: Path) -> list[Row]:
    """Put groups into a file of results in place of earlier ones of the same name; all it holds then."""
    fresh = {row.group for row in rows}
    after = [row for row in kept_in(path) if row.group not in fresh] + rows
    after.sort(key=lambda row: row.group)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in after], indent=1) + "\n", encoding="utf-8")
    return after


def take_run(run: dict, out: Path, results: Path) -> Path:
    """Report a run, and keep its rows; the file of results that has them now."""
    rows, device = read(run), run["machine_info"]["glance_fast"]["device"]
    out.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    (out / "speed.md").write_text(f"{with_machines(text, rows)}\n", encoding="utf-8")
    picture(rows, out / "speed.png")
    print(text)
    path = results / f"{device.replace(' ', '-')}.json"
    keep(rows, path)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Read a run, write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="JSON of pytest-benchmark")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    cpu = options.results / "cpu.json"
    if options.run:
        run = json.loads(options.run.read_text(encoding="utf-8"))
        if take_run(run, options.out, options.results) != cpu:
            return
    kept = kept_in(cpu)
    for path, parts in (
        (options.readme, {"speed": with_machines(digest(kept, SHORTEST), kept)}),
        (options.page, {"short": with_machines(digest(kept, SHORT), kept), "all": table(kept)}),
    ):
        if not rewrite(path, parts):
            print(f"{path} lacks the marks of {' or '.join(parts)}: left as it is")


if __name__ == "__main__":
    main()
