"""Baselines for the benchmarks: ``python -m loadtest.benchmarks.baselines bare|naive``.

``bare``: an aiohttp handler that reads the body and returns a constant. No engine can be faster on aiohttp.
``naive``: does the same work as the engine, in the usual way: for each request, the handler decodes one
code and sends one FCALL of the engine's redeem.lua over redis-py's pool.
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

from engine import settings as all_settings
from engine.api import bodies
from engine.api.answers import encode_outcome
from engine.api.outcomes import Redeemed
from engine.api.problems import PROBLEM_TYPE, plain_problem
from engine.codes.formats import normalise, split
from engine.encoding import JSON_TYPE
from engine.lookup.decoder import Decoder
from engine.redemption.redeem import Redemption
from engine.store import keys, scripts
from engine.store.call import pack_columns
from engine.store.configuration import ConfigurationCache
from engine.store.event_lines import about_json, cause_json
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.lookup.decoder import Issued
    from engine.settings import Settings

POOL_CONNECTIONS: Final = 64
ANSWER: Final = encode_outcome(
    Redeemed(
        id="0-1795376794500-3",
        campaign="cmp_1",
        code="••••-••••-••••-JKLM",
        user="user-123456",
        amount=500,
        currency="EUR",
        redeemed_at=instant(1795376794500),
    ),
    1,
)[1]

SCRIPT: Final = Redemption.script


async def bare(request: web.Request) -> web.Response:
    """Read the body and return a constant."""
    await request.read()
    return web.Response(body=ANSWER, content_type=JSON_TYPE)


class Naive:
    """Sends one FCALL for each request."""

    def __init__(self, settings: Settings, redis: Redis, configuration: ConfigurationCache) -> None:
        self._settings = settings
        self._redis = redis
        self._configuration = configuration
        self._decoder = Decoder(settings, configuration)

    async def redeem(self, request: web.Request) -> web.Response:
        """Redeem one code and respond like the engine."""
        asked = bodies.parse_redeem_request(await request.read(), self._settings)
        [code] = self._decoder.find([split(normalise(asked.code) or b"", self._configuration.prefixes)])
        if code is None:
            return _refusal("code_not_found")
        campaign = self._configuration.campaigns[code.batch.campaign]
        place = keys.locate_code(code.serial, self._configuration.shards, campaign.pinned_shard)
        word, *words = await self._call(code, campaign.id, place, asked.user)
        if word != "redeemed":
            return _refusal(word)
        stream_id, amount = words
        redeemed = Redeemed(
            id=f"{place.shard}-{stream_id}",
            campaign=campaign.id,
            code="••••-••••-••••-" + code.symbols[-4:].decode(),
            user=asked.user,
            amount=int(amount) if amount else None,
            currency=campaign.currency,
            redeemed_at=instant(int(stream_id.partition("-")[0])),
        )
        return web.Response(body=encode_outcome(redeemed, 1)[1], content_type=JSON_TYPE)

    async def _call(self, code: Issued, campaign: str, place: keys.CodeLocation, user: str) -> list[str]:
        """Call the script for one attempt and return the words of its reply."""
        names = [
            *keys.of_every_script(place.shard),
            keys.campaign(place.shard, campaign),
            keys.state(place.shard, code.batch.id, place.segment),
        ]
        attempt: dict[str, list[int] | list[str]] = {
            "campaign_at": [6],
            "state_at": [7],
            "offset": [place.offset],
            "about": [about_json(code.batch.id, code.serial, code.symbols[-4:].decode(), user)],
            "cause": [cause_json(None, None, "key")],
            "ending": [""],
        }
        arguments: dict[str, int | bytes] = {
            "shard": place.shard,
            "version": self._configuration.version,
            "idempotency_epoch": int(time.time()) // keys.IDEMPOTENCY_WINDOW_S,
            "idempotency_window_s": keys.IDEMPOTENCY_WINDOW_S,
            "packed": pack_columns([attempt.get(name, ()) for name in SCRIPT.attempt]),
        }
        reply = await self._redis.fcall(
            SCRIPT.library,
            len(names),
            *names,
            *(arguments[name] for name in SCRIPT.arguments),
        )
        words: list[str] = reply[1].decode().split(" ")
        return words


async def naive(settings: Settings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Connect to Redis, load configuration and script, and return the handler."""
    redis = Redis(
        connection_pool=BlockingConnectionPool.from_url(settings.redis_url, max_connections=POOL_CONNECTIONS)
    )
    configuration = ConfigurationCache(redis)
    await configuration.refresh()
    await scripts.load(redis, SCRIPT)
    return Naive(settings, redis, configuration).redeem


def _refusal(code: str) -> web.Response:
    status, body = plain_problem(code)
    return web.Response(status=status, body=body, content_type=PROBLEM_TYPE)


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
