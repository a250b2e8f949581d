"""``redeem events tail``, beside an engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis  # noqa: TC002 - the fixture's type is read

from tests.support.cli import COMMAND, Cli, environment
from tests.support.deployment import engine_in_process
from tests.support.feed import whole_feed
from tests.support.records import persist
from tests.support.streams import Stream, persisting, values
from tests.support.waiting import TIMEOUT_S

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

TAIL: Final = ("events", "tail")


def events_in(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


async def tail(cli: Cli, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The events of a command that ends by itself, and the cursor it gives."""
    status, out, err = await cli(*TAIL, *arguments)
    assert status == 0, err
    word, _, cursor = err.strip().partition(" ")
    assert word == "next"
    return events_in(out), cursor


async def test_it_shows_what_the_feed_shows_in_pieces_that_go_on(
    cli: Cli, plane: ControlPlane, redis: Redis
) -> None:
    stream = Stream(redis)
    await stream.add(1200)
    await stream.add_raw(dict(values(1200, type="voided", campaign="cmp_2")))
    await persist(plane.settings)
    async with engine_in_process(plane, scopes=("events",)) as merchant:
        items, _ = await whole_feed(merchant)
    shown, cursor = await tail(cli, "--no-follow")
    assert shown == items
    assert len(items) == 1201
    assert await tail(cli, "--no-follow", "--after", cursor) == ([], cursor)
    first, cursor = await tail(cli, "--after", "beginning", "--limit", "1100")
    assert first == items[:1100]
    assert (await tail(cli, "--limit", "101", "--after", cursor))[0] == items[1100:]
    for only in (("--type", "voided"), ("--campaign", "cmp_2"), ("--type", "voided", "--type", "held")):
        assert (await tail(cli, "--no-follow", *only))[0] == items[1200:]


async def test_it_follows_until_it_is_interrupted(cli: Cli, plane: ControlPlane, redis: Redis) -> None:
    stream = Stream(redis)
    running = await asyncio.create_subprocess_exec(
        *COMMAND,
        *TAIL,
        *("--after", "beginning"),
        cwd=cli.settings.data_dir,
        env=environment(cli.settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert running.stdout
        async with asyncio.timeout(TIMEOUT_S), persisting(plane.settings):
            for number in range(3):
                await stream.add(1)
                event = json.loads(await running.stdout.readline())
                assert (event["seq"], event["serial"]) == (number + 1, number)
            running.send_signal(signal.SIGINT)
            out, err = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
    assert (running.returncode, out) == (0, b"")
    cursor = err.decode().removeprefix("next ").strip()
    assert await tail(cli, "--no-follow", "--after", cursor) == ([], cursor)


async def test_it_begins_at_the_end(cli: Cli, plane: ControlPlane, redis: Redis) -> None:
    stream = Stream(redis)
    await stream.add(3)
    await persist(plane.settings)
    assert [event["seq"] for event in (await tail(cli, "--no-follow"))[0]] == [1, 2, 3]
    nothing, cursor = await tail(cli, "--no-follow", "--after", "end")
    assert nothing == []
    following = asyncio.create_task(tail(cli, "--limit", "1"))
    async with persisting(plane.settings):
        while not following.done():  # when it has begun is not known: it sees one of these
            await stream.add(1)
            await asyncio.wait({following}, timeout=0.2)
    ((first, *_), _) = following.result()
    assert first["seq"] > 3
    assert (await tail(cli, "--no-follow", "--after", cursor, "--limit", "1"))[0][0]["seq"] == 4


async def test_a_reader_who_has_had_enough_ends_it(cli: Cli, plane: ControlPlane, redis: Redis) -> None:
    await Stream(redis).add(5000)
    await persist(plane.settings)
    command = " ".join(("exec", *COMMAND, *TAIL, "--after beginning", "| head -n 2"))
    shell = await asyncio.create_subprocess_shell(
        f"set -o pipefail; {command.removeprefix('exec ')}",
        executable="/bin/bash",
        cwd=cli.settings.data_dir,
        env=environment(cli.settings, PATH=os.environ["PATH"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await shell.communicate()
    assert (shell.returncode, err) == (0, b"")
    assert [event["seq"] for event in events_in(out.decode())] == [1, 2]


async def test_what_is_no_cursor_is_refused_in_one_line(cli: Cli) -> None:
    assert "not a cursor" in await cli.refused(*TAIL, "--after", "0-1-1")
    status, _, _ = await cli(*TAIL, "--type", "sold")
    assert status == 2
