"""Tells people what they redeemed: a webhook receiver that verifies, drops repeats, and prints.

Beside an engine that may call this machine, in two terminals::

    export REDEEM_WEBHOOKS_ALLOW_PRIVATE=1
    make run
    .venv/bin/python examples/notifications.py

The first time it registers itself as a webhook and keeps the secret that it is given; ``--secret`` is for one
that was registered by hand. Each event counts once, whatever is killed and whenever: its id is kept in one
transaction with the notification, and 200 is answered after that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
from typing import Any, Final

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

TYPES: Final = ("redeemed", "confirmed", "rolled_back")
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS notifications (
    event TEXT PRIMARY KEY,  -- an event counts once
    text  TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS secret (value TEXT NOT NULL);
"""
INSERT: Final = "INSERT INTO notifications VALUES (?, ?) ON CONFLICT DO NOTHING"


class Notifications:
    """The receiver. ``secret`` is what the engine signs with."""

    def __init__(self, kept: sqlite3.Connection, secret: str) -> None:
        self._kept = kept
        self._webhook = Webhook(secret)

    async def receive(self, request: web.Request) -> web.Response:
        """Answer 200 once it is kept; to what is not signed, 401."""
        body = await request.read()
        try:
            message = self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError):
            return web.Response(status=401, text="not signed with the secret of this webhook")
        told = []
        with self._kept:  # one transaction: on disk before it is answered
            for event in message.get("events", [message]):  # one event, or a batch of them
                text = notification(event)
                if self._kept.execute(INSERT, (event["id"], text)).rowcount:  # not seen before
                    told.append(text)
        for text in told:
            print(text, flush=True)
        return web.Response()


def notification(event: dict[str, Any]) -> str:
    """What somebody is told."""
    worth = "a code" if event["amount"] is None else f"{event['amount'] / 100:.2f} {event['currency']}"
    what = "got back" if event["type"] == "rolled_back" else "redeemed"
    return f"{event['user']}: you {what} {worth} with the code that ends in {event['last4']}"


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    asked = arguments()
    with contextlib.closing(sqlite3.connect(asked.kept)) as kept:
        kept.executescript(SCHEMA)
        secret = asked.secret or known(kept) or register(kept, f"http://127.0.0.1:{asked.port}/")
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/", Notifications(kept, secret).receive)
        web.run_app(app, host="127.0.0.1", port=asked.port, print=lambda _: print("listening", flush=True))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prints a notification for what is redeemed.")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--secret", default=os.environ.get("WEBHOOK_SECRET"), help="else it registers itself")
    parser.add_argument("--kept", default="notifications.sqlite3", help="the file that keeps what was told")
    return parser.parse_args()


def known(kept: sqlite3.Connection) -> str | None:
    """The secret that an earlier run was given."""
    row = kept.execute("SELECT value FROM secret").fetchone()
    return row and str(row[0])


def register(kept: sqlite3.Connection, url: str) -> str:
    """Register this receiver with the engine beside it; as ``redeem webhooks create --url …`` does."""
    from engine.cli.connect import load_settings, open_plane  # noqa: PLC0415 - only beside the engine
    from engine.webhooks import changes  # noqa: PLC0415 - only beside the engine

    async def create() -> str:
        new = changes.NewWebhook(url=url, types=list(TYPES), description="notifications")
        async with open_plane(load_settings()) as plane:
            return (await changes.create(plane, new, actor="cli")).value.secret

    secret = asyncio.run(create())
    with kept:
        kept.execute("INSERT INTO secret VALUES (?)", (secret,))
    return secret


if __name__ == "__main__":
    main()
