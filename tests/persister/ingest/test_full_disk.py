"""A full disk, under either server: nothing acknowledged is lost, and it goes on when there is room."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import engine_in_process, issue
from tests.support.servers import own_valkey
from tests.support.streams import Ledger, Stream, count_events, persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.servers import ValkeyProcess

_FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION full_disk();
"""


async def test_postgresql_whose_disk_is_full_is_waited_out_and_no_event_is_set_aside(
    settings: Settings, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.connection.execute(_FULL)
    await stream.add(20)
    async with persisting(settings):
        await wait_until_async(lambda: "PostgreSQL cannot be used" in caplog.text)
        assert await ledger.ids() == []
        assert await stream.length() == 20
        await ledger.connection.execute("DROP TRIGGER full_disk ON ledger")
        await ledger.reaches(stream)
    assert await ledger.rejects() == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of another process")
async def test_redis_whose_disk_is_full_stops_before_it_acknowledges_what_it_cannot_keep(
    plane: ControlPlane, valkey: ValkeyProcess, redis: Redis
) -> None:
    _, codes = await issue(plane, 40)
    async with engine_in_process(plane, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
        size = max(file.stat().st_size for file in valkey.server.data_dir.rglob("*.aof"))
        resource.prlimit(valkey.pid, resource.RLIMIT_FSIZE, (size + 2000, resource.RLIM_INFINITY))
        told = {code: await merchant.redeem(code, key=f"k{at}") for at, code in enumerate(codes)}
        acknowledged = {code for code, (status, _) in told.items() if status == 200}
        assert 0 < len(acknowledged) < len(codes) - 1
        assert {body["code"] for status, body in told.values() if status == 503} <= {
            "outcome_unknown",
            "store_unavailable",
        }
        await wait_until_async(lambda: not valkey.running)
        valkey.spawn()  # there is room again
        await valkey.wait_ready()
        for at, code in enumerate(codes):

            async def settled(code: str = code, at: int = at) -> bool:
                status, body = await merchant.redeem(code, key=f"k{at}")
                expected = 409 if code == codes[0] else 200
                assert status in {expected, 503}, body
                if code in acknowledged and status == 200:
                    assert body["replayed"] is True
                return status != 503

            await wait_until_async(settled)
        assert await count_events(redis, 0) == len(codes)


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    with own_valkey() as process:
        yield process
