"""A key undoes what it did itself; to undo what other keys did, it needs the scope ``adjust``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import api_keys
from tests.support.deployment import Merchant, engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_what_another_key_did_is_not_found_without_the_scope_for_it(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane) as owner:

        async def other(*scopes: str) -> Merchant:
            key = (await api_keys.create(plane, "other", scopes)).value.key
            return Merchant(owner.session, owner.url, key)

        _, redeemed = await owner.redeem(codes[0])
        _, redeemed_too = await owner.redeem(codes[1])
        holds = []
        for code in codes[2:]:
            body = {"code": code, "user": "ann", "order": "o-1"}
            holds.append((await owner.call("POST", "/v1/holds", json=body))[1]["id"])
        undo = {"reason": "returned"}
        stranger, staff = await other("redeem", "read", "admin"), await other("adjust")
        for path, missing in (
            (f"/v1/redemptions/{redeemed['id']}/rollback", "redemption_not_found"),
            (f"/v1/holds/{holds[0]}/release", "hold_not_found"),
            (f"/v1/holds/{holds[0]}/confirm", "hold_not_found"),
        ):
            status, body = await stranger.call("POST", path, json=undo if "rollback" in path else {})
            assert (status, body["code"]) == (404, missing)
            assert "ann" not in str(body)
        assert (await staff.redeem(codes[0]))[0] == 403
        for merchant, redemption, hold in ((staff, redeemed, holds[0]), (owner, redeemed_too, holds[1])):
            path = f"/v1/redemptions/{redemption['id']}/rollback"
            assert (await merchant.call("POST", path, json=undo))[0] == 200
            assert (await merchant.call("POST", f"/v1/holds/{hold}/release", json={}))[0] == 200
