"""What every answer says of its sender and to caches; and what no process leaves on disk."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.deployment import Process, engine_in_process, issue, worker_pids
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

SCOPES = ("redeem", "read", "adjust", "events", "admin")


async def test_answers_name_no_version_and_records_are_stored_by_no_cache(plane: ControlPlane) -> None:
    campaign, [code, other] = await issue(plane, 2)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        _, redeemed = await merchant.redeem(code, order="o1")
        hold = {"code": other, "user": "ann", "order": "o1"}
        _, held = await merchant.call("POST", "/v1/holds", json=hold)
        read = (
            *(f"/v1/redemptions/{redeemed['id']}", "/v1/redemptions?user=ann", f"/v1/holds/{held['id']}"),
            *("/v1/holds?order=o1", "/v1/users/ann", "/v1/events", f"/v1/campaigns/{campaign}", "/v1/none"),
            *("/v1/campaigns", "/v1/webhooks", "/v1/keys", "/v1/audit-log", "/v1/conflicts"),
        )
        headers = {"Authorization": f"Bearer {merchant.key}"}
        for path in read:
            async with merchant.session.get(merchant.url + path, headers=headers) as response:
                assert response.headers["Cache-Control"] == "no-store", path
                assert response.headers["Server"] == "redeem", path
        body = {"code": code, "user": "ann"}
        for path, json in (("/v1/redemptions", body), ("/v1/redemptions/batch", {"items": [body]})):
            async with merchant.session.post(merchant.url + path, json=json, headers=headers) as response:
                assert response.headers["Server"] == "redeem"
        async with merchant.session.get(merchant.url + "/healthz") as response:
            assert response.headers["Server"] == "redeem"


async def test_no_process_leaves_its_memory_in_a_core_dump(plane: ControlPlane) -> None:
    settings = replace(plane.settings, port=0, workers=1)
    with Process(settings, "engine.cli", "serve") as front_end, Process(settings, "persister") as persister:
        await asyncio.to_thread(front_end.line)
        pids = [front_end.running.pid, *worker_pids(front_end), persister.running.pid]
        assert len(pids) == 3

        def forbidden() -> bool:  # the persister says nothing when it has started
            return [resource.prlimit(pid, resource.RLIMIT_CORE) for pid in pids] == [(0, 0)] * 3

        await wait_until_async(forbidden)
