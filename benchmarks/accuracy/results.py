"""The file of results, and the tables of it.

A row holds ``kind`` and ``data`` (the bed), ``settings`` (of ours, or a baseline's name), ``seed``, ``score``
(which of a model's scores), ``seconds`` until it could score and the ``threads`` they took, ``pro``,
``pixel_auroc``, ``image_auroc``, and ``ms`` an image where that was timed, else null. Rows of the blend, and
baselines that were asked (``--alarms``), have ``found`` and ``false_alarms`` too: the shares of defective and
of good test images above the threshold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from benchmarks.accuracy.beds import BEDS, Bed

RESULTS = Path(__file__).parents[1] / "results" / "accuracy.json"
METRICS = ("pro", "pixel_auroc", "image_auroc")
SHARES = ("found", "false_alarms")
ANCHOR = "maximum of the map"  # the baselines' only score
LOCAL = "Local-Net alone"
BLEND = "blend"
# Settings and score of each column of the first table.
COLUMNS = {
    "ours": ("default", BLEND),
    "ours without Global-Net": ("default", LOCAL),
    "ours, pyramid": ("pyramid", BLEND),
    "PatchCore": ("PatchCore", ANCHOR),
    "PaDiM": ("PaDiM", ANCHOR),
    "ours, paper": ("paper", BLEND),
}
# Those that a short table shows.
SHORT = ("ours", "ours, pyramid", "PatchCore", "PaDiM")
NOTHING = "-"


def read(path: Path = RESULTS) -> list[dict]:
    """Read all rows; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def select(rows: list[dict], **wanted: object) -> list[dict]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def keep(
    path: Path,
    bed: Bed,
    settings: str,
    seed: int,
    cost: dict[str, float | None],
    scores: dict[str, dict[str, float | None]],
) -> None:
    """Add a model's rows to the file, in place of earlier ones of the same bed, settings and seed.

    Parameters
    ----------
    path : Path
        The file.
    bed, settings, seed
        What the rows are of.
    cost : dict
        ``seconds`` and ``threads``, the same for all of the model's scores.
    scores : dict
        Metrics of each score, and ``ms`` where it was timed.
    """
    key = {"data": bed.name, "settings": settings, "seed": seed}
    # Read now and not earlier: another process may have added rows.
    found = [row for row in read(path) if not select([row], **key)]
    for score, values in scores.items():
        rounded = {k: None if values.get(k) is None else round(values[k], 4) for k in METRICS}
        rounded |= {k: round(values[k], 4) for k in SHARES if k in values}
        ms = values.get("ms")
        found.append(
            {"kind": bed.kind, **key, "score": score}
            | {"seconds": round(cost["seconds"]), "threads": cost["threads"]}
            | rounded
            | {"ms": None if ms is None else round(ms, 1)}
        )
        print(bed.name, settings, seed, score, rounded, flush=True)
    _write(path, found)


def keep_shares(path: Path, bed: str, settings: str, seed: int, shares: dict[str, float]) -> None:
    """Add what a threshold finds to a row that is in the file.

    Raises
    ------
    SystemExit
        There is none.
    """
    rows = read(path)
    chosen = select(rows, data=bed, settings=settings, seed=seed, score=ANCHOR)
    if not chosen:
        raise SystemExit(f"{path}: has no row of {settings} on {bed} with seed {seed}; measure that first")
    for row in chosen:
        # Beside the metrics, as in rows of the blend.
        ms = row.pop("ms")
        row |= {k: round(shares[k], 4) for k in SHARES} | {"ms": ms}
    print(bed, settings, seed, shares, flush=True)
    _write(path, rows)


