"""Write the README's tables from ``benchmarks/results``.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
METRICS = ("pro", "pixel_auroc", "image_auroc")


def accuracy(rows: list[dict]) -> str:
    """A table of the test beds: means over seeds (and over the three textures)."""
    order = {"aligned": 0, "any-angle": 1, "texture": 2}
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["settings"], row["score"]), []).append(row)
    lines = [
        "| data | settings | score | seeds | training, min | PRO | pixel AUROC | image AUROC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, settings, score), found in sorted(
        groups.items(), key=lambda item: (order[item[0][0]], item[0][1] != "default", item[0][1])
    ):
        seeds = len({row["seed"] for row in found})
        minutes = f"{mean(row['seconds'] for row in found) / 60:.0f}"
        if settings == "PaDiM":
            minutes = "-"  # it has no training to speak of
        figures = " | ".join(f"{mean(row[m] for row in found):.3f}" for m in METRICS)
        lines.append(f"| {kind} | {settings} | {score} | {seeds} | {minutes} | {figures} |")
    return "\n".join(lines)


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
    found = {
        name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("testbeds", "demo")
    }
    text = replace(readme.read_text(encoding="utf-8"), "accuracy", accuracy(found["testbeds"]))
    readme.write_text(replace(text, "demo", demo(found["demo"])), encoding="utf-8")


if __name__ == "__main__":
    main()
