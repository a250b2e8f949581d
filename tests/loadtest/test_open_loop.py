"""The load generator counts from when an attempt was due: a server that stands still cannot hide it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from loadtest import open_loop
from loadtest.answers import NO_ANSWER, AnswerLog, LoggedAnswer, Writer
from loadtest.codes import Code
from loadtest.open_loop import Load, Step
from tests.support.stalling_server import StallingServer
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

HEAD: Final = b"POST /v1/redemptions HTTP/1.1\r\nHost: test\r\n"
PER_SECOND, QUEUED = 200.0, 40


def codes(count: int) -> list[Code]:
    return [Code(f"CODE-{serial}", 7, serial) for serial in range(count)]


async def made(
    directory: Path, server: StallingServer, seconds: float, *, stalls: bool, response_s: float = 30.0
) -> tuple[list[LoggedAnswer], int]:
    """The answers of one step over one connection, and how many were never sent."""
    step = Step(
        directory=str(directory),
        per_second=PER_SECOND,
        seconds=seconds,
        connections=1,
        response_s=response_s,
    )
    async with server.running():
        with Writer(directory) as writer:
            load = Load(step, HEAD, "run", codes(round(PER_SECOND * seconds)), writer)
            connection = open_loop._Connection(load, server.address)
            await connection.open()
            running = asyncio.create_task(load.run())
            if stalls:
                await wait_until_async(lambda: len(load._due) >= QUEUED)
                server.go.set()
            await running
            connection.close()
            await wait_until_async(lambda: load.under_way == 0)
    answers = AnswerLog(directory)
    return list(answers), answers.unsent


async def test_a_stall_counts_for_all_that_were_due_meanwhile(tmp_path: Path) -> None:
    server = StallingServer()
    answers, unsent = await made(tmp_path, server, 0.4, stalls=True)
    assert (len(answers), unsent) == (80, 0)
    assert {answer.status for answer in answers} == {200}
    assert [answer.serial for answer in answers] == list(range(80))
    every_ms = 1000 / PER_SECOND
    short = [
        number
        for number, answer in enumerate(answers[:QUEUED])
        if answer.ms < (QUEUED - number - 1) * every_ms
    ]
    assert short == []


async def test_unanswered_and_unsent_requests_are_counted_separately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loop, "GRACE_S", 0.1)
    answers, unsent = await made(tmp_path, StallingServer(), 0.1, stalls=False, response_s=0.1)
    assert [(answer.status, answer.expected) for answer in answers] == [(NO_ANSWER, False)]
    assert unsent == 19


async def test_a_connection_that_is_lost_is_made_again_and_its_attempt_has_no_answer(tmp_path: Path) -> None:
    server = StallingServer()
    server.hang_up = True
    server.go.set()
    answers, unsent = await made(tmp_path, server, 0.05, stalls=False)
    assert len(answers) + unsent == 10
    assert {answer.status for answer in answers} == {NO_ANSWER}
    assert len(answers) > 1
    assert len(set(server.bodies)) == len(server.bodies)


async def test_no_code_is_written_down(tmp_path: Path) -> None:
    server = StallingServer()
    server.go.set()
    answers, _ = await made(tmp_path, server, 0.05, stalls=False)
    assert b"CODE-3" in b"".join(server.bodies)
    assert len({answer.key for answer in answers}) == 10
    (written,) = AnswerLog(tmp_path).files
    assert b"CODE" not in await asyncio.to_thread(written.read_bytes)
