"""Every named query is used by some module, and every query that a module asks for exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from engine.queries import queries

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "persister")
NAME = re.compile(r"^-- name: (.*)$", re.MULTILINE)


def sql_files(package: str) -> dict[str, set[str]]:
    """The queries that stand in each file of a package. Migrations are no queries."""
    return {
        str(path.relative_to(ROOT)): set(NAME.findall(path.read_text(encoding="utf-8")))
        for path in (ROOT / package).rglob("*.sql")
        if path.parent.name != "migrations"
    }


def file_of(call: ast.Call, module: Path) -> str:
    """The file that ``queries(package, name)`` reads."""
    package, name = call.args
    folder = module.parent
    if isinstance(package, ast.Constant):
        folder = ROOT / str(package.value).replace(".", "/")
    assert isinstance(name, ast.Constant), f"{module}: the file's name is not written out"
    return str((folder / str(name.value)).relative_to(ROOT)) + ".sql"


def asked_for(module: Path) -> set[tuple[str, str]]:
    """The queries that a module asks for, as (file, name)."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    tables = {}
    for node in tree.body:
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=table), value=ast.Call(func=ast.Name(id="queries")) as call
            ):
                tables[table] = file_of(call, module)
    asked, mentions = set(), 0
    for each in ast.walk(tree):
        match each:
            case ast.Subscript(value=ast.Name(id=table), slice=ast.Constant(value=name)) if table in tables:
                asked.add((tables[table], str(name)))
                mentions -= 1
            case ast.Name(id=table, ctx=ast.Load()) if table in tables:
                mentions += 1
    assert mentions == 0, f"{module}: a query's name is not written out"
    return asked


@pytest.mark.parametrize("package", PACKAGES)
def test_every_query_is_used_and_every_use_exists(package: str) -> None:
    there = {(file, name) for file, names in sql_files(package).items() for name in names}
    asked = {each for module in (ROOT / package).rglob("*.py") for each in asked_for(module)}
    assert asked == there


@pytest.mark.parametrize("package", PACKAGES)
def test_the_loader_gives_each_query_of_each_file(package: str) -> None:
    files = sql_files(package)
    assert files
    for file, names in files.items():
        path = Path(file)
        loaded = queries(".".join(path.parent.parts), path.stem)
        assert loaded.keys() == names, file
        assert all(text and not text.endswith(";") for text in loaded.values()), file


def test_a_file_without_queries_and_one_with_a_name_twice_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room_with_sql"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "none.sql").write_text("SELECT 1;\n")
    (room / "twice.sql").write_text("-- name: one\nSELECT 1;\n\n-- name: one\nSELECT 2;\n")
    (room / "good.sql").write_text("-- A file.\n\n-- name: one\n-- Why.\nSELECT 1;\n-- name: two\nSELECT 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("none", "twice"):
        with pytest.raises(ValueError, match=name):
            queries("room_with_sql", name)
    with pytest.raises(FileNotFoundError):
        queries("room_with_sql", "absent")
    assert dict(queries("room_with_sql", "good")) == {"one": "-- Why.\nSELECT 1", "two": "SELECT 2"}
