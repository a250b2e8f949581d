"""Webhook endpoints with the behaviour that a test sets, and a ledger with events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from persister.webhooks.main import run_deliverer
from tests.support.running import running
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from engine.settings import Settings

TOLERANCE_S: Final = 300  # as in the Standard Webhooks specification


@dataclass
class Received:
    """One received call."""

    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON
        return orjson.loads(self.body)

    def verify(self, secret: str) -> None:
        """Verify signature and time as a receiver does on arrival; a long test looks later than that.

        Raises:
            WebhookVerificationError: the signature is wrong, or was made long before or after the arrival.
        """
        sent_at = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        signature = Webhook(secret).sign(self.id, sent_at, self.body.decode())
        if signature not in self.headers["webhook-signature"].split(" "):
            raise WebhookVerificationError("No matching signature found")
        if abs(self.at - sent_at.timestamp()) > TOLERANCE_S:
            raise WebhookVerificationError("The signature was not made for this moment")


@dataclass
class Receiver:
    """An endpoint: the calls that it received, and its behaviour."""

    url: str = ""
    calls: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Awaitable[web.StreamResponse]] | None = None
    """Handles a call after it was recorded; None responds with 200."""
    status: int = 200
    requests: list[web.Request] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [call.id for call in self.calls]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Received(headers, await request.read())
        self.requests.append(request)
        self.calls.append(call)
        if self.answer is not None:
            return await self.answer(call)
        return web.Response(status=self.status)

    async def has(self, count: int) -> None:
        """Wait for ``count`` calls."""
        await wait_until_async(lambda: len(self.calls) >= count)


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """Run an endpoint on its own port."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def delivering(settings: Settings) -> AbstractAsyncContextManager[asyncio.Event]:
    """Run a deliverer in this process; stop it in order at the end, and check that it ends."""
    return running(lambda stop: run_deliverer(settings, settings.database_url, stop))


@dataclass
class Events:
    """Writes a shard's ledger as the persister does."""

    connection: Any
    shard: int = 0
    seq: int = 0

    async def add(self, count: int, **changes: object) -> list[str]:
        """Add ``count`` events and return their ids."""
        rows = [
            {
                "shard": self.shard,
                "stream_ms": 1_795_376_794_500 + seq,
                "stream_seq": 0,
                "seq": seq,
                "type": "redeemed",
                "redemption": f"{self.shard}-{1_795_376_794_500 + seq}-0",
                "campaign": "cmp_1",
                "batch": 0,
                "serial": seq,
                "last4": "JK4M",
                "user_id": "ann",
                "amount": 500,
                "currency": "EUR",
                "order_ref": None,
                "idempotency_key": None,
                "actor": "key_1",
                "at_ms": 1_795_376_794_500 + seq,
            }
            | changes
            for seq in range(self.seq + 1, self.seq + count + 1)
        ]
        names = list(rows[0])
        async with self.connection.transaction():
            await self.connection.copy_records_to_table(
                "ledger", records=[tuple(row[name] for name in names) for row in rows], columns=names
            )
            await self.connection.execute(
                "UPDATE ledger_offsets SET seq = $2, stream_ms = $3 WHERE shard = $1",
                self.shard,
                rows[-1]["seq"],
                rows[-1]["stream_ms"],
            )
        self.seq += count
        return [f"{self.shard}-{row['stream_ms']}-0" for row in rows]
