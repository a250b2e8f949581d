"""Commands and calls that the documents show are those that there are: options, bodies, answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import pytest

from engine.cli import COMMANDS, main
from engine.cli.examples import EXAMPLES
from loadtest import __main__ as loadtest_program
from tests.support.openapi import Document, Operation

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
DOCUMENT: Final = Document()
COMMANDS_MIN: Final = 40
"""Fewer commands or examples than there were when this was written: they are not found any more."""
EXAMPLES_MIN: Final = 20
JSON_BLOCKS_MIN: Final = 2


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, language: str) -> list[str]:
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for kind, block in blocks if kind == language]


def commands(page: str) -> list[list[str]]:
    """The words of each `redeem …` of a page, in a block of shell or between backquotes."""
    blocks = "\n".join(fences(page, "sh")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\w+=\$\()?(redeem .*?)\)?(?: +#.*)?$", blocks, re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    inline = [span.replace("\n", " ") for span in re.findall(r"`(redeem [^`]+)`", prose)]
    found = []
    for command in [part.strip() for line in lines + inline for part in line.split("&&")]:
        plain = re.sub(r"\$\(.*?\)", "CODE", command.replace("\\|", "|"))
        words = shlex.split(re.sub(r"[\[\]]", " ", plain), comments=True)
        found.append([word for word in words[1:] if word not in {"…", ">>", ">"}])
    return found


def parse(words: list[str]) -> None:
    """Look each name and option up; what a command is given is not judged.

    Raises:
        click.ClickException: there is no such command or option.
    """
    if words[0] == "loadtest":
        parse_loadtest(words[1:])
        return
    command: click.Command = main
    context = click.Context(command, info_name="redeem")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        child = command.get_command(context, rest[0])
        if child is None:
            raise click.UsageError(f"there is no {' '.join(words)}")
        command, context = child, click.Context(child, info_name=rest.pop(0), parent=context)
    command.make_parser(context).parse_args(rest)


def parse_loadtest(words: list[str]) -> None:
    """The load tests are a program of their own, with a parser of their own."""
    given = [{"SCENARIO": "flash-sale"}.get(word, word) for word in words]
    try:
        loadtest_program._parser().parse_args(given or ["list"])
    except SystemExit as end:
        raise click.UsageError(f"redeem loadtest does not take {' '.join(given)}") from end


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_exists_with_its_options(page: str) -> None:
    for words in commands(page):
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{page}: redeem {' '.join(words)}: {error.format_message()}")


def test_a_command_or_an_option_that_does_not_exist_is_noticed() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= COMMANDS_MIN
    parse(["codes", "mint", "cmp_1", "--count", "5"])
    wrong = [["mint"], ["codes", "mint", "cmp_1", "--number", "5"], ["loadtest", "run", "--peek", "5"]]
    for words in wrong:
        with pytest.raises(click.ClickException):
            parse(words)


def leaves(command: click.Command, name: str) -> list[str]:
    """The names of a command's subcommands, or its own."""
    if not isinstance(command, click.Group):
        return [name]
    return [leaf for each, child in command.commands.items() for leaf in leaves(child, f"{name} {each}")]


def test_every_help_page_has_examples_and_they_are_right() -> None:
    context = click.Context(main)
    groups = {name: main.get_command(context, name) for name in COMMANDS}
    names = [leaf for name, command in groups.items() if command for leaf in leaves(command, name)]
    assert sorted(EXAMPLES) == sorted(set(names) - {"loadtest"})
    for name, lines in EXAMPLES.items():
        for line in lines:
            found = re.search(rf"\bredeem ({name}\b.*?)(?: [|<>] .*|\).*)?$", line)
            assert found, line
            parse(shlex.split(found[1]))


class Example(NamedTuple):
    """A call or its answer, as a page shows it; ``status`` is None for the call."""

    place: str
    operation: Operation
    status: int | None
    body: Any


def operation_of(method: str, path: str) -> Operation | None:
    for operation in DOCUMENT.operations.values():
        pattern = re.sub(r"\{\w+\}", "[^/]+", operation.path)
        if operation.method == method and re.fullmatch(pattern, path.partition("?")[0]):
            return operation
    return None


START: Final = re.compile(r"^(?:(GET|POST|PATCH|DELETE) (/v1/\S+)|(\d{3})(?= ))", re.MULTILINE)


def first_json(text: str) -> object:
    """The JSON that begins a text, or None: there is none, or it leaves something out."""
    begin = text.find("{")
    if begin < 0 or text[:begin].strip():
        return None
    try:
        return json.JSONDecoder().raw_decode(text[begin:])[0]
    except json.JSONDecodeError:
        return None


def examples(page: str) -> list[Example]:
    found = []
    for block in fences(page, ""):
        operation = None
        for start in START.finditer(block):
            following = START.search(block, start.end())
            text = block[start.end() : following.start() if following else len(block)]
            if start[1]:
                operation = operation_of(start[1], start[2])
                text = re.sub(r"\A(?:.*\n)?(?:[\w-]+: .*\n)+\n", "", text)
            body = first_json(text)
            if operation and body is not None and "…" not in json.dumps(body, ensure_ascii=False):
                status = int(start[3]) if start[3] else None
                found.append(Example(f"{page}: {operation.id} {start[0]}", operation, status, body))
    return found


ALL_EXAMPLES: Final = [example for page in PAGES for example in examples(page)]


@pytest.mark.parametrize("example", ALL_EXAMPLES, ids=lambda example: example.place)
def test_a_call_or_an_answer_shown_is_as_its_schema_says(example: Example) -> None:
    if example.status is None:
        (media, *_) = example.operation.request.values()
        schema = media["schema"]
    else:
        content = DOCUMENT.responses(example.operation)[example.status]["content"]
        (media, *_) = content.values()
        schema = DOCUMENT.closed(media["schema"])
    assert not DOCUMENT.complaints(schema, example.body)


@pytest.mark.parametrize("page", PAGES)
def test_every_call_shown_exists(page: str) -> None:
    calls = [start for block in fences(page, "") for start in START.finditer(block) if start[1]]
    assert not [start[0] for start in calls if not operation_of(start[1], start[2])]


def test_examples_are_found() -> None:
    assert len(ALL_EXAMPLES) >= EXAMPLES_MIN


def test_blocks_of_json_are_json() -> None:
    blocks = [block for page in PAGES for block in fences(page, "json")]
    assert len(blocks) >= JSON_BLOCKS_MIN
    for block in blocks:
        for line in block.strip().replace("\n ", " ").splitlines():
            json.loads(line)
