"""Measures time and memory of a redemption in Redis, by batch size: ``python -m loadtest.benchmarks.redis``.

An engine core calls its own Valkey. The figures are: the processor time of Valkey (of all its threads, from
Linux's schedstat); the time of the script as Redis measures it (INFO commandstats, which includes neither
reading the call nor the append-only file); the bytes of the append-only file; and the memory that Redis has
allocated. With ``--existing`` it uses the servers of the settings, so that two versions can take turns.
``plain`` is a code and a user. ``all checks`` is a campaign with a time window, stock, budget and per-user
limit, and requests with an order and an idempotency key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop
from redis.asyncio import Redis

from engine.api.answers import encode_outcome
from engine.api.bodies import RedeemRequest
from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from engine.observability.metrics import Telemetry
from engine.redemption.operations import make_core
from engine.redemption.redeem import Redemption
from engine.settings import load
from engine.store import keys
from engine.store.configuration import ConfigurationCache
from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.control.campaigns import NewCampaign
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

SIZES: Final = (1, 8, 32, 128)
BATCHES: Final = 8  # batches that wait at the same time
_SHARD: Final = 0
LIMITED: Final = msgspec.structs.replace(
    testbed.PLAIN,
    starts_at="2020-01-01T00:00:00Z",
    ends_at="2100-01-01T00:00:00Z",
    stock=2**40,
    budget=2**50,
    per_user_limit=3,
)
KINDS: Final = {"plain": testbed.PLAIN, "all checks": LIMITED}


@dataclass(frozen=True, slots=True)
class RedisBench:
    """A connected core, and the client that reads its Redis's figures."""

    core: Core
    redis: Redis
    api_key: CachedKey

    async def redeem(self, codes: Sequence[str], *, with_keys: bool) -> None:
        """Redeem all codes, with enough attempts waiting to keep the batches full."""
        waiting = BATCHES * self.core.settings.batch_max
        for start in range(0, len(codes), waiting):
            answers = [self._submit(code, with_keys=with_keys) for code in codes[start : start + waiting]]
            if (statuses := set(await asyncio.gather(*answers))) != {200}:
                raise RuntimeError(f"redemptions were answered {statuses}")

    def _submit(self, code: str, *, with_keys: bool) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        user, order, key = f"user-{code[:7]}", None, None
        if with_keys:
            order, key = f"order-{code[5:12]}", f"4f1d7c02-9-{code[:14].replace('-', '')}"
        attempt = Redemption(
            self.core.dispatcher, RedeemRequest(code=code, user=user, order=order), key, self.api_key
        )
        attempt.on_done = lambda outcome: answer.set_result(encode_outcome(outcome, 1)[0])
        self.core.submit(attempt, code)
        return answer

    async def memory(self) -> int:
        """Return the bytes that Redis has allocated."""
        return int((await self.redis.info("memory"))["used_memory"])


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=20_000, help="codes to redeem for each batch size")
    parser.add_argument(
        "--memory-codes", type=int, default=200_000, help="codes to redeem for the memory figures; 0 for none"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="attempts of a call")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--existing", action="store_true", help="use the servers of the settings (REDEEM_…)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.existing:
            settings = load(os.environ)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            settings = stack.enter_context(testbed.servers(Path(directory)))
        result = uvloop.run(_measure(settings, options))
    print(json.dumps(result, indent=2))


async def _measure(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        key = (await api_keys.create(plane, "bench", ["redeem"])).value.key
        configuration = ConfigurationCache(redis)
        await configuration.refresh()
        api_key = configuration.api_keys[api_keys.digest(key).hex()]
        results: dict[str, Any] = {"allocator": (await redis.info("memory"))["mem_allocator"]}
        for kind in options.kinds:
            campaign, with_keys, script_us = KINDS[kind], kind == "all checks", {}
            for size in options.sizes:
                async with _connected(replace(settings, batch_max=size), configuration, redis) as core:
                    bench = RedisBench(core, redis, api_key)
                    script_us[str(size)] = await _script_us(
                        bench, plane, campaign, options.codes, with_keys=with_keys
                    )
            weighed = {}
            if options.memory_codes:
                async with _connected(settings, configuration, redis) as core:
                    bench = RedisBench(core, redis, api_key)
                    weighed = await _bytes(bench, plane, campaign, options.memory_codes, with_keys=with_keys)
            results[kind] = {"script_us": script_us, "bytes": weighed}
        return results


@asynccontextmanager
async def _connected(
    settings: Settings, configuration: ConfigurationCache, redis: Redis
) -> AsyncIterator[Core]:
    core = make_core(settings, configuration, redis, Telemetry())
    core.dispatcher.open()
    while not core.dispatcher.ready:  # noqa: ASYNC110 - it connects in a callback, without an event to wait for
        await asyncio.sleep(0.01)
    yield core
    await core.close()


async def _script_us(
    bench: RedisBench, plane: ControlPlane, campaign: NewCampaign, count: int, *, with_keys: bool
) -> dict[str, float]:
    """Return microseconds and append-only bytes, of the script for one call and for one redemption."""
    size = bench.core.settings.batch_max
    codes = await testbed.mint(plane, (count // size + 1) * size, campaign)
    await bench.redeem(codes[:size], with_keys=with_keys)  # the core loads the campaign
    await bench.redis.config_resetstat()
    pid = int((await bench.redis.info("server"))["process_id"])
    written, seconds = await _append_only_bytes(bench.redis), testbed.processor_seconds(pid)
    await bench.redeem(codes[size:], with_keys=with_keys)
    seconds = testbed.processor_seconds(pid) - seconds
    written = await _append_only_bytes(bench.redis) - written
    calls = (await bench.redis.info("commandstats"))["cmdstat_fcall"]
    await bench.redis.xtrim(keys.events(_SHARD), maxlen=0, approximate=False)
    return {
        "batch": round((len(codes) - size) / calls["calls"], 1),
        "call": round(calls["usec"] / calls["calls"], 1),
        "redemption": round(calls["usec"] / (len(codes) - size), 2),
        "processor of a redemption": round(seconds * 1e6 / (len(codes) - size), 2),
        "append-only bytes of a redemption": round(written / (len(codes) - size), 1),
    }


async def _append_only_bytes(redis: Redis) -> int:
    """Return the size of the append-only file; 0 if there is none."""
    return int((await redis.info("persistence")).get("aof_current_size", 0))


async def _bytes(
    bench: RedisBench, plane: ControlPlane, campaign: NewCampaign, count: int, *, with_keys: bool
) -> dict[str, float]:
    """Return the bytes of one redemption: with its event, without it, and without its idempotency record."""
    redis = bench.redis
    await _forget_records(redis)
    empty = await bench.memory()
    codes = await testbed.mint(plane, count, campaign)
    await bench.core.configuration.refresh()
    issued = await bench.memory()
    await bench.redeem(codes, with_keys=with_keys)
    redeemed = await bench.memory()
    await redis.xtrim(keys.events(_SHARD), maxlen=0, approximate=False)
    persisted = await bench.memory()
    await _forget_records(redis)
    forgotten = await bench.memory()
    return {
        "issued": round((issued - empty) / count, 2),
        "redeemed": round((redeemed - issued) / count, 1),
        "persisted": round((persisted - issued) / count, 1),
        "past its idempotency record": round((forgotten - issued) / count, 2),
    }


async def _forget_records(redis: Redis) -> None:
    """Delete the idempotency records, as their expiry would."""
    async for name in redis.scan_iter(f"{{s{_SHARD}}}:receipt:*", count=1000):
        await redis.delete(name)


if __name__ == "__main__":
    main()
