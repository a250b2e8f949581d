"""Notifies users of their redemptions: a webhook receiver that verifies, drops repeats, and prints.

Run it beside an engine that may call this machine, in two terminals::

    export REDEEM_WEBHOOKS_ALLOW_PRIVATE=1
    make run
    .venv/bin/python examples/notifications.py

The first time, it registers itself as a webhook and stores the secret. If you registered the webhook
yourself, pass its ``--secret``. Each event counts once, even if any process is killed at any time: one
transaction stores the event's id and the notification, and the receiver responds with 200 after it.
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
    """The receiver. ``secret`` is the engine's signing secret."""

    def __init__(self, database: sqlite3.Connection, secret: str) -> None:
        self._database = database
        self._webhook = Webhook(secret)

    async def receive(self, request: web.Request) -> web.Response:
        """Store the events, then respond with 200; respond with 401 if the signature is wrong."""
        body = await request.read()
        try:
            message = self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError):
            return web.Response(status=401, text="not signed with the secret of this webhook")
        new = []
        with self._database:  # one transaction: on disk before the response
            for event in message.get("events", [message]):  # one event, or a batch of them
                text = notification(event)
                if self._database.execute(INSERT, (event["id"], text)).rowcount:  # 0 if it is a repeat
                    new.append(text)
        for text in new:
            print(text, flush=True)
        return web.Response()


def notification(event: dict[str, Any]) -> str:
    """Return the text of a notification."""
    worth = "a code" if event["amount"] is None else f"{event['amount'] / 100:.2f} {event['currency']}"
    what = "got back" if event["type"] == "rolled_back" else "redeemed"
    return f"{event['user']}: you {what} {worth} with the code that ends in {event['last4']}"


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    options = arguments()
    with contextlib.closing(sqlite3.connect(options.kept)) as database:
        database.executescript(SCHEMA)
        secret = options.secret or stored(database) or register(database, f"http://127.0.0.1:{options.port}/")
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/", Notifications(database, secret).receive)
        web.run_app(app, host="127.0.0.1", port=options.port, print=lambda _: print("listening", flush=True))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Prints a notification for each redemption.")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--secret", default=os.environ.get("WEBHOOK_SECRET"), help="default: it registers itself"
    )
    parser.add_argument("--kept", default="notifications.sqlite3", help="database file")
    return parser.parse_args()


def stored(database: sqlite3.Connection) -> str | None:
    """Return the secret that an earlier run has stored, if any."""
    row = database.execute("SELECT value FROM secret").fetchone()
    return row and str(row[0])


def register(database: sqlite3.Connection, url: str) -> str:
    """Register this receiver, like ``redeem webhooks create --url …``; store and return its secret."""
    from engine.cli.connect import load_settings, open_plane  # noqa: PLC0415 - only beside the engine
    from engine.webhooks import changes  # noqa: PLC0415 - only beside the engine

    async def create() -> str:
        new = changes.NewWebhook(url=url, types=list(TYPES), description="notifications")
        async with open_plane(load_settings()) as plane:
            return (await changes.create(plane, new, actor="cli")).value.secret

    secret = asyncio.run(create())
    with database:
        database.execute("INSERT INTO secret VALUES (?)", (secret,))
    return secret


if __name__ == "__main__":
    main()
