"""One class name, one meaning: no two modules of the source define classes of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("engine", "persister", "lua", "loadtest")


def test_a_class_name_has_one_meaning() -> None:
    defined: defaultdict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    defined[node.name].append(str(path.relative_to(ROOT)))
    assert defined
    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}
