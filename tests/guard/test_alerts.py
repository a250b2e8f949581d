"""Alerts: one for a cause, listed and acknowledged; floods and keys that send many wrong codes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.control import alerts, erasure
from engine.guard.behaviour import Alarm
from engine.guard.key_rates import EVERY_KEY, EVERY_PAGE, KEYS_MAX, KeyRates
from engine.guard.labels import UNKNOWN, Labelled, Tried
from engine.guard.rules import FLOOD, SERVER_KEY
from engine.settings import Settings
from tests.support.deployment import engine_in_process
from tests.support.dumps import dump_of_database
from tests.support.guessing import made_up
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

KEY = "key_000000000000"


def told(unknown: int, ok: int = 0, key: str = KEY) -> Labelled:
    tried = [Tried(key, "", f"address {number}", "", UNKNOWN, number) for number in range(unknown)]
    return Labelled(tried, {key: ok} if ok else {})


def test_a_flood_is_found_within_half_a_minute_and_a_busy_day_is_none() -> None:
    rates, chance = KeyRates(Settings()), random.Random(1)
    for second in range(3000):  # 3 unknown codes a second is usual here
        assert not rates.hear(told(chance.choice([1, 2, 3, 4, 5]), 200), second)
    found = [(second, one) for second in range(3000, 3060) for one in rates.hear(told(60, 200), second)]
    floods = [(second, one.key) for second, one in found if one.rule == FLOOD and one.is_new]
    assert {key for _, key in floods} == {KEY, EVERY_KEY}
    assert len(floods) == 2
    assert max(second for second, _ in floods) < 3030


def test_a_flood_of_one_key_or_of_server_keys_is_none_of_all_pages() -> None:
    pages = {f"key_{number}" for number in range(9)}
    rates = KeyRates(Settings(), pages)
    found = [one for second in range(60) for one in rates.hear(told(60, key="key_0"), second)]
    assert {one.key for one in found if one.rule == FLOOD} == {"key_0", EVERY_KEY}
    rates = KeyRates(Settings(), pages)
    found = [one for second in range(60) for one in rates.hear(told(60, key="key_server"), second)]
    assert {one.key for one in found if one.rule == FLOOD} == {"key_server", EVERY_KEY}
    rates = KeyRates(Settings(), pages)
    spread = [one for second in range(60) for key in pages for one in rates.hear(told(1, key=key), second)]
    assert {one.key for one in spread} == {EVERY_KEY, EVERY_PAGE}


def test_a_key_with_many_wrong_codes_is_found_once_in_five_minutes() -> None:
    rates = KeyRates(Settings())
    assert not [one for second in range(500) for one in rates.hear(told(1, 5), second)]
    rates = KeyRates(Settings())
    found = [(second, one) for second in range(350) for one in rates.hear(told(2, 5), second)]
    assert [one.rule for _, one in found] == [SERVER_KEY, SERVER_KEY]
    assert found[0][0] < 50
    assert found[0][1].evidence["unknown"] == 58


def test_the_rates_of_keys_stay_bounded() -> None:
    rates = KeyRates(Settings())
    for number in range(KEYS_MAX + 100):
        rates.hear(told(1, key=f"key_{number}"), 1)
    assert len(rates._keys) == KEYS_MAX


async def test_one_cause_has_one_alert_in_its_time(plane: ControlPlane) -> None:
    alarm = Alarm("leaked_list", "leaked_list:1", "a list", KEY, {"spent": 10}, "user", "Ann Erased")
    for _ in range(3):
        await alerts.raise_alert(plane, alarm, 2)
    await alerts.raise_alert(plane, alarm._replace(cause="leaked_list:2", kind=None, subject=None), 1)
    found = await alerts.page(plane, state=None, after=None, limit=9)
    assert [(one.cause, one.count) for one in found] == [("leaked_list:2", 1), ("leaked_list:1", 6)]
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE alerts SET created_at = now() - interval '301 seconds'")
    await alerts.raise_alert(plane, alarm, 1)
    assert len(await alerts.page(plane, state="open", after=None, limit=9)) == 3


async def test_an_alert_of_an_erased_user_does_not_name_it(plane: ControlPlane) -> None:
    alarm = Alarm("leaked_list", "leaked_list:1", "a list", KEY, {"spent": 10}, "user", "Ann Erased")
    await alerts.raise_alert(plane, alarm, 1)
    await erasure.erase(plane, "Ann Erased", actor="cli")
    assert "Ann Erased" not in await dump_of_database(plane)


async def test_old_alerts_are_forgotten(plane: ControlPlane) -> None:
    await alerts.raise_alert(plane, Alarm("flood", "flood:all", "a flood", None, {}), 1)
    await alerts.forget_old(plane)
    assert len(await alerts.page(plane, state=None, after=None, limit=9)) == 1
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE alerts SET last_at = now() - interval '8 days'")
    await alerts.forget_old(plane)
    assert not await alerts.page(plane, state=None, after=None, limit=9)


async def test_a_flood_raises_an_alert_that_is_listed_and_acknowledged_over_http(plane: ControlPlane) -> None:
    settings = {"guard_flood_mode": "observe", "guard_flood_codes_per_s": 1}
    async with engine_in_process(plane, scopes=("redeem", "admin"), **settings) as merchant:
        chance = random.Random(1)
        items = [{"code": made_up(chance), "user": f"u{number}"} for number in range(70)]
        await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})

        async def are_there() -> bool:
            _, listed = await merchant.call("GET", "/v1/alerts?state=open")
            return len(listed["items"]) == 2

        await wait_until_async(are_there)
        _, listed = await merchant.call("GET", "/v1/alerts")
        assert {one["rule"] for one in listed["items"]} == {"flood"}
        assert {one["api_key"] is None for one in listed["items"]} == {True, False}
        alert = listed["items"][0]["id"]
        status, answer = await merchant.call("POST", f"/v1/alerts/{alert}/acknowledge")
        assert (status, answer["acknowledged_by"][:4]) == (200, "key_")
        _, listed = await merchant.call("GET", "/v1/alerts?state=open")
        assert len(listed["items"]) == 1
        assert (await merchant.call("POST", "/v1/alerts/alr_999/acknowledge"))[0] == 404
        assert (await merchant.call("GET", "/v1/alerts?state=other"))[0] == 400
