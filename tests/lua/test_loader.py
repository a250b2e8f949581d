from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from lua import loader
from lua.loader import ScriptError

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

WELL_SIGNED = """#!lua
local events_key, version_key = KEYS[1], KEYS[2]
local shard, limit = ARGV[1], ARGV[2]
local columns = cmsgpack.unpack(ARGV[3])
local code, user,
    amount = unpack(columns)
local OWN_FIRST, OWN_LAST = 4, #columns -- of this script

local function refuse()
    return 'no'
end

local function redeem(order, actor)
    return order .. actor
end

return answer_each(redeem)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Files by name; two underscores are a slash."""
    for name, text in files.items():
        (folder / f"{name.replace('__', '/')}.lua").write_text(text)


def test_includes_come_depth_first_and_once_each(folder: Path) -> None:
    write(
        folder,
        main="#!lua\n-- @include lib/a\n-- @include lib/b\n-- @include lib/c\nreturn abc",
        lib__a="-- @include lib/c\nlocal a",
        lib__b="-- @include lib/a\n-- @include lib/c\nlocal b",
        lib__c="local c",
    )
    lines = loader.compose("main", folder).split("\n")
    assert [line for line in lines if line] == ["#!lua", "local c", "local a", "local b", "return abc"]


def test_what_only_looks_like_an_include_stays(folder: Path) -> None:
    text = "#!lua\n  -- @include lib/a\n-- @include\n--@include lib/a\n-- see @include lib/a\n"
    write(folder, main=text)
    assert loader.compose("main", folder) == text


@pytest.mark.parametrize(
    ("a", "b", "circle"),
    [("lib/a", "", "main -> lib/a -> lib/a"), ("lib/b", "lib/a", "main -> lib/a -> lib/b -> lib/a")],
)
def test_a_circle_of_includes_is_refused_and_shown(folder: Path, a: str, b: str, circle: str) -> None:
    write(
        folder,
        main="#!lua\n-- @include lib/a\n",
        lib__a=f"-- @include {a}\n",
        lib__b=f"-- @include {b}\n",
    )
    with pytest.raises(ScriptError, match=f"circle of includes: {circle}$"):
        loader.compose("main", folder)


def test_a_missing_file_is_refused_and_named(folder: Path) -> None:
    write(folder, main="#!lua\n-- @include lib/a\n", lib__a="-- @include lib/gone\n")
    with pytest.raises(ScriptError, match=r"^lib/gone\.lua is missing, included by lib/a$"):
        loader.compose("main", folder)
    with pytest.raises(ScriptError, match=r"^other\.lua is missing$"):
        loader.compose("other", folder)


@pytest.mark.parametrize("text", ["return 1\n", "\n#!lua\nreturn 1\n", "#!luajit\nreturn 1\n", "#!lua", ""])
def test_a_script_that_does_not_start_with_its_shebang_is_refused(folder: Path, text: str) -> None:
    write(folder, main=text)
    with pytest.raises(ScriptError, match="does not start with #!lua"):
        loader.load("main", folder=folder)


def test_the_signature_is_what_the_script_binds(folder: Path) -> None:
    write(folder, main=WELL_SIGNED)
    script = loader.load("main", folder=folder)
    assert script.keys == ("events_key", "version_key")
    assert script.arguments == ("shard", "limit")
    assert script.attempt == ("code", "user", "amount", "order", "actor")


@pytest.mark.parametrize(
    ("what", "passed"),
    [
        ("keys", ("version_key", "events_key")),
        ("keys", ("events_key",)),
        ("keys", ()),
        ("arguments", ("shard", "limit", "more")),
        ("arguments", ("shard", "limits")),
        ("attempt", ("code", "user", "amount", "actor", "order")),
        ("attempt", ("code", "amount", "user", "order", "actor")),
        ("attempt", ("code", "user", "amount", "order")),
        ("attempt", ("code", "user", "amount")),
    ],
)
def test_a_caller_that_passes_something_else_is_refused(
    folder: Path, what: str, passed: tuple[str, ...]
) -> None:
    write(folder, main=WELL_SIGNED)
    with pytest.raises(ScriptError, match=r"main\.lua takes the .*, but its caller passes"):
        loader.load("main", folder=folder, **{what: passed})


@pytest.mark.parametrize(
    "call",
    ["return answer_each(redeem, true)", "local answers = answer_each(redeem, KEEPS_OWN_RECORDS)"],
)
def test_a_script_may_see_to_its_records_and_do_something_afterwards(folder: Path, call: str) -> None:
    write(folder, main=WELL_SIGNED.replace("return answer_each(redeem)", call))
    assert loader.load("main", folder=folder).attempt == ("code", "user", "amount", "order", "actor")


