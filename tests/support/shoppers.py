"""Random shoppers: they make every kind of call on codes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.support.deployment import issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

KINDS: dict[str, dict[str, Any]] = {
    "single": {"amount": 500, "currency": "EUR"},
    "limited": {"amount": 500, "currency": "EUR", "per_user_limit": 20, "stock": 1000, "budget": 1_000_000},
    "multi": {"kind": "multi", "max_uses": 50, "per_user_limit": 1000},
    "balance": {"kind": "balance", "amount": 1000, "currency": "EUR", "stock": 100_000},
}


async def issue_all(plane: ControlPlane, count: int) -> dict[str, list[str]]:
    """Create a campaign of each kind; return the codes by kind."""
    return {name: (await issue(plane, count, **fields))[1] for name, fields in KINDS.items()}


class Shopper:
    """One shopper. ``act`` makes ``steps`` calls, most of them redemptions."""

    def __init__(self, merchant: Merchant, codes: dict[str, list[str]], seed: int) -> None:
        self.merchant = merchant
        self.codes = codes
        self.random = random.Random(seed)
        self.seed = seed
        self.name = f"user-{seed}"
        self.redemptions: list[tuple[str, str]] = []  # id, kind
        self.holds: list[tuple[str, str]] = []

    async def act(self, steps: int) -> None:
        acts = [self.redeem, self.redeem, self.hold, self.hold, self.end_hold, self.roll_back, self.change]
        for step in range(steps):
            await self.random.choice(acts)(step)

    async def post(self, path: str, **fields: object) -> Any:  # noqa: ANN401 - JSON, or None where it was refused
        status, body = await self.merchant.call("POST", path, json=fields)
        assert status in {200, 409}, body
        return body if status == 200 else None

    def pick(self) -> tuple[str, str, dict[str, Any]]:
        kind = self.random.choice(list(self.codes))
        amount = {"amount": self.random.randint(1, 60)} if kind == "balance" else {}
        return kind, self.random.choice(self.codes[kind]), amount

    async def redeem(self, _: int) -> None:
        kind, code, amount = self.pick()
        if body := await self.post("/v1/redemptions", code=code, user=self.name, **amount):
            self.redemptions.append((body["id"], kind))

    async def hold(self, step: int) -> None:
        kind, code, amount = self.pick()
        order = f"{self.name}-{self.random.choice((step, 0))}"
        ttl = {"ttl_s": 1} if self.random.random() < 0.3 else {}
        if body := await self.post("/v1/holds", code=code, user=self.name, order=order, **amount, **ttl):
            self.holds.append((body["id"], kind))

    async def end_hold(self, _: int) -> None:
        if self.holds:
            hold, kind = self.holds.pop(self.random.randrange(len(self.holds)))
            path = self.random.choice(("confirm", "release"))
            status, body = await self.merchant.call("POST", f"/v1/holds/{hold}/{path}", json={})
            assert status in {200, 404, 409}, body
            if status == 200 and path == "confirm":
                self.redemptions.append((body["id"], kind))

    async def roll_back(self, _: int) -> None:
        if self.redemptions:
            redemption, kind = self.random.choice(self.redemptions)
            amount = {"amount": self.random.randint(1, 60)} if kind == "balance" else {}
            await self.post(f"/v1/redemptions/{redemption}/rollback", reason="a change of mind", **amount)

    async def change(self, _: int) -> None:
        _kind, code, _amount = self.pick()
        path = self.random.choice(("void", "unvoid", "unvoid"))
        await self.post(f"/v1/codes/{path}", code=code, reason="a check")
        if self.codes.get("balance"):
            balance = self.random.choice(self.codes["balance"])
            await self.post("/v1/codes/adjust", code=balance, amount=7, reason="a correction")
