"""Write the README's tables from ``benchmarks/results``.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.accuracy.results import METRICS, ablation, alarms, read, select, table

ROOT = Path(__file__).parent.parent


def accuracy(rows: list[dict]) -> str:
    """Tables of the test beds: ours beside the baselines; where there is ours, what its threshold does and
    what is in it."""
    parts = [table(rows)]
    if select(rows, settings="default"):
        parts += [alarms(rows), ablation(rows)]
    return "\n\n".join(parts)


def demo(results: dict[str, dict]) -> str:
    """A table of the demo's textures."""
    lines = ["| texture | PRO | pixel AUROC | image AUROC |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(f'{row[m]:.3f}' for m in METRICS)} |" for name, row in results.items()]
    return "\n".join(lines)


def replace(text: str, name: str, content: str) -> str:
    """The text with what lies between the two marks of ``name`` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{content}\n{end}{after}"


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    text = replace(readme.read_text(encoding="utf-8"), "accuracy", accuracy(read()))
    found = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    readme.write_text(replace(text, "demo", demo(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
