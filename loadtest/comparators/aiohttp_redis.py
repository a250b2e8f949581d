"""Peer: aiohttp and redis-py, used as their manuals show: one EVALSHA for each request, over a pool."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson
import uvloop
from aiohttp import web
from redis.asyncio import BlockingConnectionPool, Redis

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL_CONNECTIONS: Final = 64


class AiohttpPeer:
    """The handler and its connections."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._authorization = f"Bearer {environment['PEER_KEY']}"
        self._campaign = environment["PEER_CAMPAIGN"]
        self._sha = environment["PEER_SHA"]
        self._redis = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                f"unix://{environment['PEER_REDIS_SOCKET']}",
                max_connections=POOL_CONNECTIONS,
                decode_responses=True,
            )
        )

    async def redeem(self, request: web.Request) -> web.Response:
        """Redeem one code and respond like the engine."""
        if request.headers.get("Authorization") != self._authorization:
            return _refusal(401, "unauthenticated")
        try:
            asked = orjson.loads(await request.read())
            code, user = asked["code"], asked["user"]
        except (ValueError, KeyError, TypeError):
            return _refusal(400, "malformed_request")
        word, *words = await self._redis.evalsha(
            self._sha, 3, "peer:campaign", "peer:codes", "peer:events", code, code[-4:], user
        )
        if word != "redeemed":
            return _refusal(409, word)
        event, amount, currency = words
        at = datetime.fromtimestamp(int(event.partition("-")[0]) / 1000, UTC)
        answer = {
            "id": event,
            "status": "redeemed",
            "campaign": self._campaign,
            "code": "••••-••••-••••-" + code[-4:],
            "user": user,
            "amount": int(amount),
            "currency": currency,
            "redeemed_at": at.isoformat(timespec="milliseconds"),
            "replayed": False,
        }
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _refusal(status: int, code: str) -> web.Response:
    body = orjson.dumps({"status": status, "code": code})
    return web.Response(status=status, body=body, content_type="application/problem+json")


async def _serve(environment: Mapping[str, str]) -> None:
    app = web.Application()
    app.router.add_post("/v1/redemptions", AiohttpPeer(environment).redeem)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(environment["PEER_PORT"])).start()
    sys.stdout.write(f"ready http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(os.environ))
