"""Composes the scripts of this folder, and checks that callers pass what a script expects.

Each script becomes a library of Redis with one function: it runs ``begin_call`` (``lib/call``), then the
script's ``main``. The script's first line has the function's flags. The loader replaces
``-- @include lib/name`` by the content of that file: depth first, each file once. It replaces
``ANSWER.word`` by the word as a string. The word must be in the table of answers (``lib/answers.lua``).

The signature of a script is the names that it binds. These are the variables for KEYS and ARGV, and the
fields of each attempt: first the fields of every script (``lib/attempt.lua``), then the script's own fields.
These are the parameters of the function that it passes to ``answer_each``, ``answer_alike`` or
``answer_together``. The caller names what it passes, and ``load`` compares the two.
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
_BINDING = re.compile(r"^    (?:local )?([\w, ]+) = ((?:KEYS|ARGV)\[1\].*)$", re.MULTILINE)
_COMMON_FIELDS = re.compile(r"^    ([\w,\s]+?) = unpack\(columns\)$", re.MULTILINE)
_OWN_FIRST = re.compile(r"^local OWN_FIRST = (\d+)\b", re.MULTILINE)
_ANSWER_EACH = re.compile(
    r"^    (?:return|local \w+ =) answer_(?:each|alike|together)\((\w+)(?:, ['\w]+)*\)$", re.MULTILINE
)
_CALL_FILE = "lib/call"
_MAIN = re.compile(r"^local function main\(\)$", re.MULTILINE)
_ANSWERS_FILE = "lib/answers"
_GROUP = re.compile(r"^    (\w+) = \{.*\n((?:        .*\n)*)    \},$", re.MULTILINE)
_WORD = re.compile(r"^        (\w+) = (?:'(.*)'|true),", re.MULTILINE)
_ANSWER = re.compile(r"\bANSWER(S?)\.(\w+)")
_SHEBANG = re.compile(r"#!lua(?: flags=([a-z,-]+))?\n")
OF_THE_ENGINE = "redeem"
"""How the names of all libraries in Redis begin."""
_LIBRARY = """\
#!lua name={library}
{source}
redis.register_function({{
    function_name = '{library}',
    callback = function(keys, arguments)
        return begin_call(keys, arguments) or main()
    end,
    flags = {{ {flags} }},
}})
"""


class ScriptError(Exception):
    """A script cannot be composed, or its caller passes other keys, arguments or fields than it binds."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script ready for FUNCTION LOAD and FCALL.

    Attributes:
        name: the name of its file, without the extension.
        source: the composed text, as a library.
        library: the name in Redis, of the library and of its function. It has the SHA-1 of the content, so
            two versions can be in use during a deploy.
        keys, arguments: the names bound to the first KEYS and ARGV.
        attempt: the names of the fields of an attempt. Each is a column in the array ``columns``.
    """

    name: str
    source: bytes
    library: str
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
    """Compose a script, and compare the names that it binds with the names that its caller passes.

    Raises:
        ScriptError: a file is missing, includes form a circle, an answer is not in the table, or the names
            differ.
    """
    flags, source = compose(name, folder or resources.files("lua"))
    quoted = ", ".join(f"'{flag}'" for flag in flags)
    unnamed = _LIBRARY.format(library="", source=source, flags=quoted)
    library = prefix(name) + hashlib.sha1(unnamed.encode(), usedforsecurity=False).hexdigest()
    script = Script(
        name=name,
        source=_LIBRARY.format(library=library, source=source, flags=quoted).encode(),
        library=library,
        keys=_bound(source, "KEYS"),
        arguments=_bound(source, "ARGV"),
        attempt=_fields_of_attempt(name, source),
    )
    for what, passed, bound in (
        ("keys", keys, script.keys),
        ("arguments", arguments, script.arguments),
        ("fields of an attempt", attempt, script.attempt),
    ):
        if passed is not None and tuple(passed) != bound:
            raise ScriptError(f"{name}.lua takes the {what} {bound}, but its caller passes {tuple(passed)}")
    return script


def prefix(name: str) -> str:
    """The beginning of the names of a script's libraries in Redis, of this version and of others."""
    return f"{OF_THE_ENGINE}_{name}_"


