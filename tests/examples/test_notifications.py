"""``examples/notifications.py``, really run beside an engine: each event is told of once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from engine.settings import without_settings
from tests.support.deployment import engine_in_process, issue
from tests.support.endpoints import delivering
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "examples" / "notifications.py"


@contextlib.asynccontextmanager
async def receiver(settings: Settings, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """It, once it listens; killed at the end."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), "--port", str(port)),
        cwd=settings.data_dir,
        env=without_settings(os.environ) | settings.to_environ() | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=None,
    )
    try:
        assert running.stdout
        assert await running.stdout.readline() == b"listening\n"
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


def told(settings: Settings) -> list[str]:
    with contextlib.closing(sqlite3.connect(settings.data_dir / "notifications.sqlite3", timeout=60)) as kept:
        return [row[0] for row in kept.execute("SELECT text FROM notifications ORDER BY event")]


async def test_each_user_gets_one_notification_for_a_redemption(plane: ControlPlane) -> None:
    settings = replace(
        plane.settings, webhooks_allow_private=True, webhook_retry_s="0.1," * 200, webhook_poll_ms=10
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, codes = await issue(plane, 4, amount=550, currency="EUR")
    async with engine_in_process(plane) as merchant, persisting(settings), delivering(settings):
        async with receiver(settings, port) as running:
            await merchant.redeem(codes[0], "ann")
            assert running.stdout
            line = (await running.stdout.readline()).decode()
            assert line == f"ann: you redeemed 5.50 EUR with the code that ends in {codes[0][-4:]}\n"
            async with aiohttp.request("POST", f"http://127.0.0.1:{port}/", data=b"{}") as response:
                assert response.status == 401
        await merchant.redeem(codes[1], "bob")  # while it is down
        async with receiver(settings, port):  # with the secret of before
            _, redeemed = await merchant.redeem(codes[2], "cho")
            path = f"/v1/redemptions/{redeemed['id']}/rollback"
            assert (await merchant.call("POST", path, json={"reason": "r"}))[0] == 200
            await wait_until_async(lambda: len(told(settings)) == 4)
    assert [text.partition(" with")[0] for text in told(settings)] == [
        "ann: you redeemed 5.50 EUR",
        "bob: you redeemed 5.50 EUR",
        "cho: you redeemed 5.50 EUR",
        "cho: you got back 5.50 EUR",
    ]
