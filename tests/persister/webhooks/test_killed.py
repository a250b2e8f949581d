"""The deliverer is killed at every step: nothing is lost, and what comes again is known by its webhook-id."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from engine.ledger.feed import BEGINNING
from engine.webhooks import changes, endpoints
from engine.webhooks.changes import NewWebhook
from tests.support.deployment import Process
from tests.support.endpoints import Events, delivering, receiving
from tests.support.locks import holding, until_waits_for_lock
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.endpoints import Received
    from tests.support.streams import Ledger

DELIVERER = "persister.webhooks"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhooks_allow_private=True, webhook_retry_s="0.05,0.05", webhook_poll_ms=10)


@pytest.fixture
def events(ledger: Ledger) -> Events:
    return Events(ledger.connection)


async def register(plane: ControlPlane, url: str, **fields: Any) -> str:  # noqa: ANN401 - by name
    new = NewWebhook(url=url, after="beginning", **fields)
    return (await changes.create(plane, new, actor="test")).value.webhook.id


@pytest.mark.parametrize("batch_max", [None, 10])
async def test_killed_between_send_and_commit_it_sends_the_same_again(
    plane: ControlPlane, settings: Settings, events: Events, ledger: Ledger, batch_max: int | None
) -> None:
    ids = await events.add(3)
    async with receiving() as receiver:

        async def hold(_: Received) -> web.StreamResponse:
            """By now all is written that is written before the call."""
            await locks.enter_async_context(
                holding(settings.database_url, "SELECT 1 FROM webhook_progress FOR UPDATE")
            )
            receiver.answer = None
            return web.Response()

        receiver.answer = hold
        webhook_id = await register(plane, receiver.url, batch_max=batch_max)
        async with contextlib.AsyncExitStack() as locks:
            with Process(settings, DELIVERER) as deliverer:
                await receiver.has(1)
                await until_waits_for_lock(
                    ledger.connection, "%UPDATE webhook_progress%", application="redeem-deliverer%"
                )
                deliverer.kill()
        assert (await endpoints.get(plane, webhook_id)).cursor == str(BEGINNING)
        await events.add(1)
        with Process(settings, DELIVERER):
            await receiver.has(3 if batch_max else 5)
    assert receiver.calls[0].id == receiver.calls[1].id
    assert receiver.calls[0].body == receiver.calls[1].body
    if batch_max is None:
        assert receiver.ids[:4] == [ids[0], *ids]


async def test_killed_at_random_moments_nothing_is_lost_and_the_order_is_kept(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    ids: list[str] = []
    async with receiving() as receiver:
        webhook_id = await register(plane, receiver.url)
        kills = 5
        for _ in range(kills):
            ids += await events.add(60)
            with Process(settings, DELIVERER) as deliverer:
                await receiver.has(len(receiver.calls) + chance.randint(1, 50))
                deliverer.kill()
        with Process(settings, DELIVERER) as deliverer:
            await receiver.has(len(ids))

            async def through() -> bool:
                return (await endpoints.get(plane, webhook_id)).cursor == str(BEGINNING.moved(0, len(ids)))

            await wait_until_async(through)
            assert deliverer.stop() == 0
    assert list(dict.fromkeys(receiver.ids)) == ids
    assert len(receiver.ids) <= len(ids) + kills


async def test_one_delivers_and_another_stands_by(
    plane: ControlPlane, settings: Settings, events: Events, ledger: Ledger
) -> None:
    async def stands_by() -> bool:
        found = await ledger.connection.fetch(
            """SELECT query LIKE '%pg_try_advisory_lock%' AS waits FROM pg_stat_activity
               WHERE application_name = 'redeem-deliverer' AND datname = current_database()"""
        )
        return sorted(row["waits"] for row in found) == [False, True]

    async with receiving() as receiver:
        await register(plane, receiver.url)
        with Process(settings, DELIVERER) as first:
            ids = await events.add(5)
            await receiver.has(5)
            with Process(settings, DELIVERER) as second:
                await wait_until_async(stands_by)
                for count in range(6, 26):
                    ids += await events.add(1)
                    await receiver.has(count)
                assert receiver.ids == ids
                first.kill()
                more = await events.add(5)
                await wait_until_async(lambda: receiver.ids[-1] == more[-1])
                assert second.stop() == 0


async def test_on_sigterm_the_call_in_progress_ends_first(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async def stop_it(_: Received) -> web.StreamResponse:
        stop.set()
        return web.Response()

    ids = await events.add(3)
    async with receiving() as receiver:
        receiver.answer = stop_it
        webhook_id = await register(plane, receiver.url)
        async with delivering(settings) as stop:
            await receiver.has(1)
            await stop.wait()
    assert receiver.ids == ids[:1]
    assert (await endpoints.get(plane, webhook_id)).cursor == str(BEGINNING.moved(0, 1))


async def test_it_waits_for_the_database_and_goes_on(
    plane: ControlPlane, settings: Settings, events: Events, ledger: Ledger
) -> None:
    async with receiving() as receiver, delivering(settings):
        await register(plane, receiver.url)
        ids = await events.add(2)
        await receiver.has(2)
        await ledger.connection.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name LIKE 'redeem-deliverer%' AND datname = current_database()"""
        )
        ids += await events.add(2)
        await wait_until_async(lambda: receiver.calls[-1].id == ids[-1])
        assert list(dict.fromkeys(receiver.ids)) == ids


def test_a_retry_schedule_that_is_none_is_named_and_ends_it(settings: Settings) -> None:
    with Process(replace(settings, webhook_retry_s="5,soon"), DELIVERER) as deliverer:
        assert deliverer.running.wait(60) == 2
