"""Draw which part of glance_fast imports which, and say where an arrow goes back up or in a circle.

    python docs/imports.py

Parts stand in floors, the ground last. An import may go to the same floor or to one below; files of one
floor may not import each other in a circle.
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["cli"],
    ["experiments"],
    ["serving"],
    ["jobs", "__init__"],
    ["training", "evaluation", "export"],
    ["run", "scorers", "tiles"],
    ["model"],
    ["engines", "calibration", "maps", "letterbox", "roi"],
    ["nets"],
    ["kernels", "data"],
    ["config"],
    ["geometry", "device", "progress"],
    ["errors"],
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def modules() -> dict[str, Path]:
    """Every module of the package, by name below ``glance_fast``."""
    files = {}
    for folder, prefix in ((ROOT / "glance_fast", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder).with_suffix("").parts
            if inner[0] != "kernels":
                files[".".join(prefix + inner).removesuffix(".__init__")] = path
    return files


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, also inside functions and for type hints alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SystemExit(f"{path}:{node.lineno}: a relative import; write glance_fast's name")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name == "glance_fast" or name.startswith("glance_fast."):
                inner = name.removeprefix("glance_fast").removeprefix(".")
                while inner and inner not in known:
                    inner = inner.rpartition(".")[0]
                found.add(inner or "__init__")
    return found


def faults(graph: dict[str, set[str]]) -> list[str]:
    """Arrows that go up, and circles."""
    said = []
    for module, used in sorted(graph.items()):
        for other in sorted(used):
            if FLOOR[other.split(".")[0]] < FLOOR[module.split(".")[0]]:
                said.append(f"{module} imports {other}, which stands above it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        said.append(f"a circle: {' -> '.join(error.args[1])}")
    return said


def graph() -> dict[str, set[str]]:
    """What every module imports."""
    files = modules()
    return {name: imports(path, set(files)) - {name} for name, path in files.items()}


def main() -> int:
    found = graph()
    for parts in FLOORS:
        for part in parts:
            below = {o.split(".")[0] for m, used in found.items() if m.split(".")[0] == part for o in used}
            print(f"{part:12} -> {', '.join(sorted(below - {part}, key=FLOOR.get)) or 'nothing'}")
    said = faults(found)
    print(*said, sep="\n")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
