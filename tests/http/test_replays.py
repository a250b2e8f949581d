"""A signed call that is sent twice is refused as a replay; signed again, it gets the first answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.control.publishing import shard_version
from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.signing import Signer, a_signer

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

SCOPES = ("redeem", "read", "adjust", "admin")


class Calls:
    """Makes each call three times: first, as the same bytes, and signed again."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.number = 0

    async def make(self, path: str, document: object = None, *, method: str = "POST") -> Any:  # noqa: ANN401 - JSON
        """Return the first answer."""
        self.number += 1
        body = b"" if document is None else json.dumps(document).encode()

        def sign() -> dict[str, str]:
            headers = self.signer.sign(body, f"k{self.number}", method=method, path=path)
            if not body:
                del headers["Content-Type"]
            return headers

        first = sign()
        status, answer = await self.signer.send(first, body, method=method, path=path)
        assert status in {200, 201}, (path, answer)
        replay = await self.signer.send(first, body, method=method, path=path)
        assert (replay[0], replay[1]["code"]) == (401, "request_replayed"), path
        retry = sign()
        assert await self.signer.send(retry, body, method=method, path=path) == (
            status,
            answer | {"replayed": True} | replayed_parts(answer),
        ), path
        for headers in (first, retry):
            replay = await self.signer.send(headers, body, method=method, path=path)
            assert (replay[0], replay[1]["code"]) == (401, "request_replayed"), path
        return answer


def replayed_parts(answer: dict[str, Any]) -> dict[str, Any]:
    if "redemptions" not in answer:
        return {}
    return {"redemptions": [one | {"replayed": True} for one in answer["redemptions"]]}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shards", [1, 3])
async def test_no_operation_on_a_code_answers_a_replay(plane: ControlPlane, lane: str, shards: int) -> None:
    _, codes = await issue(plane, 40)
    _, cards = await issue(plane, 4, kind="balance", amount=500, currency="EUR")
    assert await shard_version(plane.redis, shards - 1) > 0
    async with engine_in_process(plane, lane=lane) as merchant:
        calls = Calls(await a_signer(plane, merchant, *SCOPES))
        for number in range(4):  # so that keys and codes have several homes
            code, order = codes.pop(), f"order-{number}"
            held = await calls.make("/v1/holds", {"code": code, "user": "ann", "order": order})
            await calls.make(f"/v1/holds/{held['id']}/release")
            held = await calls.make("/v1/holds", {"code": code, "user": "ann", "order": order})
            confirmed = await calls.make(f"/v1/holds/{held['id']}/confirm")
            path = f"/v1/redemptions/{confirmed['id']}/rollback"
            await calls.make(path, {"reason": "returned"})
            await calls.make("/v1/redemptions", {"code": code, "user": "ann"})
            several = [{"code": codes.pop()} for _ in range(3)]
            together = {"codes": several, "user": "ann", "order": order}
            await calls.make("/v1/redemptions/combined", together)
            await calls.make("/v1/codes/adjust", {"code": cards[number], "amount": 5, "reason": "late"})
            await calls.make("/v1/codes/void", {"code": codes[0], "reason": "lost"})
            await calls.make("/v1/codes/unvoid", {"code": codes[0], "reason": "found"})


async def test_no_change_of_the_configuration_answers_a_replay(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        calls = Calls(await a_signer(plane, merchant, "admin"))
        campaign = await calls.make("/v1/campaigns", {"name": "spring", "kind": "single"})
        path = f"/v1/campaigns/{campaign['id']}"
        await calls.make(path, {"state": "active"}, method="PATCH")
        batch = await calls.make(f"{path}/batches", {"count": 5})
        await calls.make("/v1/codes/void", {"batch": batch["id"], "reason": "misprint"})
        key = await calls.make("/v1/keys", {"name": "till", "scopes": ["redeem"]})
        assert key["key"].startswith("rk_")
        await calls.make(f"/v1/keys/{key['id']}", {"signing": "optional"}, method="PATCH")
        await calls.make(f"/v1/keys/{key['id']}/signing-secrets")
        await calls.make(f"/v1/keys/{key['id']}", method="DELETE")
        block = {"kind": "user", "subject": "bob", "reason": "stolen"}
        await calls.make("/v1/blocks", block)
