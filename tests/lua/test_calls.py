"""What a call of a script has left behind does not reach the next one: the library lives on between them."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Final

import pytest

from engine.store.scripts import libraries, run_script, superseded
from lua import loader
from tests.support.scripts import Attempt

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.support.scripts import Shard

ONCE: Final = {"KEYS", "ARGV", "at_beginning"}  # lib/call itself
THE_SAME: Final = {"small_texts"}  # whichever call has made them; their number is bounded
TOP: Final = re.compile(r"^local (?!function)([\w, ]+?)(?:,\n +([\w, ]+))?(?: = (.*))?$", re.MULTILINE)
BEGINNING: Final = re.compile(
    r"^each_call\(function\(\)\n(.*?)^end\)$|^each_call\((\w+)\)$", re.MULTILINE | re.DOTALL
)


FILES: Final = {
    f"{folder.name}/{file.name}": re.sub(r" --.*", "", file.read_text(encoding="utf-8"))
    for folder in (resources.files("lua"), resources.files("lua") / "lib")
    for file in folder.iterdir()
    if file.name.endswith(".lua") and file.name != "answers.lua"
}


def variables(text: str) -> dict[str, str | None]:
    """The variables at the top of a file, with what they begin with."""
    found = {}
    for match in TOP.finditer(text):
        for name in f"{match[1]}, {match[2] or ''}".replace(" ", "").strip(",").split(","):
            found[name] = match[3]
    return found


def set_by_each_call(text: str) -> set[str]:
    """The variables that the functions which begin a call assign."""
    assigned: set[str] = set()
    for body, name in BEGINNING.findall(text):
        begins = body or text[text.index(f"local function {name}()") :].partition("\nend")[0]
        for names in re.findall(r"^    (\w[\w,\s]*?) = ", begins, re.MULTILINE):
            assigned.update(names.replace(",", " ").split())
    return assigned


def kept_after_a_call(text: str) -> set[str]:
    """The variables at the top of a file that calls change, and that no call begins with."""
    changed = {
        variable
        for variable, value in variables(text).items()
        if value in {None, "{}"}
        or re.search(rf"^ +[\w, ]*\b{variable}(?:\[.*?\]|\.\w+)*(?:, [\w, ]+)?\s=[^=]", text, re.MULTILINE)
        or f"table.insert({variable}," in text
    }
    return changed - set_by_each_call(text) - ONCE - THE_SAME


def test_every_file_of_lib_is_in_a_script() -> None:
    included = set(re.findall(r"^-- @include lib/(\w+)$", "".join(FILES.values()), re.MULTILINE))
    files = {file.name.removesuffix(".lua") for file in (resources.files("lua") / "lib").iterdir()}
    assert files - {"call", "answers"} == included  # the loader reads these two by itself


@pytest.mark.parametrize("name", FILES)
def test_what_belongs_to_a_call_is_set_by_each_call(name: str) -> None:
    assert kept_after_a_call(FILES[name]) == set()


@pytest.mark.parametrize(
    "text",
    [
        "local t\nlocal function f()\n    t = 1\nend\n",
        "local t = {}\nlocal function f()\n    t[1][2] = 1\nend\n",
        "local t = { n = 0 }\nlocal function f()\n    t.n = t.n + 1\nend\n",
        "local t = { 0 }\nlocal function f()\n    table.insert(t, 1)\nend\n",
        "local s, t\neach_call(function()\n    f(t)\n    s = 1\nend)\n",
        "local s, t\nlocal function begin()\n    s = t\nend\neach_call(begin)\n",
    ],
)
def test_what_a_call_leaves_behind_is_found(text: str) -> None:
    assert kept_after_a_call(text) == {"t"}


async def test_a_call_knows_nothing_of_the_one_before(shard: Shard) -> None:
    await shard.add_campaign(per_user_limit=5, stock=3)
    first, second = (Attempt(offset=offset, counted=True, key=f"k{offset}") for offset in (1, 2))
    answers = [await shard.call(first), await shard.call(second), await shard.call(first)]
    words = [answer[1].decode().split(" ")[0] for answer in answers]
    assert words == ["redeemed", "redeemed", "replayed"]
    assert await shard.get_state(first) == await shard.get_state(second) == 1


async def test_a_call_that_fails_leaves_the_next_one_alone(redis: Redis, shard: Shard) -> None:
    await shard.add_campaign()
    broken, whole = Attempt(offset=1, campaign="cmp_2"), Attempt(offset=2)
    await redis.set(shard.campaign("cmp_2"), "not a hash")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await shard.call(whole, broken)
    assert await shard.get_state(whole) == 0
    assert (await shard.call(whole))[1].startswith(b"redeemed ")
    await redis.delete(shard.campaign("cmp_2"))


async def test_a_call_loads_its_script_and_leaves_other_versions_alone(redis: Redis) -> None:
    ours, alike = loader.load("redeem"), loader.load("redeem_alike")
    other = ours.library[:-1] + ("0" if ours.library[-1] != "0" else "1")
    await redis.function_flush()
    for library, source in ((other, ours.source.decode().replace(ours.library, other)), ("mine", "")):
        text = source or "#!lua name=mine\nredis.register_function('mine', function() return 1 end)"
        assert await redis.function_load(text) == library.encode()
    await redis.function_load(alike.source.decode())
    known = libraries(await redis.function_list())
    assert known == {other, alike.library, "mine"}
    assert superseded(ours, known) == [other]
    assert superseded(alike, known) == []
    names = ["{s0}:events", "{s0}:version", "{s0}:holds", "{s0}:holds:expiry", "{s0}:held"]
    assert await run_script(redis, ours, names, ["0", "1", "1", "86400", b"\x90"]) == [b"unpublished"]
    assert libraries(await redis.function_list()) == known | {ours.library}
    await redis.function_delete("mine")
