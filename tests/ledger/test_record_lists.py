"""Lists of records by user, campaign, order, time and state, and what became of each redemption."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import pytest

from engine.ledger.record import Position, RedemptionFilter
from engine.ledger.redemptions import Records
from engine.store import events
from tests.support.deployment import engine_in_process, issue
from tests.support.records import Moving, ids, persist, whole_list
from tests.support.streams import count_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

USERS: Final = ("ann", "Zoë / 2", "b&b")
ORDERS: Final = (None, "o-1", "o 2", "1+1")
STATES: Final = ("redeemed", "partly_rolled_back", "rolled_back")


def position(redemption: str) -> Position:
    event_id = events.parse_id(redemption)
    assert event_id is not None
    return Position.of(event_id)


async def roll_back(merchant: Merchant, redemption: str, **fields: object) -> dict[str, Any]:
    body = {"reason": "returned", **fields}
    status, answer = await merchant.call("POST", f"/v1/redemptions/{redemption}/rollback", json=body)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


async def hold_and_confirm(merchant: Merchant, code: str, user: str, order: str) -> dict[str, Any]:
    status, held = await merchant.call(
        "POST", "/v1/holds", json={"code": code, "user": user, "order": order, "amount": 500}
    )
    assert status == 200, held
    status, confirmed = await merchant.call("POST", f"/v1/holds/{held['id']}/confirm")
    assert (status, confirmed["status"]) == (200, "redeemed")
    assert isinstance(confirmed, dict)
    return confirmed


async def record(merchant: Merchant, redemption: str) -> dict[str, Any]:
    status, found = await merchant.call("GET", f"/v1/redemptions/{redemption}")
    assert status == 200, found
    assert isinstance(found, dict)
    return found


@dataclass
class Made:
    """A redemption as the test remembers it."""

    id: str
    user: str
    campaign: str
    order: str | None
    amount: int | None
    at: str
    given_back: int | None = None

    @property
    def state(self) -> str:
        if self.given_back is None:
            return "redeemed"
        return "rolled_back" if self.given_back == (self.amount or 0) else "partly_rolled_back"


@dataclass
class History:
    """Redeems, holds, confirms and rolls back by chance, and knows what was done."""

    merchant: Merchant
    chance: random.Random
    codes: dict[str, list[str]]  # of each campaign; those of the second hold 1000 each
    made: list[Made] = field(default_factory=list)

    async def act(self) -> None:
        if self.made and self.chance.random() < 0.4:
            await self.roll_one_back()
        else:
            await self.redeem()

    async def redeem(self) -> None:
        campaign = self.chance.choice(list(self.codes))
        amounts = list(self.codes).index(campaign) == 1
        user, order = self.chance.choice(USERS), self.chance.choice(ORDERS)
        code = self.codes[campaign].pop()
        if amounts and order is not None and self.chance.random() < 0.5:
            body = await hold_and_confirm(self.merchant, code, user, order)
        else:
            fields: dict[str, Any] = {} if order is None else {"order": order}
            fields |= {"amount": self.chance.choice((1, 300, 1000))} if amounts else {}
            status, body = await self.merchant.redeem(code, user, **fields)
            assert status == 200, body
        self.made.append(Made(body["id"], user, campaign, order, body["amount"], body["redeemed_at"]))

    async def roll_one_back(self) -> None:
        standing = [made for made in self.made if made.state != "rolled_back"]
        if standing:
            made = self.chance.choice(standing)
            left = (made.amount or 0) - (made.given_back or 0)
            part = self.chance.randint(1, left) if left else None
            await roll_back(self.merchant, made.id, **({} if part is None else {"amount": part}))
            made.given_back = (made.given_back or 0) + (part or 0)

    def question(self) -> tuple[str, list[Made]]:
        """A list that may be asked for, and what it must have."""
        chance, one = self.chance, self.chance.choice(self.made)
        asked: dict[str, str] = {}
        named = chance.sample(("user", "campaign", "order"), chance.randint(1, 3))
        for name in named:
            if getattr(one, name) is not None:
                asked[name] = getattr(one, name)
        if not asked:
            asked["user"] = one.user
        ends = sorted(chance.sample([made.at for made in self.made], 2))
        if chance.random() < 0.3:
            asked["from"] = ends[0]
        if chance.random() < 0.3:
            asked["to"] = ends[1].replace("Z", "+00:00")
        if chance.random() < 0.6:
            asked["state"] = chance.choice(STATES)
        found = [
            made
            for made in self.made
            if all(
                getattr(made, name) == asked[name] for name in ("user", "campaign", "order") if name in asked
            )
            and asked.get("state", made.state) == made.state
            and asked.get("from", made.at) <= made.at
            and ("to" not in asked or made.at < ends[1])
        ]
        return urlencode(asked, quote_via=quote), sorted(
            found, key=lambda made: position(made.id), reverse=True
        )


@pytest.fixture
async def codes(plane: ControlPlane) -> dict[str, list[str]]:
    """Of a campaign without amounts, and of one whose codes hold 1000."""
    plain, plain_codes = await issue(plane, 80)
    money, money_codes = await issue(plane, 80, kind="balance", amount=1000, currency="EUR", budget=10**6)
    return {plain: plain_codes, money: money_codes}


@pytest.mark.parametrize("shards", [1, 3])
async def test_every_combination_of_filters_finds_exactly_what_it_names(
    plane: ControlPlane, codes: dict[str, list[str]], shards: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}, {shards} shards")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    settings = replace(plane.settings, persist_batch_max=9)
    async with engine_in_process(plane, state_scan_max=chance.choice((1, 4, 1000))) as merchant:
        history = History(merchant, chance, codes)
        for _ in range(3):
            for _ in range(30):
                await history.act()
            for _ in range(25):
                query, expected = history.question()
                found = await whole_list(merchant, query, chance.choice((1, 2, 5, 100)))
                assert ids(found) == [made.id for made in expected], query
                shown = [(item["status"], item["amount"], item["rolled_back"]) for item in found]
                assert shown == [
                    (made.state, made.amount, None if made.amount is None else made.given_back or 0)
                    for made in expected
                ]
            for made in chance.sample(history.made, 5):
                found_one = await record(merchant, made.id)
                assert found_one["status"] == made.state
                told = [since["amount"] or 0 for since in found_one["history"]]
                assert (sum(told) if told else None) == made.given_back
            if chance.random() < 0.7:
                await persist(settings)


@pytest.mark.parametrize("shards", [1, 2])
async def test_paging_by_state_stays_right_while_redemptions_are_made_rolled_back_and_moved(
    plane: ControlPlane, codes: dict[str, list[str]], shards: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}, {shards} shards")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    settings = replace(plane.settings, persist_batch_max=7)
    async with engine_in_process(plane, state_scan_max=6) as merchant:
        history = History(merchant, chance, codes)

        async def pages(query: str) -> AsyncIterator[list[dict[str, Any]]]:
            after = ""
            while True:
                _, page = await merchant.call("GET", f"/v1/redemptions?{query}{after}")
                yield page["items"]
                if page["next"] is None:
                    return
                after = f"&after={page['next']}"

        for _ in range(6):
            for _ in range(10):
                await history.act()
            campaign, state = chance.choice(list(codes)), chance.choice(STATES)
            before = {made.id: made.state for made in history.made if made.campaign == campaign}
            shown: list[dict[str, Any]] = []
            async for items in pages(f"campaign={campaign}&state={state}&limit={chance.randint(1, 4)}"):
                shown += items
                if chance.random() < 0.5:
                    await history.act()
                if chance.random() < 0.2:
                    await persist(settings)
            after = {made.id: made.state for made in history.made if made.campaign == campaign}
            places = [position(item["id"]) for item in shown]
            assert places == sorted(set(places), reverse=True)
            assert {item["status"] for item in shown} <= {state}
            always = {made for made, was in before.items() if was == state and after[made] == state}
            ever = {made for made, now in after.items() if state in {now, before.get(made, "redeemed")}}
            assert always <= set(ids(shown))
            if state != "partly_rolled_back":  # which a redemption may become and cease to be meanwhile
                assert set(ids(shown)) <= ever


async def test_from_is_included_and_to_is_not(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 3)
    async with engine_in_process(plane) as merchant:
        made = [(await merchant.redeem(code))[1] for code in codes]
        for _ in ("stream", "ledger"):
            at = made[1]["redeemed_at"]
            day, clock = at.removesuffix("Z").split("T")
            query = f"campaign={campaign}"
            same = [item["id"] for item in made if item["redeemed_at"] == at]
            later = [item["id"] for item in made if item["redeemed_at"] > at]
            earlier = [item["id"] for item in made if item["redeemed_at"] < at]
            for zone in ("Z", "%2B00:00", "-00:00"):
                shown = await whole_list(merchant, f"{query}&from={day}T{clock}{zone}")
                assert set(ids(shown)) == {*same, *later}
                shown = await whole_list(merchant, f"{query}&to={day}T{clock}{zone}")
                assert set(ids(shown)) == {*earlier}
            assert await whole_list(merchant, f"{query}&from={at}&to={at}") == []
            assert await whole_list(merchant, f"{query}&from={at}&to=1970-01-01T00:00:00Z") == []
            assert (
                len(await whole_list(merchant, f"{query}&from=1970-01-01T00:00:00Z&to=9999-12-31T00:00:00Z"))
                == 3
            )
            await persist(plane.settings)


async def test_a_hold_that_was_confirmed_is_a_redemption_like_any_other(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 3, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        confirmed = await hold_and_confirm(merchant, codes[0], "ann", "o-1")
        status, held = await merchant.call(
            "POST", "/v1/holds", json={"code": codes[1], "user": "ann", "order": "o-1"}
        )
        assert status == 200
        await merchant.call("POST", f"/v1/holds/{held['id']}/release")
        of_stream = await record(merchant, confirmed["id"])
        for _ in ("stream", "ledger"):
            assert await record(merchant, confirmed["id"]) == of_stream
            for query in (
                "user=ann",
                f"campaign={campaign}",
                "order=o-1",
                "order=o-1&user=ann&state=redeemed",
            ):
                assert ids(await whole_list(merchant, query)) == [confirmed["id"]], query
            for other in (held["id"], "0-" + str(int(held["id"].split("-")[1]) + 1) + "-0"):
                status, answer = await merchant.call("GET", f"/v1/redemptions/{other}")
                assert (status, answer["code"]) == (404, "redemption_not_found")
            await persist(plane.settings)
        await roll_back(merchant, confirmed["id"])
        assert (await record(merchant, confirmed["id"]))["status"] == "rolled_back"
    assert (of_stream["status"], of_stream["user"], of_stream["order"]) == ("redeemed", "ann", "o-1")
    assert (of_stream["batch"], of_stream["serial"], of_stream["last4"]) == (0, 0, codes[0][-4:])
    assert (of_stream["amount"], of_stream["currency"], of_stream["campaign"]) == (500, "EUR", campaign)


async def test_a_record_tells_what_was_given_back_wherever_the_events_are(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        _, redeemed = await merchant.redeem(code, amount=900)
        steps = ((None, "redeemed", 0), (200, "partly_rolled_back", 200), (700, "rolled_back", 900))
        shown: dict[str, Any] = {}
        for amount, status, given_back in steps:
            if amount is not None:
                await roll_back(merchant, redeemed["id"], amount=amount)
            shown = await record(merchant, redeemed["id"])
            assert (shown["status"], shown["amount"], shown["rolled_back"]) == (status, 900, given_back)
            assert [since["type"] for since in shown["history"]] == ["rolled_back"] * steps.index(
                (amount, status, given_back)
            )
            assert sum(since["amount"] for since in shown["history"]) == given_back
            await persist(plane.settings)
            assert await record(merchant, redeemed["id"]) == shown
            (listed,) = await whole_list(merchant, f"user=ann&state={status}")
            assert listed == {name: value for name, value in shown.items() if name != "history"}
        times = [since["at"] for since in shown["history"]]
        assert times == sorted(times)
        assert all(
            since["at"].endswith("Z") and since["actor"].startswith("key_") for since in shown["history"]
        )


async def test_without_an_amount_a_rollback_is_whole(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        for code in codes:
            _, redeemed = await merchant.redeem(code)
            await roll_back(merchant, redeemed["id"])
            shown = await record(merchant, redeemed["id"])
            assert (shown["status"], shown["amount"], shown["rolled_back"]) == ("rolled_back", None, None)
            assert [since["amount"] for since in shown["history"]] == [None]
            await persist(plane.settings)
            assert await record(merchant, redeemed["id"]) == shown


async def test_a_status_is_right_however_far_the_ledger_is_behind(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 30, amount=5, currency="EUR")
    async with engine_in_process(plane, tail_scan_max=2) as merchant:
        made = [(await merchant.redeem(code))[1]["id"] for code in codes[:10]]
        await persist(plane.settings)
        for redemption in made[:5]:
            await roll_back(merchant, redemption)
        made += [
            (await merchant.redeem(code))[1]["id"] for code in codes[10:]
        ]  # the rollbacks are out of sight
        assert (await record(merchant, made[0]))["status"] == "rolled_back"
        states = {item["id"]: item["status"] for item in await whole_list(merchant, f"campaign={campaign}")}
        assert states == {
            redemption: "rolled_back" if at < 5 else "redeemed" for at, redemption in enumerate(made)
        }
        redeemed = await whole_list(merchant, f"campaign={campaign}&state=redeemed", 7)
        assert ids(redeemed) == made[:4:-1]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("reads_before", [0, 1])
async def test_a_rollback_that_moves_to_the_ledger_while_it_is_looked_for_is_reported_once(
    plane: ControlPlane, reads_before: int, before: bool
) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    moving: Any = Moving(plane, before=before)
    records = Records(plane.database, moving, tail_scan_max=100)
    async with engine_in_process(plane) as merchant:
        _, redeemed = await merchant.redeem(code, amount=900)
        for part in range(1, 4):
            await persist(plane.settings)
            await roll_back(merchant, redeemed["id"], amount=100)
            moving.reads_left = reads_before
            shown = await records.one(redeemed["id"])
            assert (shown["rolled_back"], len(shown["history"])) == (100 * part, part)
        await roll_back(merchant, redeemed["id"], amount=100)
        moving.reads_left = reads_before
        wanted = RedemptionFilter(campaign=campaign, state="partly_rolled_back")
        (item,) = (await records.page(wanted, after=None, limit=5)).items
        assert item["rolled_back"] == 400


async def test_a_redemption_of_the_stream_is_whole_without_postgresql(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code,) = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        _, redeemed = await merchant.redeem(code, amount=900)
        await roll_back(merchant, redeemed["id"], amount=100)
        assert await count_events(redis, 0) == 2
    async with engine_in_process(plane, database_url="postgresql://127.0.0.1:1/none") as merchant:
        shown = await record(merchant, redeemed["id"])
        assert (shown["status"], shown["rolled_back"]) == ("partly_rolled_back", 100)
        assert [since["amount"] for since in shown["history"]] == [100]
