"""`redeem dashboard link`, and what `redeem up` prints of the dashboard."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp

from engine.control import api_keys
from engine.store.configuration import SCOPES
from tests.support.deployment import Process, engine_of_processes

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.cli import Cli


async def signed_in(url: str, link: str) -> tuple[int, str]:
    token = link.partition("#sign-in=")[2]
    async with aiohttp.request("POST", f"{url}/admin/session", json={"link": token}) as response:
        body = await response.json(content_type=None)
    return response.status, body.get("key_id", "")


async def test_a_link_signs_in_with_a_key_of_its_own_or_with_the_one_that_is_named(
    cli: Cli, plane: ControlPlane
) -> None:
    viewer = (await api_keys.create(plane, "viewer", ["read"])).value.api_key.id
    async with engine_of_processes(plane, workers=1) as merchant:
        first = (await cli.done("dashboard", "link", "--url", merchant.url)).strip()
        assert first.startswith(f"{merchant.url}/admin#sign-in=")
        status, key_id = await signed_in(merchant.url, first)
        assert status == 200
        assert (await signed_in(merchant.url, first))[0] == 401
        second = (await cli.json("dashboard", "link"))["url"]
        assert second.startswith("http://127.0.0.1:8080/admin#sign-in=")
        assert await signed_in(merchant.url, second) == (200, key_id)
        named = (await cli.done("dashboard", "link", "--key", viewer)).strip()
        assert await signed_in(merchant.url, named) == (200, viewer)
    keys = {key.id: key for key in await api_keys.page(plane, after=None, limit=10)}
    assert set(keys[key_id].scopes) == set(SCOPES)
    assert len(keys) == 3  # viewer, merchant, and one for all links
    await api_keys.revoke(plane, key_id)
    assert "no such API key" in await cli.refused("dashboard", "link", "--key", key_id)


async def test_redeem_up_prints_the_address_and_a_link_for_this_start(
    settings: Settings,
    redis: Redis,  # noqa: ARG001 - emptied
) -> None:
    for printed in (True, False):
        one = replace(settings, port=0, host="0.0.0.0", sign_in_link_printed=printed)  # noqa: S104 - replaced
        with Process(one, "engine.cli", "up", "--workers", "1") as process:
            ready = await asyncio.to_thread(process.line)
            port = ready.rpartition(":")[2]
            url = f"http://127.0.0.1:{port}"
            assert (await signed_in(url, "#sign-in=x"))[0] == 401
            if printed:
                lines = [await asyncio.to_thread(process.line) for _ in range(8)]
                assert f"{url}/admin" in lines
                (link,) = re.findall(r"http\S+#sign-in=\S+", "\n".join(lines))
                assert (await signed_in(url, link))[0] == 200
            process.running.terminate()
            if not printed:
                assert await asyncio.to_thread(process.line) == ""
