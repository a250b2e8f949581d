"""``redeem webhooks``, beside a running engine and a deliverer of ``redeem up``."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import psutil  # type: ignore[import-untyped] # it has no types
import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixture's type is read

from engine.database import open_database
from engine.settings import Settings  # noqa: TC001 - likewise
from tests.support.cli import COMMAND, Cli, environment
from tests.support.deployment import Process, issue
from tests.support.endpoints import receiving
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(
        settings, webhooks_allow_private=True, webhook_retry_s="0.01", webhook_poll_ms=10, workers=1
    )


@pytest.fixture
def cli(settings: Settings, redis: Redis) -> Cli:  # noqa: ARG001 - emptied
    (settings.data_dir / "redeem.toml").write_text("webhooks_allow_private = true\n", encoding="utf-8")
    return Cli(settings)


async def test_an_endpoint_from_its_registration_to_its_end(cli: Cli) -> None:
    async with receiving() as receiver:
        line = await cli.done("webhooks", "create", "--url", receiver.url, "--type", "redeemed")
        webhook_id, secret = line.split()
        assert (webhook_id, secret[:6]) == ("wh_1", "whsec_")
        assert receiver.url in await cli.done("webhooks", "list")
        shown = await cli.json("webhooks", "show", webhook_id)
        assert (shown["types"], shown["enabled"]) == (["redeemed"], True)
        assert secret not in str(shown)
        assert secret not in await cli.done("webhooks", "show", webhook_id)
        rotated = (await cli.done("webhooks", "rotate", webhook_id, "--grace-s", "60")).strip()
        assert rotated != secret
        assert len((await cli.json("webhooks", "show", webhook_id))["secrets"]) == 2
        for command, enabled in (("disable", False), ("enable", True)):
            assert (await cli.done("webhooks", command, webhook_id)).strip() == webhook_id
            assert (await cli.json("webhooks", "show", webhook_id))["enabled"] is enabled
        await cli.done("webhooks", "replay", webhook_id, "--after", "beginning")
        assert "not a cursor" in await cli.refused("webhooks", "replay", webhook_id, "--after", "x")
        assert await cli.json("webhooks", "attempts", webhook_id) == []
        assert await cli.json("webhooks", "dead-letters", webhook_id) == []
        await cli.done("webhooks", "delete", webhook_id, "--yes")
        assert await cli.done("webhooks", "list") == ""
        assert "no such webhook" in await cli.refused("webhooks", "show", webhook_id)
    acts = [act["act"] for act in await cli.json("audit-log", "--subject", "webhook:wh_1")]
    assert acts[::-1] == [
        *("create_webhook", "rotate_webhook", "update_webhook", "update_webhook"),
        *("replay_webhook", "delete_webhook"),
    ]


async def test_a_ping_is_printed_by_a_listener_that_knows_the_secret_and_by_no_other(
    cli: Cli, settings: Settings
) -> None:
    listen = (*COMMAND, "webhooks", "listen", "--port", "0")
    variables = environment(settings, WEBHOOK_SECRET="whsec_" + "A" * 44)
    stranger = await asyncio.create_subprocess_exec(
        *listen, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    listener = None
    try:
        url = await listening_on(stranger)
        made = (await cli.done("webhooks", "create", "--url", url)).split()
        assert "answered 401" in await cli.refused("webhooks", "ping", made[0])
        assert b"not verified" in await line(stranger.stderr)
        secret = (await cli.done("webhooks", "rotate", made[0], "--grace-s", "0")).strip()
        listener = await asyncio.create_subprocess_exec(
            *listen,
            env=variables | {"WEBHOOK_SECRET": secret},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        other = (await cli.done("webhooks", "create", "--url", await listening_on(listener))).split()
        assert "answered 401" in await cli.refused("webhooks", "ping", other[0])
        async with (
            open_database(settings, settings.database_url) as database,
            database.connection() as connection,
        ):
            await connection.execute("UPDATE webhook_secrets SET secret = $1", secret)
        assert (await cli.done("webhooks", "retry", other[0])).strip() == other[0]
        await cli.done("webhooks", "disable", other[0])
        assert "answered 204" in await cli.done("webhooks", "ping", other[0])
        printed = json.loads(await line(listener.stdout))
        assert printed["webhook-id"].startswith("ping_")
        assert printed["body"] == {"type": "ping", "webhook": other[0]}
        assert "no such webhook" in await cli.refused("webhooks", "ping", "wh_9")
    finally:
        for process in (stranger, listener):
            if process is not None:
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 0


async def listening_on(process: asyncio.subprocess.Process) -> str:
    return (await line(process.stderr)).decode().strip().removeprefix("listening on ") + "/hook"


async def line(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    async with asyncio.timeout(TIMEOUT_S):
        return await stream.readline()


async def test_redeem_up_delivers_and_starts_a_deliverer_that_died_again(
    cli: Cli, settings: Settings, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 2)
    with Process(replace(settings, port=0), "engine.cli", "up") as running:
        url = (await asyncio.to_thread(running.line)).split()[1]
        key = (await cli.done("keys", "create", "--name", "shop", "--scopes", "redeem")).strip()

        async def redeem(code: str) -> str:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"code": code, "user": "ann"}
            async with aiohttp.request(
                "POST", f"{url}/v1/redemptions", headers=headers, json=body
            ) as response:
                return str((await response.json())["id"])

        async with receiving() as receiver:
            await cli.done("webhooks", "create", "--url", receiver.url)
            redeemed = [await redeem(codes[0])]
            await receiver.has(1)
            deliverers = [
                child
                for child in psutil.Process(running.running.pid).children()
                if "persister.webhooks" in child.cmdline()
            ]
            for child in deliverers:
                child.kill()
            assert len(deliverers) == 1
            redeemed.append(await redeem(codes[1]))
            await wait_until_async(lambda: receiver.ids[-1] == redeemed[-1])
            assert list(dict.fromkeys(receiver.ids)) == redeemed

        async def delivery_is_counted() -> bool:
            async with aiohttp.request("GET", f"{url}/metrics") as response:
                metrics = await response.text()
            return 'redeem_webhook_attempts_total{outcome="delivered",webhook="wh_1"}' in metrics

        await wait_until_async(delivery_is_counted)
        assert await asyncio.to_thread(running.stop) == 0
