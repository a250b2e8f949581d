"""The capacity measurement on a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from engine.control import api_keys
from loadtest import open_loop
from loadtest.__main__ import SCOPES
from loadtest.answers import AnswerLog, Writer
from loadtest.api import Api
from loadtest.codes import Code
from loadtest.machine import engine_processes
from loadtest.open_loop import Load, Step
from loadtest.scenarios import prepare
from loadtest.verifier import verify
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from engine.control.change import ControlPlane
    from tests.support.load_tests import LoadTests

ATTEMPTS: Final = 40


@contextlib.contextmanager
def stopped_workers(url: str) -> Iterator[None]:
    """Stop the workers of an engine for a while."""
    workers = engine_processes(url)["front end"]
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


async def test_attempts_under_way_when_a_step_ends_count_by_their_answer(
    load: LoadTests, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loop, "GRACE_S", 0.1)
    key = (await api_keys.create(plane, "load test", SCOPES)).value.key
    step = Step(
        directory=str(tmp_path), per_second=2 * ATTEMPTS, seconds=0.5, connections=ATTEMPTS, response_s=30.0
    )
    with Api(load.url, key) as api:
        plan = await asyncio.to_thread(prepare, api, "run", "unique-codes", peak_per_s=ATTEMPTS, seconds=1)
        batch, texts = await asyncio.to_thread(api.mint, plan.campaign, ATTEMPTS)
        codes = [Code(text, batch, serial) for serial, text in enumerate(texts)]
        address = urlsplit(load.url)
        head = (
            f"POST /v1/redemptions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\n"
        ).encode()
        with Writer(tmp_path) as writer:
            attempts = Load(step, head, plan.run, codes, writer)
            place = (str(address.hostname), address.port or 0)
            connections = [open_loop._Connection(attempts, place) for _ in codes]
            for connection in connections:
                await connection.open()
            running = asyncio.create_task(attempts.run())
            await wait_until_async(lambda: attempts.late_ms)
            with stopped_workers(load.url):
                await wait_until_async(lambda: not attempts.sending)
                assert attempts.under_way
                assert not running.done()
            await running
            for connection in connections:
                connection.close()
        answers = list(AnswerLog(tmp_path))
        assert [answer.status for answer in answers] == [200] * ATTEMPTS
        found = await asyncio.to_thread(verify, api, plan, tmp_path)
    assert (found.acknowledged, found.events, dict(found.counts)) == (ATTEMPTS, ATTEMPTS, {})
