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
from loadtest.capacity import Capacity
from loadtest.codes import Code
from loadtest.machine import engine_processes
from loadtest.open_loop import Load, Step
from loadtest.scenarios import prepare, read_plan
from loadtest.steps import CONFIRMATION, SEARCH, SHARE, SHARES, Limits, Report
from loadtest.verifier import verify
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    from engine.control.change import ControlPlane
    from tests.support.load_tests import LoadTests

ATTEMPTS: Final = 40
NO_LIMIT: Final = Limits(p99_ms=60_000, lag_s=60)
"""Nothing that depends on how fast this machine is: a step breaks if the campaign is paused."""


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


async def measured(
    load: LoadTests, plane: ControlPlane, directory: Path, most: float, pause: Callable[[list[str]], bool]
) -> Report:
    """Measure from 20/s to at most ``most``. The campaign is paused while ``pause`` of the lines is true."""
    key = (await api_keys.create(plane, "load test", SCOPES)).value.key
    lines: list[str] = []
    api = Api(load.url, key)

    def say(line: str) -> None:
        lines.append(line.strip())
        if "comparing" not in line:
            state = "paused" if pause(lines) else "active"
            api.call("PATCH", f"/v1/campaigns/{read_plan(directory).campaign}", {"state": state})

    capacity = Capacity(
        load.url,
        key,
        directory,
        limits=NO_LIMIT,
        step_s=1.0,
        confirmations=2,
        confirmation_s=1.0,
        connections=4,
        generators=1,
        say=say,
    )
    with api:
        report = await asyncio.to_thread(capacity.measure, "run", first=20, most=most)
    assert dict(report.findings.counts) == {}
    assert report.findings.acknowledged == report.findings.events
    return report


def after_search(report: Report) -> list[tuple[float, str, bool]]:
    """Rate, purpose and whether it held, of each step that is not of the search."""
    return [
        (step.per_second, step.purpose, not step.broken) for step in report.steps if step.purpose != SEARCH
    ]


async def test_a_rate_that_breaks_when_it_is_repeated_is_not_claimed(
    load: LoadTests, plane: ControlPlane, tmp_path: Path
) -> None:
    report = await measured(load, plane, tmp_path, 30, lambda lines: lines[-1] == "confirming 30/s")
    assert after_search(report) == [
        (30, CONFIRMATION, False),
        *[(27, CONFIRMATION, True)] * 2,
        *((27 * share, SHARE, True) for share in SHARES),
    ]
    assert report.found is not None
    assert report.found.per_second == 30
    assert "takes 27 redemptions/s" in report.headline
    assert "confirmed by 2 runs of 1 s; the first thing to give" in report.headline


async def test_a_share_that_breaks_once_has_the_rate_confirmed_again(
    load: LoadTests, plane: ControlPlane, tmp_path: Path
) -> None:
    report = await measured(load, plane, tmp_path, 20, lambda lines: lines[-3:-2] == ["confirming 20/s"])
    assert after_search(report) == [
        *[(20, CONFIRMATION, True)] * 2,
        *((5, SHARE, held) for held in (False, True)),
        *((rate, SHARE, True) for rate in (10, 15)),
        *[(20, CONFIRMATION, True)] * 2,
    ]
    assert "takes 20 redemptions/s" in report.headline
    assert "5/s (100.0% errors, most of them campaign_inactive" in report.evidence


async def test_a_measurement_that_confirms_no_rate_says_so(
    load: LoadTests, plane: ControlPlane, tmp_path: Path
) -> None:
    report = await measured(load, plane, tmp_path, 20, lambda lines: "confirming 20/s" in lines)
    assert after_search(report) == [(20, CONFIRMATION, False)]
    assert report.document()["capacity"] is None
    assert report.headline.startswith("No rate was confirmed: 20 redemptions/s held in the search, but")
