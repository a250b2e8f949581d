"""The import graph of the source: circles, imports that run back up, floors. ``make graph`` prints it.

``python3 tests/import_graph.py [CHECKOUT]`` reads files only; imports for types count. A module stands one
floor above the highest that it imports. In a circle, an import runs back up if it leads to a module that
stands as high or higher, where those outside the circle place both.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

PACKAGES: Final = ("engine", "persister", "lua", "loadtest")
Graph = dict[str, set[str]]


def read(root: Path) -> Graph:
    """Each module, and the modules that it imports."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    return {name: _imports(name, path, paths) for name, path in paths.items()}


def _imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= modules & known.keys() or {node.module}
    return (found & known.keys()) - {name}


def circles(graph: Graph) -> list[set[str]]:
    """Modules that import each other, directly or through others."""
    reached = {name: _reached(graph, name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]} | {name}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def _reached(graph: Graph, start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each module; imports within a circle are left out."""
    together = circles(graph)
    down = {
        name: {other for other in others if not any({name, other} <= circle for circle in together)}
        for name, others in graph.items()
    }
    floor: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in floor:
            floor[name] = 1 + max((place(other) for other in down[name]), default=0)
        return floor[name]

    for name in graph:
        place(name)
    return floor


def main() -> None:
    """Print the graph of a checkout."""
    graph = read(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1])
    floor, found = floors(graph), circles(graph)
    upward = sorted(
        (name, other)
        for circle in found
        for name in circle
        for other in graph[name] & circle
        if floor[other] >= floor[name]
    )
    imports = sum(map(len, graph.values()))
    lines = [f"{len(graph)} modules, {imports} imports, {max(floor.values())} floors, {len(found)} circles"]
    lines += [f"circle: {', '.join(sorted(circle))}" for circle in found]
    lines += [f"back up: {name} -> {other}" for name, other in upward]
    for level in range(max(floor.values()), 0, -1):
        here = sorted(name for name in graph if floor[name] == level and "." in name)
        lines.append(f"{level:2}  {' '.join(here)}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
