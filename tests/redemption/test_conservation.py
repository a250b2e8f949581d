"""Nothing is made and nothing is lost, whatever many clients do to the same codes at once.

Counted three ways: from the answers that the clients got, from Redis, and from the ledger, which the
lifecycle model replays.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.store import keys
from loadtest.lifecycle import ModelCampaign
from loadtest.replay import LedgerReplay
from tests.support.deployment import Process, engine_of_processes, issue
from tests.support.ledger_rows import ledger_after_stop, recorded_row

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from tests.support.deployment import Merchant

WORKERS: Final = 2
CLIENTS: Final = 16
STEPS: Final = 30
FACE: Final = 1000
PARTLY: Final = 0.5
GIVES: Final = ("redeemed", "confirmed")


@dataclass
class Answered:
    """What the answers said: of each code, by what happened to it, how often and how much."""

    amounts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    times: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def note(self, code: str, what: str, amount: int | None) -> None:
        self.amounts[code][what] += amount or 0
        self.times[code][what] += 1

    def net(self, code: str) -> int:
        """How much was taken from it, in the end."""
        amounts = self.amounts[code]
        return sum(amounts[what] for what in GIVES) - amounts["rolled_back"]

    def uses(self, code: str) -> int:
        """How many redemptions of it stand, in the end."""
        times = self.times[code]
        return sum(times[what] for what in GIVES) - times["whole"]


class Client:
    """One of many that do whatever comes to their mind to the same few codes."""

    def __init__(
        self, merchant: Merchant, codes: list[str], answered: Answered, seed: int, *, part: bool
    ) -> None:
        self.merchant = merchant
        self.codes = codes
        self.answered = answered
        self.random = random.Random(seed)
        self.name = f"user-{seed}"
        self.part = part  # balances: an amount is named
        self.redemptions: list[tuple[str, str]] = []
        self.holds: list[tuple[str, str]] = []

    async def act(self) -> None:
        """Everything once begun is ended: no hold is left."""
        for step in range(STEPS):
            kinds = [self.redeem, self.hold, self.confirm, self.release, self.roll_back]
            await self.random.choice(kinds + [self.adjust] * self.part)(step)
        while self.holds:
            await self.random.choice((self.confirm, self.release))(STEPS)

    async def post(self, path: str, **fields: object) -> Any:  # noqa: ANN401 - JSON, or None where it was refused
        status, body = await self.merchant.call("POST", path, json=fields)
        assert status in {200, 409}, body
        return body if status == 200 else None

    def amount(self, most: int) -> dict[str, int]:
        return {"amount": self.random.randint(1, most)} if self.part else {}

    async def redeem(self, _: int) -> None:
        code = self.random.choice(self.codes)
        body = await self.post("/v1/redemptions", code=code, user=self.name, **self.amount(FACE // 3))
        if body:
            self.answered.note(code, "redeemed", body["amount"])
            self.redemptions.append((code, body["id"]))

    async def hold(self, step: int) -> None:
        code = self.random.choice(self.codes)
        order = f"{self.name}-{self.random.choice((step, 0))}"  # now and then it renews
        body = await self.post("/v1/holds", code=code, user=self.name, order=order, **self.amount(FACE // 2))
        if body and (code, body["id"]) not in self.holds:
            self.holds.append((code, body["id"]))

    def any_hold(self) -> tuple[str, str] | None:
        return self.holds.pop(self.random.randrange(len(self.holds))) if self.holds else None

    async def confirm(self, _: int) -> None:
        if found := self.any_hold():
            less = {"amount": 1} if self.part and self.random.random() < PARTLY else {}
            body = await self.post(f"/v1/holds/{found[1]}/confirm", **less)
            assert body, "a hold that is there and has time"
            self.answered.note(found[0], "confirmed", body["amount"])
            self.redemptions.append((found[0], body["id"]))

    async def release(self, _: int) -> None:
        if found := self.any_hold():
            assert await self.post(f"/v1/holds/{found[1]}/release")

    async def adjust(self, _: int) -> None:
        code, amount = self.random.choice(self.codes), self.random.choice((-50, 70))
        if await self.post("/v1/codes/adjust", code=code, amount=amount, reason="a correction"):
            self.answered.note(code, "adjusted", amount)

    async def roll_back(self, _: int) -> None:
        if self.redemptions:
            code, redemption = self.random.choice(self.redemptions)
            body = await self.post(
                f"/v1/redemptions/{redemption}/rollback", reason="a change of mind", **self.amount(FACE // 4)
            )
            if body:
                self.answered.note(code, "rolled_back", body["returned"])
                if body["status"] == "rolled_back":
                    self.answered.times[code]["whole"] += 1


def replayed(rows: list[Any], campaign: ModelCampaign) -> LedgerReplay:
    """The ledger, replayed on the lifecycle model, which allows every event."""
    replay = LedgerReplay(campaign)
    for row in sorted(rows, key=lambda row: row["seq"]):
        assert not replay.apply(recorded_row(row)), row
    return replay


def standing(replay: LedgerReplay, codes: int) -> tuple[list[int], list[int]]:
    """Of each code, by serial: how much was taken, and how many redemptions stand."""
    taken, uses = [0] * codes, [0] * codes
    for redemption in replay.redemptions:
        taken[redemption.code.serial] += redemption.amount - redemption.given_back
        uses[redemption.code.serial] += not redemption.undone
    return taken, uses


@pytest.mark.parametrize("kind", ["balance", "multi", "single"])
async def test_what_is_taken_and_what_is_left_add_up(
    plane: ControlPlane, redis: Redis, database: Database, kind: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    limits: dict[str, Any] = {"max_uses": 9} if kind == "multi" else {}
    count, stock = 4, 11
    budget = 3 * FACE if kind == "balance" else stock * 10
    amount = FACE if kind == "balance" else 10
    campaign, codes = await issue(
        plane, count, kind=kind, amount=amount, currency="EUR", stock=stock, budget=budget, **limits
    )
    answered = Answered()
    async with engine_of_processes(
        plane, workers=WORKERS, scopes=("redeem", "read", "admin"), attempt_deadline_ms=30_000
    ) as merchant:
        with Process(plane.settings, "persister") as persister:
            clients = [
                Client(merchant, codes, answered, seed + number, part=kind == "balance")
                for number in range(CLIENTS)
            ]
            await asyncio.gather(*(one.act() for one in clients))
            left = [
                (await merchant.call("POST", "/v1/codes/check", json={"code": code}))[1] for code in codes
            ]
            rows = await ledger_after_stop(persister, database)
    net, uses = [answered.net(code) for code in codes], [answered.uses(code) for code in codes]
    assert sum(answered.times[code]["redeemed"] for code in codes) > 0
    assert sum(answered.times[code]["rolled_back"] for code in codes) > 0
    terms = ModelCampaign(campaign, kind, amount, limits.get("max_uses"), stock, budget)
    assert standing(replayed(rows, terms), count) == (net, uses)
    assert (terms.uses, terms.spent) == (sum(uses), sum(net))
    counted = await redis.hmget(keys.campaign(0, campaign), "uses", "spent")
    assert [int(value or 0) for value in counted] == [sum(uses), sum(net)]
    assert sum(uses) <= stock
    assert sum(net) <= budget
    assert not await redis.exists(keys.holds(0), keys.held(0), keys.holds_expiry(0))
    if kind == "balance":
        adjusted = [answered.amounts[code]["adjusted"] for code in codes]
        in_rows = Counter[int]()
        for row in rows:
            in_rows[row["serial"]] += row["amount"] if row["type"] == "adjusted" else 0
        assert [in_rows[serial] for serial in range(count)] == adjusted
        assert [card["balance"] + taken for card, taken in zip(left, net, strict=True)] == [
            FACE + more for more in adjusted
        ]
    elif kind == "multi":
        assert [word["uses_left"] for word in left] == [9 - used for used in uses]
    else:
        assert [code["state"] for code in left] == ["redeemed" if used else "fresh" for used in uses]
