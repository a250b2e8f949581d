"""Composes the scripts of this folder and holds their callers to their contract.

``-- @include lib/name`` stands for that file's content: depth first, once each. The locals
that a script binds KEYS and ARGV to, and those it unpacks each attempt to, are its
signature; who calls it names what it passes, and ``load`` compares the two.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

_INCLUDE = re.compile(r"^-- @include (\S+)$", re.MULTILINE)
_BINDING = re.compile(r"^local ([\w, ]+) = ((?:KEYS|ARGV)\[1\].*)$", re.MULTILINE)
_FIELDS = re.compile(
    r"^\s*(?:local )?([\w,\s]+?) = unpack\(fields, at(?: \+ (\d+))?, at \+ (\d+)\)$", re.MULTILINE
)
_WIDTH = re.compile(r"^local attempt_width = (\d+)$", re.MULTILINE)
_SHEBANG = re.compile(r"#!lua( flags=[a-z,-]+)?\n")


class ScriptError(Exception):
    """A script cannot be composed, or is called with other keys or arguments than it binds."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script ready for EVALSHA.

    Attributes:
        name: its file, without the ending.
        source: the composed text.
        sha: the SHA-1 that Redis knows it by; another content has another, so two versions
            live side by side during a deploy.
        keys, arguments: the names bound to the first KEYS and ARGV.
        attempt: the names of the fields that repeat in the array ``fields``, for each attempt.
    """

    name: str
    source: bytes
    sha: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    attempt: tuple[str, ...]


def load(
    name: str,
    *,
    keys: Sequence[str] | None = None,
    arguments: Sequence[str] | None = None,
    attempt: Sequence[str] | None = None,
    folder: Traversable | None = None,
) -> Script:
    """Compose a script, and compare what it binds with what its caller says it passes.

    Raises:
        ScriptError: a file is missing, an include goes in a circle, or the two differ.
    """
    source = compose(name, folder or resources.files("lua"))
    script = Script(
        name=name,
        source=source.encode(),
        sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        keys=_bound(source, "KEYS"),
        arguments=_bound(source, "ARGV"),
        attempt=_repeated(name, source),
    )
    for what, passed, bound in (
        ("keys", keys, script.keys),
        ("arguments", arguments, script.arguments),
        ("fields of an attempt", attempt, script.attempt),
    ):
        if passed is not None and tuple(passed) != bound:
            raise ScriptError(f"{name}.lua takes the {what} {bound}, its caller passes {tuple(passed)}")
    return script


def compose(name: str, folder: Traversable) -> str:
    """The text of a script with everything it includes.

    Raises:
        ScriptError: a file is missing, does not start with ``#!lua``, or includes itself.
    """
    source = _expand(name, folder, seen=set(), path=())
    if not _SHEBANG.match(source):
        raise ScriptError(f"{name}.lua does not start with #!lua")
    return source


def _expand(name: str, folder: Traversable, *, seen: set[str], path: tuple[str, ...]) -> str:
    if name in path:
        raise ScriptError(f"circle of includes: {' -> '.join((*path, name))}")
    if name in seen:
        return ""
    seen.add(name)
    file = folder.joinpath(*f"{name}.lua".split("/"))
    if not file.is_file():
        raise ScriptError(f"{name}.lua is missing{f', included by {path[-1]}' if path else ''}")
    text = file.read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: _expand(match[1], folder, seen=seen, path=(*path, name)).rstrip(), text)


def _bound(source: str, table: str) -> tuple[str, ...]:
    for match in _BINDING.finditer(source):
        names = tuple(name.strip() for name in match[1].split(","))
        expected = ", ".join(f"{table}[{number}]" for number in range(1, len(names) + 1))
        if match[2].strip() == expected:
            return names
    return ()


def _repeated(name: str, source: str) -> tuple[str, ...]:
    """The fields of an attempt, which may be unpacked in several places, the first ones first."""
    fields: list[str] = []
    for match in sorted(_FIELDS.finditer(source), key=lambda match: int(match[2] or 0)):
        names_here = match[1].replace(",", " ").split()
        if int(match[2] or 0) != len(fields) or int(match[3]) != len(fields) + len(names_here) - 1:
            raise ScriptError(f"{name}.lua unpacks {names_here} from another place than theirs")
        fields += names_here
    width = _WIDTH.search(source)
    if (int(width[1]) if width else 0) != len(fields):
        raise ScriptError(f"{name}.lua unpacks {len(fields)} fields, its attempt_width says otherwise")
    return tuple(fields)


def names() -> list[str]:
    """All scripts of this folder, by name."""
    return sorted(
        file.name.removesuffix(".lua")
        for file in resources.files("lua").iterdir()
        if file.name.endswith(".lua")
    )


def write_composed(target: Path) -> None:
    """Write every composed script to a folder, for luacheck."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names():
        # luacheck knows the shebang line, and reports columns and lines of the composed text.
        (target / f"{name}.lua").write_bytes(load(name).source)


if __name__ == "__main__":
    write_composed(Path(sys.argv[1]))
