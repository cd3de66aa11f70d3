"""Write the tables of accuracy in the README and in docs/accuracy.md from ``benchmarks/results``.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.accuracy.results import METRICS, ablation, alarms, read, select, summary, table

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs/accuracy.md"


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


def rewrite(path: Path, parts: dict[str, str]) -> bool:
    """Replace what lies between the marks of each name in a file; False, and no change, if it lacks some."""
    text = path.read_text(encoding="utf-8")
    if not all(f"<!-- {name} -->" in text for name in parts):
        return False
    for name, content in parts.items():
        text = replace(text, name, content)
    path.write_text(text, encoding="utf-8")
    return True


def main() -> None:
    """Rewrite README.md and docs/accuracy.md."""
    rows = read()
    found = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    for path, parts in (
        (README, {"accuracy": summary(rows)}),
        (PAGE, {"accuracy": accuracy(rows), "demo": demo(found)}),
    ):
        if not rewrite(path, parts):
            raise SystemExit(f"{path}: lacks the marks of {' or '.join(parts)}")


if __name__ == "__main__":
    main()
