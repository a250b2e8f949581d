"""What is answered to each operation in each state: ``docs/states.md`` is what a real engine answers here.

``REDEEM_TEST_WRITE_STATES=1`` with this test writes the document's tables anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import campaigns
from engine.store import keys
from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "states.md"
NEVER_MS: Final = 3_600_000
NONE: Final = "-"
MONEY: Final = {"amount": 100, "currency": "EUR"}


@dataclass
class Code:
    """A code brought into a state, and what that left behind."""

    scene: Scene
    serial: int
    text: str
    hold: str = ""
    redemption: str = ""

    async def post(self, path: str, **fields: object) -> Any:  # noqa: ANN401 - JSON
        _, body = await self.scene.merchant.call("POST", path, json=fields)
        return body

    @property
    def amount(self) -> dict[str, int]:
        return {"amount": 60} if self.scene.kind == "balance" else {}

    async def redeem(self, **fields: object) -> Any:  # noqa: ANN401 - JSON
        body = {"code": self.text, "user": "ann", **self.amount, **fields}
        return await self.post("/v1/redemptions", **body)

    async def hold_for(self, order: str) -> Any:  # noqa: ANN401 - JSON
        return await self.post("/v1/holds", code=self.text, user="ann", order=order, **self.amount)


@dataclass
class Scene:
    """One campaign, all of whose codes are in the same state; and fresh codes of another campaign."""

    merchant: Merchant
    plane: ControlPlane
    redis: Redis
    kind: str
    campaign: str
    others: list[str]
    codes: list[Code] = field(default_factory=list)


Prepare = Callable[[Code], Awaitable[None]]
Change = Callable[[Scene], Awaitable[None]]


async def fresh(_: Code) -> None:
    """As it was minted."""


async def redeemed(code: Code) -> None:
    code.redemption = (await code.redeem(order="o1"))["id"]


async def held(code: Code) -> None:
    code.hold = (await code.hold_for("o1"))["id"]


async def held_by_another(code: Code) -> None:
    code.hold = (await code.hold_for("o2"))["id"]


async def held_too_long(code: Code) -> None:
    await held_by_another(code)
    redis, (shard, _, stream_id) = code.scene.redis, code.hold.partition("-")
    record: Any = await redis.hget(keys.holds(int(shard)), stream_id)
    await redis.hset(keys.holds(int(shard)), stream_id, b"1\n" + record.partition(b"\n")[2])
    await redis.zadd(keys.holds_expiry(int(shard)), {stream_id: 1})


async def void(code: Code) -> None:
    await code.post("/v1/codes/void", code=code.text, reason="stolen")


async def held_and_void(code: Code) -> None:
    await held(code)
    await void(code)


async def rolled_back(code: Code) -> None:
    await redeemed(code)
    await code.post(f"/v1/redemptions/{code.redemption}/rollback", reason="cancelled")


async def rolled_back_and_void(code: Code) -> None:
    await redeemed(code)
    await code.post(f"/v1/redemptions/{code.redemption}/rollback", reason="cancelled", void=True)


async def nothing(_: Scene) -> None:
    """The campaign stays active."""


async def void_batch(scene: Scene) -> None:
    page = await scene.merchant.call("GET", f"/v1/campaigns/{scene.campaign}/batches")
    batch = page[1]["items"][0]["id"]
    await scene.merchant.call("POST", "/v1/codes/void", json={"batch": batch, "reason": "leaked"})


def campaign_becomes(**changes: Any) -> Change:  # noqa: ANN401 - fields of a campaign, by name
    async def change(scene: Scene) -> None:
        await campaigns.update(scene.plane, scene.campaign, campaigns.CampaignChange(**changes))

    return change


async def window_is_over(scene: Scene) -> None:
    for shard in range(scene.plane.settings.shards):
        await scene.redis.hset(keys.campaign(shard, scene.campaign), "ends_at_ms", "1")


async def window_is_to_come(scene: Scene) -> None:
    for shard in range(scene.plane.settings.shards):
        await scene.redis.hset(keys.campaign(shard, scene.campaign), "starts_at_ms", "9000000000000")


# Section, state, kind, fields of the campaign, what is done to each code, what is then done to all.
ROWS: Final[tuple[tuple[str, str, str, dict[str, Any], Prepare, Change], ...]] = (
    ("single", "fresh", "single", {}, fresh, nothing),
    ("single", "redeemed", "single", {}, redeemed, nothing),
    ("single", "held by order o1", "single", {}, held, nothing),
    ("single", "held by order o2", "single", {}, held_by_another, nothing),
    ("single", "held, time is over", "single", {}, held_too_long, nothing),
    ("single", "void", "single", {}, void, nothing),
    ("single", "held by o1 and void", "single", {}, held_and_void, nothing),
    ("single", "void by its batch", "single", {}, fresh, void_batch),
    ("single", "held by o1, void by its batch", "single", {}, held, void_batch),
    ("single", "rolled back", "single", {}, rolled_back, nothing),
    ("single", "rolled back and void", "single", {}, rolled_back_and_void, nothing),
    ("multi", "fresh", "multi", {"max_uses": 1}, fresh, nothing),
    ("multi", "used up", "multi", {"max_uses": 1}, redeemed, nothing),
    ("multi", "held by order o1", "multi", {"max_uses": 1}, held, nothing),
    ("multi", "void", "multi", {"max_uses": 1}, void, nothing),
    ("balance", "full: 100", "balance", {}, fresh, nothing),
    ("balance", "40 left", "balance", {}, redeemed, nothing),
    ("balance", "40 left, 60 held by o1", "balance", {}, held, nothing),
    ("balance", "void", "balance", {}, void, nothing),
    ("campaign", "draft, code fresh", "single", {"state": "draft"}, fresh, nothing),
    ("campaign", "paused, code fresh", "single", {}, fresh, campaign_becomes(state="paused")),
    ("campaign", "paused, held by o1", "single", {}, held, campaign_becomes(state="paused")),
    ("campaign", "paused, redeemed", "single", {}, redeemed, campaign_becomes(state="paused")),
    ("campaign", "not started, code fresh", "single", {}, fresh, window_is_to_come),
    ("campaign", "window over, code fresh", "single", {}, fresh, window_is_over),
    ("campaign", "window over, held by o1", "single", {}, held, window_is_over),
    ("campaign", "ended, code fresh", "single", {}, fresh, campaign_becomes(state="ended")),
    ("campaign", "ended, held by o1", "single", {}, held, campaign_becomes(state="ended")),
    ("campaign", "ended, redeemed", "single", {}, redeemed, campaign_becomes(state="ended")),
)


def shown(body: dict[str, Any]) -> str:
    """The cell: the status of a success, the code of a refusal."""
    if "redeemable" in body:
        return "redeemable" if body["redeemable"] else f"*{body['refusal']}*"
    if "redemptions" in body:
        return "redeemed"
    if body.get("changed") is False:
        return f"{body['status']}, as it was"
    return str(body["status"]) if "code" not in body or "detail" not in body else f"*{body['code']}*"


async def check(code: Code) -> str:
    return shown(await code.post("/v1/codes/check", code=code.text, user="ann"))


async def redeem(code: Code) -> str:
    return shown(await code.redeem())


async def redeem_for_o1(code: Code) -> str:
    return shown(await code.redeem(order="o1"))


async def hold_for_o1(code: Code) -> str:
    return shown(await code.hold_for("o1"))


async def combined(code: Code) -> str:
    """Together with a fresh code that is on another shard, if there are several."""
    items = [{"code": code.text, **code.amount}, {"code": code.scene.others[code.serial + 1]}]
    return shown(await code.post("/v1/redemptions/combined", codes=items, user="ann", order="o1"))


async def confirm(code: Code) -> str:
    return shown(await code.post(f"/v1/holds/{code.hold}/confirm")) if code.hold else NONE


async def release(code: Code) -> str:
    return shown(await code.post(f"/v1/holds/{code.hold}/release")) if code.hold else NONE


async def roll_back(code: Code) -> str:
    path = f"/v1/redemptions/{code.redemption}/rollback"
    return shown(await code.post(path, reason="cancelled")) if code.redemption else NONE


async def make_void(code: Code) -> str:
    return shown(await code.post("/v1/codes/void", code=code.text, reason="stolen"))


async def unvoid(code: Code) -> str:
    return shown(await code.post("/v1/codes/unvoid", code=code.text, reason="found"))


async def adjust(code: Code) -> str:
    return shown(await code.post("/v1/codes/adjust", code=code.text, amount=5, reason="goodwill"))


COLUMNS: Final[tuple[tuple[str, Callable[[Code], Awaitable[str]]], ...]] = (
    ("check", check),
    ("redeem", redeem),
    ("redeem for o1", redeem_for_o1),
    ("hold for o1", hold_for_o1),
    ("combined for o1", combined),
    ("confirm its hold", confirm),
    ("release its hold", release),
    ("roll back its redemption", roll_back),
    ("void", make_void),
    ("unvoid", unvoid),
    ("adjust", adjust),
)


async def tables(plane: ControlPlane, redis: Redis, merchant: Merchant) -> dict[str, str]:
    """The tables of the document, by section."""
    found: dict[str, list[str]] = {}
    for section, name, kind, fields, prepare, change in ROWS:
        with_money: dict[str, Any] = MONEY | fields
        campaign, texts = await issue(plane, len(COLUMNS), kind=kind, **with_money)
        _, others = await issue(plane, len(COLUMNS) + 1)
        scene = Scene(merchant, plane, redis, kind, campaign, others)
        scene.codes = [Code(scene, serial, text) for serial, text in enumerate(texts)]
        for code in scene.codes:
            await prepare(code)
        await change(scene)
        cells = [await operation(code) for (_, operation), code in zip(COLUMNS, scene.codes, strict=True)]
        head = [
            "| state | " + " | ".join(title for title, _ in COLUMNS) + " |",
            "|---" * (len(COLUMNS) + 1) + "|",
        ]
        found.setdefault(section, head).append(f"| {name} | " + " | ".join(cells) + " |")
    return {section: "\n".join(lines) for section, lines in found.items()}


@pytest.mark.parametrize("shards", [1, 2])
async def test_the_document_says_what_the_engine_answers(plane: ControlPlane, redis: Redis) -> None:
    scopes = ("redeem", "read", "admin")
    async with engine_in_process(plane, scopes=scopes, hold_expiry_interval_ms=NEVER_MS) as merchant:
        answered = await tables(plane, redis, merchant)
    document = DOCUMENT.read_text(encoding="utf-8")
    for section, table in answered.items():
        pattern = re.compile(rf"(<!-- table: {section} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        assert pattern.search(document), section
        document = pattern.sub(lambda match, table=table: match[1] + table + match[2], document)  # type: ignore[misc] # of this turn
    if os.environ.get("REDEEM_TEST_WRITE_STATES"):
        DOCUMENT.write_text(document, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == document
