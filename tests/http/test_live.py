"""The dashboard's live numbers: of all workers, without a gap after a reload, for those who may read all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import api_keys
from engine.pages.live import HISTORY_S
from engine.store.configuration import SCOPES
from tests.support.deployment import (
    Merchant,
    Process,
    client_session,
    engine_in_process,
    issue,
    wait_until_ready,
    worker_pids,
)
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientSession

    from engine.control.change import ControlPlane
    from engine.settings import Settings

SECONDS_MAX: Final = 60.0


class Reader:
    """Reads a stream, event by event."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._lines = lines

    async def event(self) -> tuple[str, dict[str, Any]]:
        """Return the next event with its data."""
        name = ""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                line = (await anext(self._lines)).decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    return name, json.loads(line.removeprefix("data: "))

    async def history(self) -> dict[str, Any]:
        name, data = await self.event()
        assert name == "history"
        return data

    async def second(self) -> dict[str, Any]:
        name, data = await self.event()
        assert name == "second"
        return data


@contextlib.asynccontextmanager
async def reading(session: ClientSession, url: str, key: str) -> AsyncIterator[Reader]:
    headers = {"Authorization": f"Bearer {key}"}
    async with session.get(f"{url}/admin/live", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield Reader(aiter(response.content))


@pytest.fixture
async def merchant(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        yield merchant


async def test_a_second_has_what_was_redeemed_and_refused_and_what_is_left(
    plane: ControlPlane, merchant: Merchant
) -> None:
    campaign, codes = await issue(plane, 10, stock=4)
    async with reading(merchant.session, merchant.url, merchant.key) as reader:
        history = await reader.history()
        assert history["last"] - history["first"] + 1 == len(history["redeemed"]) == HISTORY_S
        answers = [(await merchant.redeem(code))[0] for code in codes[:6]]
        assert sorted(answers) == [200] * 4 + [409] * 2
        redeemed, refused, quantiles = 0, 0, []
        row: dict[str, Any] = {}
        while (redeemed, refused) != (4, 2):
            second = await reader.second()
            if second["redeemed"] is None:  # the worker had not begun to count
                continue
            redeemed += second["redeemed"]
            refused += second["refused"].get("sold_out", 0)
            quantiles += [second["p50_ms"], second["p99_ms"]] if second["redeemed"] else []
            row = second["campaigns"][0] if second["campaigns"] else row
            assert second["workers"] == 1
        assert all(number > 0 for number in quantiles)
        assert (row["id"], row["name"], row["used"], row["issued"]) == (campaign, "Test", 4, 10)
        assert (row["stock"], row["stock_left"]) == (4, 0)
        assert row["rate"] == pytest.approx(0.4)


async def test_the_seconds_follow_each_other_and_a_reload_has_those_before(merchant: Merchant) -> None:
    async with reading(merchant.session, merchant.url, merchant.key) as reader:
        last = (await reader.history())["last"]
        seconds = [(await reader.second())["second"] for _ in range(3)]
        assert seconds == [last + 1, last + 2, last + 3]
    async with reading(merchant.session, merchant.url, merchant.key) as reader:
        history = await reader.history()
        assert history["last"] >= last + 3
        of = dict(zip(range(history["first"], history["last"] + 1), history["redeemed"], strict=True))
        assert [of[second] for second in seconds] == [0, 0, 0]
        assert of[history["first"]] is None  # nobody counted then
        assert (await reader.second())["second"] == history["last"] + 1


async def test_readers_share_one_computation_which_ends_after_the_last(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pages.live.LINGER_S", 0.0)
    ours = [task for task in asyncio.all_tasks() if "LiveView._run" in repr(task)]
    assert not ours

    def computing() -> int:
        return sum("LiveView._run" in repr(task) for task in asyncio.all_tasks() if not task.done())

    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(reading(merchant.session, merchant.url, merchant.key))
            for _ in range(5)
        ]
        for reader in readers:
            await reader.history()
        told = await asyncio.gather(*(reader.second() for reader in readers))
        assert len({json.dumps(one["health"]) for one in told}) == 1
        assert computing() == 1
    await wait_until_async(lambda: computing() == 0)


async def test_a_revoked_key_reads_no_more(plane: ControlPlane, merchant: Merchant) -> None:
    viewer = (await api_keys.create(plane, "viewer", ["read"])).value
    async with reading(merchant.session, merchant.url, viewer.key) as reader:
        await reader.history()
        await reader.second()
        await api_keys.revoke(plane, viewer.api_key.id)
        with contextlib.suppress(StopAsyncIteration):
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    await reader.second()


async def test_a_session_that_has_expired_reads_no_more(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.http.live_calls._LOOK_EVENTS", 1)
    async with engine_in_process(plane, scopes=SCOPES, session_s=2) as merchant, client_session() as browser:
        browser.headers["Sec-Fetch-Site"] = "same-origin"
        async with browser.post(f"{merchant.url}/admin/session", json={"key": merchant.key}) as signed_in:
            cookie = signed_in.cookies["redeem_session"].value
        headers = {"Cookie": f"redeem_session={cookie}"}
        async with browser.get(f"{merchant.url}/admin/live", headers=headers) as response:
            assert response.status == 200
            async with asyncio.timeout(SECONDS_MAX):
                await response.read()


async def test_who_may_not_read_everything_reads_nothing(plane: ControlPlane, merchant: Merchant) -> None:
    campaign, _ = await issue(plane, 1)
    limited = (await api_keys.create(plane, "partner", ["read"], campaigns=[campaign])).value.key
    redeems = (await api_keys.create(plane, "shop", ["redeem"])).value.key
    for key, status in ((limited, 403), (redeems, 403), ("rk_x", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        async with merchant.session.get(f"{merchant.url}/admin/live", headers=headers) as response:
            assert response.status == status
            assert response.content_type == "application/problem+json"


async def test_health_says_that_the_ledger_is_not_written(merchant: Merchant) -> None:
    """No persister runs here."""
    async with reading(merchant.session, merchant.url, merchant.key) as reader:
        await reader.history()
        health = (await reader.second())["health"]
    assert health["level"] == "warning"
    assert any(word.startswith("Persister: shard 0") for word in health["words"])


async def test_more_readers_than_the_limit_are_refused_and_a_stop_ends_the_others(
    plane: ControlPlane,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        merchant = await stack.enter_async_context(
            engine_in_process(plane, scopes=SCOPES, live_readers_max=1)
        )
        session = await stack.enter_async_context(client_session())
        reader = await stack.enter_async_context(reading(session, merchant.url, merchant.key))
        await reader.history()
        assert (await merchant.call("GET", "/admin/live"))[0] == 503
        await reader.second()


async def test_numbers_of_all_workers_go_on_after_one_is_killed(
    settings: Settings, plane: ControlPlane
) -> None:
    """The history of the next worker has the seconds before."""
    _, codes = await issue(plane, 40)
    key = (await api_keys.create(plane, "merchant", SCOPES)).value.key
    with Process(replace(settings, port=0, workers=2), "engine.cli", "serve") as front_end:
        url = (await asyncio.to_thread(front_end.line)).removeprefix("ready ")
        async with client_session() as session:
            merchant = Merchant(session, url, key)
            redeemed = 0

            async def redeem(some: list[str]) -> None:
                async with client_session() as other:  # connections spread over the workers
                    shop = Merchant(other, url, key)
                    answers = await asyncio.gather(*(shop.redeem(code) for code in some))
                assert [status for status, _ in answers] == [200] * len(some)

            async with reading(session, url, key) as reader:
                await reader.history()
                await redeem(codes[:20])
                workers = 0
                while redeemed < 20:
                    second = await reader.second()
                    redeemed += second["redeemed"]
                    workers = second["workers"]
                assert (redeemed, workers) == (20, 2)
                for worker in worker_pids(front_end):
                    os.kill(worker, signal.SIGKILL)
                with contextlib.suppress(Exception):
                    while True:
                        await reader.second()
            await wait_until_ready(merchant)
            async with reading(session, url, key) as reader:
                history = await reader.history()
                assert sum(number or 0 for number in history["redeemed"]) == 20
                await redeem(codes[20:])
                while redeemed < 40:
                    redeemed += (await reader.second())["redeemed"] or 0
        front_end.stop()
