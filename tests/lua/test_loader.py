from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lua import loader
from lua.loader import ScriptError

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

WELL_SIGNED = """#!lua
local events_key, version_key, shard, limit, columns, code, user, amount
each_call(function()
    events_key, version_key = KEYS[1], KEYS[2]
    shard, limit = ARGV[1], ARGV[2]
    columns = cmsgpack.unpack(ARGV[3])
    code, user,
        amount = unpack(columns)
end)
local OWN_FIRST = 4 -- of this script

local function refuse()
    return 'no'
end

local function redeem(order, actor)
    return order .. actor
end

local function main()
    return answer_each(redeem)
end
"""


MAIN = "local function main()\nend"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    write(tmp_path, lib__call="-- a call\n")
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Files by name; two underscores are a slash."""
    for name, text in files.items():
        (folder / f"{name.replace('__', '/')}.lua").write_text(text)


def test_includes_come_depth_first_and_once_each(folder: Path) -> None:
    write(
        folder,
        main=f"#!lua\n-- @include lib/a\n-- @include lib/b\n-- @include lib/c\n{MAIN}",
        lib__a="-- @include lib/c\nlocal a",
        lib__b="-- @include lib/a\n-- @include lib/c\nlocal b",
        lib__c="local c",
    )
    flags, text = loader.compose("main", folder)
    assert flags == ()
    assert [line for line in text.split("\n") if line] == [
        *("-- a call", "local c", "local a", "local b"),
        *MAIN.split("\n"),
    ]


def test_what_only_looks_like_an_include_stays(folder: Path) -> None:
    text = f"  -- @include lib/a\n-- @include\n--@include lib/a\n-- see @include lib/a\n{MAIN}"
    write(folder, main=f"#!lua flags=no-writes,allow-oom\n{text}")
    assert loader.compose("main", folder) == (("no-writes", "allow-oom"), f"-- a call\n{text}")


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


def test_a_script_without_main_is_refused(folder: Path) -> None:
    write(folder, main="#!lua\nlocal function other()\nend\n")
    with pytest.raises(ScriptError, match=r"^main\.lua has no function main$"):
        loader.load("main", folder=folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("OWN_FIRST = 4", "OWN_FIRST = 5"),
        ("OWN_FIRST = 4", "OWN_FIRST = 3"),
        ("local OWN_FIRST = 4 -- of this script\n", ""),
        ("user,\n        amount =", "user ="),
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
        main=f"#!lua\n-- @include lib/a\nlocal answer = {{ ANSWER.ok, refusal, MY_ANSWER.ok }}\n{MAIN}",
        lib__a="local refusal, kept = ANSWER.sold_out .. ' ' .. 1, not ANSWERS.not_kept[word]",
        lib__answers=ANSWERS,
    )
    _, text = loader.compose("main", folder)
    assert "local refusal, kept = 'sold_out' .. ' ' .. 1, not { sold_out = true }[word]\n" in text
    assert "local answer = { 'ok', refusal, MY_ANSWER.ok }\n" in text
    assert loader.answers(folder) == {
        "call": {"ok": ""},
        "refusal": {"sold_out": "<why>"},
        "not_kept": {"sold_out": ""},
    }


@pytest.mark.parametrize("word", ["ANSWER.soldout", "ANSWER.refusal", "ANSWERS.kept", "ANSWERS.ok"])
def test_a_word_that_is_not_in_the_table_is_refused(folder: Path, word: str) -> None:
    write(folder, main=f"#!lua\nlocal word = {word}\n{MAIN}", lib__answers=ANSWERS)
    with pytest.raises(ScriptError, match=rf"^main\.lua has {word}, which is not in lib/answers\.lua$"):
        loader.load("main", folder=folder)


def test_keys_bound_out_of_order_are_no_signature(folder: Path) -> None:
    write(folder, main=WELL_SIGNED.replace("KEYS[1], KEYS[2]", "KEYS[1], KEYS[3]"))
    with pytest.raises(ScriptError, match="takes the keys"):
        loader.load("main", folder=folder, keys=("events_key", "version_key"))


def test_other_content_is_another_script(folder: Path) -> None:
    write(folder, main=f"#!lua\n-- @include lib/a\n{MAIN}", lib__a="local a = 1")
    scripts = [loader.load("main", folder=folder)]
    write(folder, lib__a="local a = 2")
    scripts.append(loader.load("main", folder=folder))
    write(folder, main=f"#!lua flags=no-writes\n-- @include lib/a\n{MAIN}")
    scripts.append(loader.load("main", folder=folder))
    assert len({script.library for script in scripts}) == len(scripts)
    assert all(script.library.startswith(loader.prefix("main")) for script in scripts)
    assert loader.load("main", folder=folder) == scripts[-1]


@pytest.mark.parametrize("name", loader.names())
async def test_redis_takes_every_script_under_its_name(redis: Redis, name: str) -> None:
    script = loader.load(name)
    assert b"@include" not in script.source
    assert script.keys
    assert script.arguments
    await redis.function_flush()
    assert await redis.function_load(script.source.decode()) == script.library.encode()


def test_the_scripts_for_luacheck_are_those_that_run(tmp_path: Path) -> None:
    loader.write_composed(tmp_path / "composed")
    written = {file.stem: file.read_bytes() for file in (tmp_path / "composed").iterdir()}
    assert written == {name: loader.load(name).source for name in loader.names()}
    assert {"redeem", "publish"} <= written.keys()
