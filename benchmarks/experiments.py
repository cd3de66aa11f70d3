"""Keep the results of experiments, and write docs/experiments.md from them.

python -m benchmarks.experiments OUT ...    keeps what ``glance-fast experiment ... --out OUT`` wrote
python -m benchmarks.experiments            writes the page from what is kept
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.tables import ROOT, replace
from glance_fast.experiments import categories, cifar10, lambda_s, paper, scales, self_supervised
from glance_fast.experiments.measure import METRICS, Table
from glance_fast.experiments.study import RECORD, RESULTS, Row, Study

KEPT = ROOT / "benchmarks/results/experiments"
PAGE = ROOT / "docs/experiments.md"


def by_metric(tables: Sequence[Table]) -> str:
    """A table a metric."""
    return "\n\n".join(
        markdown([METRICS[table.metric], *table.columns], table.rows) for table in tables if table.rows
    )


def by_share(rows: Sequence[Row]) -> str:
    """PRO by λ_s."""
    lines = []
    for names, curve in lambda_s.curves(rows).items():
        values = dict(zip(*curve, strict=True))
        lines.append((", ".join(names), [values.get(share) for share in lambda_s.SHARES]))
    return markdown(["PRO by λ_s", *(f"{share:g}" for share in lambda_s.SHARES)], lines)


def by_class(rows: Sequence[Row]) -> str:
    """Image AUROC of every class, and their means; the paper's beside."""
    printed = {name: paper.printed()[table] for name, table in cifar10.PRINTED.items()}
    found = [
        (
            row["class"],
            [*(row[key] for key in cifar10.SHOWN.values()), *(p[row["class"]] for p in printed.values())],
        )
        for row in rows
    ]
    mean = [sum(column) / len(found) for column in zip(*(values for _, values in found), strict=True)]
    return markdown(["Image AUROC", *cifar10.SHOWN, *printed], [*found, ("mean", mean)])


def by_origin(rows: Sequence[Row]) -> str:
    """A table a metric: where Local-Net comes from, and the categories."""
    names = list(dict.fromkeys(row["category"] for row in rows))
    found = {(row["local_net"], row["category"]): row for row in rows}
    origins = list(dict.fromkeys(row["local_net"] for row in rows))
    return "\n\n".join(
        markdown(
            [METRICS[metric], *names, "mean"],
            [
                (origin, [*values, sum(values) / len(values)])
                for origin in origins
                for values in [[found[origin, name][metric] for name in names]]
            ],
        )
        for metric in METRICS
    )


def markdown(head: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table of names and figures of three digits; ``-`` where there is none."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, values in rows:
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# By the name of the experiment: its columns, and what the page shows of its rows.
SHOWN: dict[str, tuple[dict[str, type], Callable[[list[Row]], str]]] = {
    "categories": (categories.COLUMNS, lambda rows: by_metric(categories.tables(rows))),
    "lambda": (lambda_s.COLUMNS, by_share),
    "scales": (scales.COLUMNS, lambda rows: by_metric(scales.tables(rows))),
    "cifar10": (cifar10.COLUMNS, by_class),
    "self-supervised": (self_supervised.COLUMNS, by_origin),
}
# Of these a category each is kept.
BY_CATEGORY = ("self-supervised",)


def keep(out: Path) -> None:
    """Keep the results of an experiment in place of older ones of that name."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    name = record["experiment"]
    place = KEPT / name / record["settings"]["category"] if name in BY_CATEGORY else KEPT / name
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / RESULTS, place / RESULTS)
    # Where folders lie on this machine is nobody's concern.
    settings = {k: Path(v).name if k == "photos" and v else v for k, v in record["settings"].items()}
    (place / RECORD).write_text(
        json.dumps(record | {"settings": settings}, indent=2) + "\n", encoding="utf-8"
    )


def kept(name: str, columns: dict[str, type]) -> list[Row]:
    """Rows of an experiment that are kept."""
    return [row for file in sorted((KEPT / name).rglob(RESULTS)) for row in Study(file.parent, columns).rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the experiments that are named, and rewrite the page."""
    for out in sys.argv[1:] if arguments is None else arguments:
        keep(Path(out))
    text = PAGE.read_text(encoding="utf-8")
    for name, (columns, shown) in SHOWN.items():
        if rows := kept(name, columns):
            text = replace(text, name, shown(rows))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