def compose(name: str, folder: Traversable) -> tuple[tuple[str, ...], str]:
    """The flags of a script, and its text with everything that it includes.

    Raises:
        ScriptError: a file is missing, the text does not start with ``#!lua`` or has no ``main``, a file
            includes itself, or an answer is not in the table.
    """
    included: set[str] = set()
    call = _expand(_CALL_FILE, folder, included=included, path=())
    source = _expand(name, folder, included=included, path=())
    shebang = _SHEBANG.match(source)
    if not shebang:
        raise ScriptError(f"{name}.lua does not start with #!lua")
    if not _MAIN.search(source):
        raise ScriptError(f"{name}.lua has no function main")
    flags = tuple(shebang[1].split(",")) if shebang[1] else ()
    return flags, call + _with_answers(name, source[shebang.end() :], folder)


def answers(folder: Traversable | None = None) -> dict[str, dict[str, str]]:
    """The table of answers: for each group its words, and for each word the format of the text after it."""
    text = _read(_ANSWERS_FILE, folder or resources.files("lua"))
    return {
        group[1]: {word[1]: word[2] or "" for word in _WORD.finditer(group[2])}
        for group in _GROUP.finditer(text)
    }


def _with_answers(name: str, source: str, folder: Traversable) -> str:
    """Replace ``ANSWER.word`` by strings. A Lua table instead would be built in every call of a script."""
    if not _ANSWER.search(source):
        return source
    groups = answers(folder)
    words = {word for group in groups.values() for word in group}

    def text(match: re.Match[str]) -> str:
        if match[1] and match[2] in groups:
            return f"{{ {', '.join(f'{word} = true' for word in groups[match[2]])} }}"
        if not match[1] and match[2] in words:
            return f"'{match[2]}'"
        raise ScriptError(f"{name}.lua has {match[0]}, which is not in {_ANSWERS_FILE}.lua")

    return _ANSWER.sub(text, source)


def _expand(name: str, folder: Traversable, *, included: set[str], path: tuple[str, ...]) -> str:
    if name in path:
        raise ScriptError(f"circle of includes: {' -> '.join((*path, name))}")
    if name in included:
        return ""
    included.add(name)
    text = _read(name, folder, f", included by {path[-1]}" if path else "")

    def content(match: re.Match[str]) -> str:
        return _expand(match[1], folder, included=included, path=(*path, name)).rstrip()

    return _INCLUDE.sub(content, text)


def _read(name: str, folder: Traversable, included_by: str = "") -> str:
    file = folder.joinpath(*f"{name}.lua".split("/"))
    if not file.is_file():
        raise ScriptError(f"{name}.lua is missing{included_by}")
    return file.read_text(encoding="utf-8")


def _bound(source: str, table: str) -> tuple[str, ...]:
    for match in _BINDING.finditer(source):
        names = tuple(name.strip() for name in match[1].split(","))
        expected = ", ".join(f"{table}[{number}]" for number in range(1, len(names) + 1))
        if match[2].strip() == expected:
            return names
    return ()


def _fields_of_attempt(name: str, source: str) -> tuple[str, ...]:
    """The fields that every script takes, then the script's own fields."""
    fields = _names(match[1]) if (match := _COMMON_FIELDS.search(source)) else ()
    own_first = _OWN_FIRST.search(source)
    if (int(own_first[1]) - 1 if own_first else 0) != len(fields):
        raise ScriptError(
            f"{name}.lua has {len(fields)} fields of every script, but its `OWN_FIRST` is for another number"
        )
    call = _ANSWER_EACH.search(source)
    if not call:
        return fields
    decide = re.search(rf"^local function {call[1]}\(([\w, ]*)\)$", source, re.MULTILINE)
    if not decide:
        raise ScriptError(f"{name}.lua has no function {call[1]} to answer each attempt")
    return fields + _names(decide[1])


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def names() -> list[str]:
    """The names of all scripts of this folder, sorted."""
    return sorted(
        file.name.removesuffix(".lua")
        for file in resources.files("lua").iterdir()
        if file.name.endswith(".lua")
    )


def write_composed(target: Path) -> None:
    """Write every composed script to a folder, for luacheck."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names():
        # luacheck accepts the first line. It reports lines and columns of the composed text.
        (target / f"{name}.lua").write_bytes(load(name).source)


if __name__ == "__main__":
    write_composed(Path(sys.argv[1]))
