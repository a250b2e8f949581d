"""What the engine is measured against: ``python -m loadtest.baselines bare|naive``, settings as the engine.

``bare``: an aiohttp handler that reads the body and answers a constant. No engine can be faster on aiohttp.
``naive``: the same work as the engine, the way it is usually written: a handler that decodes
its code alone, and sends one EVALSHA of the same redeem.lua for each request over redis-py's pool.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Final

import uvloop
from aiohttp import web
from redis.asyncio import BlockingConnectionPool, Redis

from engine import keys, messages
from engine import settings as all_settings
from engine.batcher import SCRIPT
from engine.decoder import Decoder
from engine.formats import normalise, split
from engine.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.settings import Settings

POOL_CONNECTIONS: Final = 64
ANSWER: Final = messages.redeemed(
    redemption="0-1795376794500-3",
    campaign="cmp_1",
    masked_code="••••-••••-••••-JKLM",
    user="user-123456",
    amount=500,
    currency="EUR",
    balance=None,
    redeemed_at_ms=1795376794500,
    replayed=False,
)


async def bare(request: web.Request) -> web.Response:
    """Read, and answer."""
    await request.read()
    return web.Response(body=ANSWER, content_type=messages.JSON_TYPE)


async def naive(settings: Settings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler with one EVALSHA for each request."""
    redis = Redis(
        connection_pool=BlockingConnectionPool.from_url(settings.redis_url, max_connections=POOL_CONNECTIONS)
    )
    registry = Registry(redis)
    await registry.refresh()
    decoder = Decoder(settings, registry)
    await redis.script_load(SCRIPT.source.decode())

    async def handle(request: web.Request) -> web.Response:
        asked = messages.parse_redeem_request(await request.read(), settings)
        [code] = decoder.find([split(normalise(asked.code) or b"", registry.prefixes)])
        if code is None:
            status, body = messages.plain_problem("code_not_found")
            return web.Response(status=status, body=body, content_type=messages.PROBLEM_TYPE)
        campaign = registry.campaigns[code.batch.campaign]
        place = keys.place(code.serial, registry.shards, campaign.pinned_shard)
        epoch = int(time.time()) // settings.receipt_window_s
        names = [
            keys.events(place.shard),
            keys.version(place.shard),
            keys.campaign(place.shard, campaign.id),
            keys.state(place.shard, code.batch.id, place.segment),
        ]
        last4 = code.symbols[-4:].decode()
        attempt = (
            3,
            4,
            *(0, 0, 0, 0),
            *(place.offset, 0),
            "",
            "",
            "",
            code.batch.id,
            code.serial,
            last4,
            asked.user,
            "",
            "",
            "",
            "key",
        )
        reply = await redis.evalsha(
            SCRIPT.sha,
            len(names),
            *names,
            place.shard,
            registry.version,
            epoch,
            settings.receipt_window_s,
            *attempt,
        )
        words = reply[1].decode().split(" ")
        if words[0] != "redeemed":
            status, body = messages.plain_problem(words[0])
            return web.Response(status=status, body=body, content_type=messages.PROBLEM_TYPE)
        body = messages.redeemed(
            redemption=f"{place.shard}-{words[1]}",
            campaign=campaign.id,
            masked_code="••••-••••-••••-" + last4,
            user=asked.user,
            amount=int(words[2]) if words[2] else None,
            currency=campaign.currency,
            balance=None,
            redeemed_at_ms=int(words[1].partition("-")[0]),
            replayed=False,
        )
        return web.Response(body=body, content_type=messages.JSON_TYPE)

    return handle


async def _serve(settings: Settings, kind: str) -> None:
    app = web.Application()
    app.router.add_post("/v1/redemptions", bare if kind == "bare" else await naive(settings))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port, reuse_port=True)
    await site.start()
    sys.stdout.write(f"ready http://{settings.host}:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(all_settings.load(os.environ), sys.argv[1]))
