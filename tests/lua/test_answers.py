"""The table of answers (lua/lib/answers.lua), and what the engine and the scripts make of it."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Final

import pytest

from engine.api.problems import PROBLEMS
from engine.redemption import core  # noqa: F401 - brings in every kind of attempt
from engine.redemption.attempt import Attempt
from lua import loader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

ANSWERS: Final = loader.answers()
REFUSALS: Final = {word for name, words in ANSWERS.items() if name.startswith("refusal_") for word in words}
WORDS: Final = {word for words in ANSWERS.values() for word in words}
CONFLICT: Final = 409
# Conflicts that no script finds.
OF_OTHERS: Final = {"import_conflict", "currency_mismatch", "campaign_mismatch", "signing_secret_limit"}
# Words that are also types of events, or states of a campaign, code, hold or commit record. There they are
# literal.
OTHER_MEANINGS: Final = {
    *("redeemed", "held", "released", "rolled_back", "adjusted", "voided"),
    *("begun", "decided", "ended", "prepared"),
}
LITERAL: Final = re.compile(r"'(?:[^'\\\n]|\\.)*'")


def kinds(base: type[Attempt] = Attempt) -> Iterator[type[Attempt]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def sources() -> dict[str, str]:
    """All scripts and what they include, without comments."""
    folder = resources.files("lua")
    files = (*folder.iterdir(), *folder.joinpath("lib").iterdir())
    return {
        file.name: re.sub(r"--.*", "", file.read_text())
        for file in files
        if file.name.endswith(".lua") and file.name != "answers.lua"
    }


SOURCES: Final = sources()


async def test_the_loader_reads_the_table_as_lua_does(redis: Redis) -> None:
    text = resources.files("lua").joinpath("lib", "answers.lua").read_text()
    table = json.loads(await redis.eval(f"return cjson.encode((function() {text} end)())", 0))
    as_lua_has_it = {
        name: {word: "" if then is True else then.replace("\n", "\\n") for word, then in words.items()}
        for name, words in table.items()
    }
    assert as_lua_has_it == ANSWERS


def test_a_word_means_one_thing() -> None:
    words = [word for name, group in ANSWERS.items() if name != "not_kept" for word in group]
    assert sorted(words) == sorted(WORDS)


def test_every_refusal_is_a_problem_and_every_conflict_a_refusal() -> None:
    assert PROBLEMS.keys() >= REFUSALS
    conflicts = {code for code, (status, _) in PROBLEMS.items() if status == CONFLICT}
    assert conflicts - REFUSALS == OF_OTHERS
    assert not (WORDS - REFUSALS) & PROBLEMS.keys()


def test_the_successes_are_those_of_the_kinds_of_attempts() -> None:
    successes = {kind.success for kind in kinds() if hasattr(kind, "success")}
    assert successes == ANSWERS["success"].keys()


def test_what_is_undecided_is_never_kept() -> None:
    assert ANSWERS["undecided"].keys() | {"held_by_another_order"} == ANSWERS["not_kept"].keys()


@pytest.mark.parametrize(("name", "source"), SOURCES.items(), ids=SOURCES)
def test_no_script_spells_a_word_itself(name: str, source: str) -> None:
    literals = [literal[0][1:-1] for literal in LITERAL.finditer(source)]
    first_words = {re.split(r"[ \\]", literal)[0] for literal in literals}
    assert not first_words & (WORDS - OTHER_MEANINGS), name
    assert not re.search(r"\breturn \{? ?'\w", source), name


def test_every_word_is_answered_by_a_script() -> None:
    used = {match[1] for source in SOURCES.values() for match in re.finditer(r"\bANSWER\.(\w+)", source)}
    assert used == WORDS