def _write(path: Path, found: list[dict]) -> None:
    order = list(BEDS)
    found.sort(key=lambda row: (order.index(row["data"]), row["settings"], row["seed"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table(rows: list[dict]) -> str:
    """A Markdown table: beds x methods, PRO / pixel AUROC / image AUROC, then seeds and what each costs.

    Means over seeds. An image AUROC that says nothing stands in brackets and is in no mean. A mean over the
    beds, and a cost, is given to a method that has all beds of the table; milliseconds are of those beds
    alone whose images have 256 pixels, and have a line where a method has them.
    """
    columns = dict(COLUMNS)
    for row in rows:
        known = {settings for settings, _ in columns.values()}
        if row["settings"] not in known:
            columns[f"ours, {row['settings']}"] = (row["settings"], BLEND)
    return _table(rows, columns, costs=True)


def ablation(rows: list[dict], settings: str = "default") -> str:
    """A Markdown table of all scores of our model: beds x scores, PRO / pixel AUROC / image AUROC."""
    own = select(rows, settings=settings)
    return _table(own, {score: (settings, score) for score in dict.fromkeys(row["score"] for row in own)})


def summary(rows: list[dict]) -> str:
    """A Markdown table of one line a method: means over all beds of the metrics and of the shares.

    A method that lacks a bed has none; an image AUROC that says nothing is in no mean.
    """
    beds = [bed for name, bed in BEDS.items() if select(rows, data=name)]
    telling = [bed for bed in beds if bed.image_auroc]
    lines = [[f"mean of {len(beds)} test beds", "PRO", "pixel AUROC", "image AUROC", "found", "false alarms"]]
    lines.append(["---"] * len(lines[0]))
    for name in SHORT:
        settings, score = COLUMNS[name]
        own = [{**dict.fromkeys(SHARES), **row} for row in select(rows, settings=settings, score=score)]
        if own:
            values = [_mean(own, key, telling if key == METRICS[2] else beds) for key in METRICS]
            cells = [NOTHING if value is None else f"{value:.3f}" for value in values]
            shares = [_mean(own, key, beds) for key in SHARES]
            lines.append([name, *cells, *(NOTHING if v is None else f"{v:.1%}" for v in shares)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def alarms(rows: list[dict], settings: str = "default") -> str:
    """A Markdown table of thresholds: beds x methods, defective images found / good ones called so."""
    columns = {"ours": (settings, BLEND)} | {name: (name, ANCHOR) for name in ("PatchCore", "PaDiM")}
    own = {
        title: [row for row in select(rows, settings=name, score=score) if SHARES[0] in row]
        for title, (name, score) in columns.items()
    }
    own = {title: found for title, found in own.items() if found}
    lines = [["found / false alarms", *own], ["---"] * (1 + len(own))]
    for bed in BEDS:
        here = [select(found, data=bed) for found in own.values()]
        if any(here):
            lines.append([bed, *(_shares([found]) for found in here)])
    beds = [bed for bed in BEDS if any(select(found, data=bed) for found in own.values())]
    if len(beds) > 1:
        lines.append(["mean", *(_shares([select(f, data=bed) for bed in beds]) for f in own.values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shares(beds: list[list[dict]]) -> str:
    """Both shares, as means over beds of the means over seeds; none where a bed has no rows."""
    if not all(beds):
        return NOTHING
    return " / ".join(f"{mean(mean(row[share] for row in rows) for rows in beds):.1%}" for share in SHARES)


def _table(rows: list[dict], columns: dict[str, tuple[str, str]], costs: bool = False) -> str:
    found = {
        title: select(rows, settings=settings, score=score) for title, (settings, score) in columns.items()
    }
    found = {title: own for title, own in found.items() if own}
    beds = [bed for name, bed in BEDS.items() if any(select(own, data=name) for own in found.values())]
    lines = [["bed", *found], ["---"] * (1 + len(found))]
    for bed in beds:
        lines.append([bed.name, *(_cell(select(own, data=bed.name), [bed]) for own in found.values())])
    if len(beds) > 1:
        lines.append(["mean", *(_cell(own, beds) for own in found.values())])
    if costs:
        large = [bed for bed in beds if bed.size == 256]
        lines.append(["seeds", *(_seeds(own, beds) for own in found.values())])
        lines.append(["largest spread of seeds", *(_spread(own, beds) for own in found.values())])
        lines.append(["training, s", *(_number(_mean(own, "seconds", beds)) for own in found.values())])
        times = [_mean(own, "ms", large) for own in found.values()]
        if any(time is not None for time in times):
            lines.append(["ms an image", *map(_number, times)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _mean(rows: list[dict], key: str, beds: Iterable[Bed]) -> float | None:
    """Mean over beds of the means over seeds; none where a bed has no value."""
    found = [[row[key] for row in select(rows, data=bed.name) if row[key] is not None] for bed in beds]
    return mean(map(mean, found)) if found and all(found) else None


def _cell(rows: list[dict], beds: list[Bed]) -> str:
    """The three metrics, as means over beds."""
    telling = [bed for bed in beds if bed.image_auroc]
    values = [_mean(rows, metric, beds) for metric in METRICS]
    if None in values:
        return NOTHING
    if telling:
        values[2] = _mean(rows, METRICS[2], telling)
    pro, pixel, image = (f"{value:.3f}" for value in values)
    return f"{pro} / {pixel} / {image if telling else f'({image})'}"


def _seeds(rows: list[dict], beds: list[Bed]) -> str:
    """How many seeds are behind a column: the least, then the beds that have more."""
    counts = {bed.name: len({row["seed"] for row in select(rows, data=bed.name)}) for bed in beds}
    least = min(filter(None, counts.values()))
    more = [f"{name} {count}" for name, count in counts.items() if count > least]
    return "; ".join([str(least), *more])


def _spread(rows: list[dict], beds: list[Bed]) -> str:
    """The three metrics: by how much seeds of one bed differ, on the bed where they differ most."""
    groups = [select(rows, data=bed.name) for bed in beds]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return NOTHING
    values = [[[row[metric] for row in group] for group in groups] for metric in METRICS]
    return " / ".join(f"{max(max(v) - min(v) for v in metric):.3f}" for metric in values)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"
