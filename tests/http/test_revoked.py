"""A key that is revoked while the body of a change arrives changes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.control import api_keys
from tests.support.deployment import engine_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane


async def test_a_key_revoked_while_the_body_arrives_changes_nothing(plane: ControlPlane) -> None:
    made = (await api_keys.create(plane, "ops", ["admin"])).value
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"name": "evil", '
        await go_on.wait()
        yield b'"scopes": ["admin"]}'

    async with engine_in_process(plane, scopes=("admin",)) as ops:
        headers = {"Authorization": f"Bearer {made.key}", "Content-Type": "application/json"}
        slow = asyncio.create_task(ops.session.post(f"{ops.url}/v1/keys", data=slowly(), headers=headers))
        assert (await ops.call("GET", "/v1/keys"))[0] == 200
        await api_keys.revoke(plane, made.api_key.id)
        go_on.set()
        async with await slow as response:
            assert response.status == 401
        _, keys = await ops.call("GET", "/v1/keys")
    assert "evil" not in {key["name"] for key in keys["items"]}
