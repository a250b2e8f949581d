"""The glossary defines each term once, and retired words do not come back.

``python -m tests.contract.test_glossary`` lists where a retired word stands.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = Path(__file__).with_name("retired_words.toml")
GLOSSARY: Final = ROOT / "docs" / "glossary.md"
CODE: Final = ("engine", "lua", "persister", "loadtest", "tests", "examples")
CODE_TYPES: Final = frozenset((".py", ".lua", ".sql", ".toml"))
DOCUMENTS: Final = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
# They name the retired words, or are a record of the past.
EXEMPT: Final = (TABLE, Path(__file__), GLOSSARY, ROOT / "persister" / "sql" / "migrations")
DEFINITION: Final = re.compile(r"^\*\*(.+?)\*\*: (\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RetiredWord:
    """A row of the table."""

    word: str
    use: str
    pattern: str
    allowed: tuple[str, ...] = ()

    def stands_in(self, text: str) -> bool:
        return bool(re.search(self.pattern, text)) and not any(re.search(line, text) for line in self.allowed)


def rows() -> list[RetiredWord]:
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [RetiredWord(**row | {"allowed": tuple(row.get("allowed", ()))}) for row in table["retired"]]


RETIRED: Final = rows()


def lines_of(files: Iterator[Path]) -> list[tuple[str, str]]:
    """Each file's path and each of its lines, with the place."""
    found = []
    for file in sorted(files):
        if any(file.is_relative_to(exempt) for exempt in EXEMPT):
            continue
        name = str(file.relative_to(ROOT))
        found.append((name, name))
        numbered = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        found += [(f"{name}:{number}", line) for number, line in numbered]
    return found


@pytest.fixture(scope="module")
def code() -> list[tuple[str, str]]:
    return lines_of(
        file for folder in CODE for file in (ROOT / folder).rglob("*") if file.suffix in CODE_TYPES
    )


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    terms = GLOSSARY.read_text(encoding="utf-8").partition("## Retired words")[0]
    return lines_of(file for pattern in DOCUMENTS for file in ROOT.glob(pattern)) + [
        (f"docs/glossary.md:{number}", line) for number, line in enumerate(terms.splitlines(), start=1)
    ]


def test_each_term_is_defined_once() -> None:
    terms = [term.lower() for term, _ in DEFINITION.findall(GLOSSARY.read_text(encoding="utf-8"))]
    assert terms
    assert len(terms) == len(set(terms)), sorted(term for term in terms if terms.count(term) > 1)


def test_the_glossary_lists_the_retired_words_of_the_table() -> None:
    section = GLOSSARY.read_text(encoding="utf-8").partition("## Retired words")[2]
    listed = set(re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE))
    assert listed - {("retired", "use"), ("---", "---")} == {(row.word, row.use) for row in RETIRED}


@pytest.mark.parametrize("row", RETIRED, ids=lambda row: row.word)
def test_a_retired_word_is_not_in_the_code(row: RetiredWord, code: list[tuple[str, str]]) -> None:
    assert not [place for place, line in code if row.stands_in(line)], f"write: {row.use}"


@pytest.mark.parametrize("row", RETIRED, ids=lambda row: row.word)
def test_a_retired_word_is_not_in_the_documents(row: RetiredWord, documents: list[tuple[str, str]]) -> None:
    assert not [place for place, line in documents if row.stands_in(line)], f"write: {row.use}"


def test_a_retired_word_is_noticed_and_a_contract_name_is_not() -> None:
    row = RetiredWord("receipt", "idempotency record", "(?i)receipt", (":receipt:",))
    assert row.stands_in("keep_receipt('claimed')")
    assert not row.stands_in('f"{tag}:receipt:{hour}"')
    assert not row.stands_in("an idempotency record")


def list_places() -> None:
    lines = lines_of(
        file for folder in CODE for file in (ROOT / folder).rglob("*") if file.suffix in CODE_TYPES
    )
    for row in RETIRED:
        places = [f"{place}: {line.strip()}" for place, line in lines if row.stands_in(line)]
        print(f"\n{row.word} -> {row.use}: {len(places)}", *places[:5], sep="\n  ")  # noqa: T201 - its result


if __name__ == "__main__":
    list_places()