@pytest.mark.parametrize(
    "ending", ["return answer_each(refuse)", "return answer_together(refuse)", "return { 'ok' }"]
)
def test_a_script_may_have_no_fields_of_its_own(folder: Path, ending: str) -> None:
    write(folder, main=WELL_SIGNED.replace("return answer_each(redeem)", ending))
    assert loader.load("main", folder=folder).attempt == ("code", "user", "amount")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("OWN_LAST = 4", "OWN_LAST = 5"),
        ("OWN_LAST = 4", "OWN_LAST = 3"),
        ("local OWN_FIRST, OWN_LAST = 4, #columns -- of this script\n", ""),
        ("user,\n    amount", "user"),
    ],
)
def test_the_fields_of_a_script_begin_where_it_says(folder: Path, old: str, new: str) -> None:
    assert old in WELL_SIGNED
    write(folder, main=WELL_SIGNED.replace(old, new))
    with pytest.raises(ScriptError, match="but its `OWN_FIRST` is for another number"):
        loader.load("main", folder=folder)


def test_an_answer_comes_from_a_function_that_is_there(folder: Path) -> None:
    write(folder, main=WELL_SIGNED.replace("answer_each(redeem)", "answer_each(hold)"))
    with pytest.raises(ScriptError, match=r"main\.lua has no function hold"):
        loader.load("main", folder=folder)


ANSWERS = """return {
    call = { -- of a call
        ok = '', -- well
    },
    refusal = {
        sold_out = '<why>',
    },
    not_kept = {
        sold_out = true,
    },
}
"""


def test_words_are_put_in_from_the_table_of_answers(folder: Path) -> None:
    write(
        folder,
        main="#!lua\n-- @include lib/a\nreturn ANSWER.ok, refusal, MY_ANSWER.ok",
        lib__a="local refusal, kept = ANSWER.sold_out .. ' ' .. 1, not ANSWERS.not_kept[word]",
        lib__answers=ANSWERS,
    )
    assert loader.compose("main", folder).split("\n")[1:] == [
        "local refusal, kept = 'sold_out' .. ' ' .. 1, not { sold_out = true }[word]",
        "return 'ok', refusal, MY_ANSWER.ok",
    ]
    assert loader.answers(folder) == {
        "call": {"ok": ""},
        "refusal": {"sold_out": "<why>"},
        "not_kept": {"sold_out": ""},
    }


@pytest.mark.parametrize("word", ["ANSWER.soldout", "ANSWER.refusal", "ANSWERS.kept", "ANSWERS.ok"])
def test_a_word_that_is_not_in_the_table_is_refused(folder: Path, word: str) -> None:
    write(folder, main=f"#!lua\nreturn {word}", lib__answers=ANSWERS)
    with pytest.raises(ScriptError, match=rf"^main\.lua has {word}, which is not in lib/answers\.lua$"):
        loader.load("main", folder=folder)


def test_keys_bound_out_of_order_are_no_signature(folder: Path) -> None:
    write(folder, main=WELL_SIGNED.replace("KEYS[1], KEYS[2]", "KEYS[1], KEYS[3]"))
    with pytest.raises(ScriptError, match="takes the keys"):
        loader.load("main", folder=folder, keys=("events_key", "version_key"))


def test_other_content_is_another_script(folder: Path) -> None:
    write(folder, main="#!lua\n-- @include lib/a\n", lib__a="return 1")
    first = loader.load("main", folder=folder)
    assert first.sha == hashlib.sha1(first.source, usedforsecurity=False).hexdigest()
    assert first.source == b"#!lua\nreturn 1\n"
    write(folder, lib__a="return 2")
    assert loader.load("main", folder=folder).sha != first.sha


@pytest.mark.parametrize("name", loader.names())
async def test_redis_takes_every_script_and_knows_it_by_the_same_hash(redis: Redis, name: str) -> None:
    script = loader.load(name)
    assert script.source.startswith(b"#!lua")
    assert b"@include" not in script.source
    assert script.keys
    assert script.arguments
    assert await redis.script_load(script.source.decode()) == script.sha


def test_the_scripts_for_luacheck_are_those_that_run(tmp_path: Path) -> None:
    loader.write_composed(tmp_path / "composed")
    written = {file.stem: file.read_bytes() for file in (tmp_path / "composed").iterdir()}
    assert written == {name: loader.load(name).source for name in loader.names()}
    assert {"redeem", "publish"} <= written.keys()
