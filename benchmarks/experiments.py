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
from glance_fast.experiments import categories, lambda_s, scales
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
}


def keep(out: Path) -> None:
    """Keep the results of an experiment in place of older ones of that name."""
    name = json.loads((out / RECORD).read_text(encoding="utf-8"))["experiment"]
    for file in (RECORD, RESULTS):
        (KEPT / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / file, KEPT / name / file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the experiments that are named, and rewrite the page."""
    for out in sys.argv[1:] if arguments is None else arguments:
        keep(Path(out))
    text = PAGE.read_text(encoding="utf-8")
    for name, (columns, shown) in SHOWN.items():
        if (KEPT / name / RESULTS).exists():
            text = replace(text, name, shown(Study(KEPT / name, columns).rows))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
