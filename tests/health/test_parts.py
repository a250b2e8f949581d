"""Each part is stopped, killed or made to fail: the others see it, although it cannot say so itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.health.parts_watch import PartsWatch
from engine.webhooks import changes
from engine.webhooks.changes import NewWebhook
from tests.support.deployment import Merchant, Process, client_session, engine_in_process, issue, worker_pids
from tests.support.endpoints import receiving
from tests.support.monitoring import NOWHERE, metrics
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.servers import Servers

OWNER = 'redeem_persister_owner{shard="0"}'
LAG = 'redeem_persister_lag_events{shard="0"}'
PATIENCE_S = 2.0
LAG_S = 'redeem_persister_lag_seconds{shard="0"}'


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhooks_allow_private=True, webhook_retry_s="0,1000")


async def shows(merchant: Merchant, **expected: float | None) -> None:
    """Wait until metrics have these values; None: there is no such metric."""

    async def seen() -> bool:
        samples = await metrics(merchant)
        return {name: samples.get(name) for name in expected} == expected

    await wait_until_async(seen)


async def says(merchant: Merchant, part: str, text: str) -> None:
    """Wait until ``/readyz`` says of a part, without being less ready for it."""

    async def said() -> bool:
        status, body = await merchant.call("GET", "/readyz")
        return status == 200 and text in body["parts"][part]

    await wait_until_async(said)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_persister_that_is_stopped_or_gone_is_seen_by_workers(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane) as merchant:
        with Process(plane.settings, "persister") as persister:
            await shows(merchant, **{OWNER: 1, LAG: 0, LAG_S: 0})
            await says(merchant, "persister", "ok")
            with stopped(persister.running.pid):
                for code in codes[:3]:
                    assert (await merchant.redeem(code))[0] == 200
                await shows(merchant, **{OWNER: 0, LAG: 3})
                assert (await metrics(merchant))[LAG_S] > 0
                await says(merchant, "persister", "shard 0: stopped or hanging: no sign of life for")
                await says(merchant, "persister", "stream entries that wait: 3")
            await shows(merchant, **{OWNER: 1, LAG: 0, LAG_S: 0})
            persister.kill()
            await says(merchant, "persister", "does not run: its process ended")
            assert (await metrics(merchant))[OWNER] == 0
            persister.restart()
            await says(merchant, "persister", "ok")
            assert persister.stop() == 0
        await says(merchant, "persister", "does not run")
        assert (await metrics(merchant))[OWNER] == 0


async def test_a_persister_that_fails_again_and_again_is_no_owner(plane: ControlPlane) -> None:
    await issue(plane, 1)
    wrong = replace(plane.settings, redis_url="redis://127.0.0.1:1", persist_backoff_s_max=1)
    async with engine_in_process(plane) as merchant:
        with Process(wrong, "persister"):
            await says(merchant, "persister", "fails: Redis cannot be used")
            await shows(merchant, **{OWNER: 0})


async def test_a_deliverer_that_is_stopped_or_gone_is_seen_and_so_is_what_waits(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 6)
    async with receiving() as receiver, engine_in_process(plane) as merchant:
        webhook = (await changes.create(plane, NewWebhook(url=receiver.url), actor="test")).value.webhook.id
        label = f'{{webhook="{webhook}"}}'
        behind, waits = f"redeem_webhook_lag_events{label}", f"redeem_webhook_lag_seconds{label}"
        failing = f"redeem_webhook_failing{label}"
        with Process(plane.settings, "persister"), Process(plane.settings, "persister.webhooks") as deliverer:
            await shows(merchant, redeem_deliverer_active=1, **{behind: 0, waits: 0, failing: 0})
            with stopped(deliverer.running.pid):
                for code in codes[:5]:
                    assert (await merchant.redeem(code))[0] == 200
                await shows(merchant, redeem_deliverer_active=0, **{behind: 5})
                assert (await metrics(merchant))[waits] > 0
            await shows(merchant, redeem_deliverer_active=1, **{behind: 0, waits: 0})
            receiver.status = 500
            assert (await merchant.redeem(codes[5]))[0] == 200
            await shows(merchant, **{behind: 1, failing: 1})
            await changes.remove(plane, webhook, actor="test")
            await shows(merchant, **{behind: None, waits: None, failing: None})
            deliverer.kill()
            await shows(merchant, redeem_deliverer_active=0)


async def test_a_worker_that_is_stopped_is_seen_by_another(plane: ControlPlane) -> None:
    await issue(plane, 1)
    settings = replace(plane.settings, port=0, workers=2, worker_hung_s=0)
    with Process(settings, "engine.cli", "serve") as serving:
        word, _, url = serving.line().partition(" ")
        assert word == "ready"
        first, second = worker_pids(serving)

        async def seen(*, workers: float, hung: float, text: str) -> bool:
            """Ask on new connections, and give up on those that the stopped one got."""
            try:
                async with client_session() as session, asyncio.timeout(PATIENCE_S):
                    merchant = Merchant(session, url, "")
                    samples = await metrics(merchant)
                    counted = (samples["redeem_workers"], samples["redeem_workers_hung"])
                    _, body = await merchant.call("GET", "/readyz")
                    return counted == (workers, hung) and text in body["parts"]["workers"]
            except TimeoutError:
                return False

        await wait_until_async(lambda: seen(workers=2, hung=0, text="ok"))
        with stopped(first):
            await wait_until_async(lambda: seen(workers=1, hung=1, text="no sign of life"))
        await wait_until_async(lambda: seen(workers=2, hung=0, text="ok"))
        assert second in worker_pids(serving)
        assert serving.stop() == 0


async def test_while_postgresql_is_away_the_lag_is_that_of_its_last_answer(
    plane: ControlPlane, servers: Servers
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, database_timeout_s=3600) as merchant:
        await shows(merchant, redeem_postgresql_up=1, redeem_redis_up=1, **{LAG: 0})
        servers.postgres.pause()
        try:
            for code in codes:
                assert (await merchant.redeem(code))[0] == 200
            missing = 'redeem_ledger_missing_events{shard="0"}'
            await shows(merchant, redeem_postgresql_up=0, **{LAG: 3, OWNER: None, missing: None})
            await says(merchant, "persister", "PostgreSQL does not answer")
        finally:
            servers.postgres.resume()
        await shows(merchant, redeem_postgresql_up=1, **{LAG: 3, OWNER: 0, missing: 0})


async def test_without_servers_there_is_a_report_all_the_same(plane: ControlPlane) -> None:
    async with engine_in_process(plane, database_url=NOWHERE) as merchant:
        await shows(merchant, redeem_postgresql_up=0, redeem_redis_up=1, **{LAG: None, OWNER: None})


async def test_it_is_asked_once_a_second_however_many_look(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, looks = PartsWatch(plane.database, plane.redis, lambda: 1), 0
    look = watch._look

    async def count() -> Any:  # noqa: ANN401 - a report
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(watch, "_look", count)
    monkeypatch.setattr("engine.health.parts_watch.INTERVAL_S", 1000.0)
    reports = [await watch.report() for _ in range(5)]
    assert (looks, len({id(report) for report in reports})) == (1, 1)
