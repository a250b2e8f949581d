"""An export whose reader stalls ends, its entry in the audit log is closed, and others are served again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.control import batches
from engine.control.batches import NewBatch
from tests.support.deployment import engine_in_process, issue
from tests.support.stalling import stuck_reader
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

CODES = 1_000_000  # more than sockets buffer


async def test_a_stalled_export_ends_and_makes_room(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    batch = (await batches.mint(plane, campaign, NewBatch(count=CODES), created_by="cli")).value.batch
    path = f"/v1/batches/{batch.id}/codes"
    async with engine_in_process(
        plane, scopes=("redeem", "read", "admin"), exports_max=1, export_stall_s_max=2
    ) as merchant:

        async def outcomes() -> list[str | None]:
            _, page = await merchant.call("GET", f"/v1/audit-log?act=export&subject=batch:{batch.id}")
            return [entry["outcome"] for entry in page["items"]]

        async def begun() -> bool:
            return await outcomes() == [None]

        async def aborted() -> bool:
            return await outcomes() == ["aborted"]

        with contextlib.closing(await stuck_reader(merchant, path)):
            await wait_until_async(begun)
            status, body = await merchant.call("GET", path)
            assert (status, body["code"]) == (503, "overloaded")
            await wait_until_async(aborted)
        headers = {"Authorization": f"Bearer {merchant.key}"}
        async with merchant.session.get(merchant.url + path, headers=headers) as response:
            assert response.status == 200
            assert len((await response.read()).splitlines()) == CODES + 1
