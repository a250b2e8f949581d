"""A proxy that nobody told of: its address is not blocked, and an alert says so."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import alerts, blocks
from engine.control.blocks import NewBlock
from engine.guard.one_peer import AGAIN_S, PEERS_MAX, PeerShares
from engine.settings import Settings
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.guessing import guesses, made_up
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

CALLS = 20
WATCHING: dict[str, Any] = FREE | {
    "guard_score_mode": "enforce",
    "guard_one_peer_calls_min": CALLS,
    "guard_share_ms": 10,
    "guard_asked_s": 1,  # asked for a challenge, a page may try again soon
}


async def blocked_after_guesses(plane: ControlPlane, **settings: Any) -> set[str]:  # noqa: ANN401 - by name
    """The addresses that are blocked after a page, and then a merchant's customer, have guessed."""
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **WATCHING | settings) as merchant:
        page = await page_of(plane, merchant, campaign)
        for _ in range(CALLS):
            await page.post("/v1/codes/check", {"code": code})
        if "guard_one_peer_percent" not in settings and "trusted_proxies" not in settings:
            await wait_until_async(lambda: _alerts(plane, "proxy_not_configured"))
        chance, tried = random.Random(1), 0

        async def has_tried_eight() -> bool:
            nonlocal tried
            tried += (await page.redeem(made_up(chance))).code != "challenge_required"
            return tried == 8

        await wait_until_async(has_tried_eight)
        await guesses(merchant, 8, seed=2, user=lambda number: f"u{number}", client={"ip": "203.0.113.9"})

        async def found() -> set[str]:
            active = await blocks.page(plane, kind=None, subject=None, state="active", after=None, limit=9)
            addresses = {block.subject for block in active if block.action == "block"}
            return addresses if "203.0.113.9" in addresses else set()

        return await wait_until_async(found)


async def _alerts(plane: ControlPlane, rule: str) -> list[alerts.Alert]:
    found = await alerts.page(plane, state="open", after=None, limit=9)
    return [alert for alert in found if alert.rule == rule]


async def test_the_only_address_of_pages_is_not_blocked_and_an_alert_says_so(plane: ControlPlane) -> None:
    assert await blocked_after_guesses(plane) == {"203.0.113.9"}
    [alert] = await _alerts(plane, "proxy_not_configured")
    assert (alert.kind, alert.subject) == ("network", "127.0.0.1")
    assert alert.evidence == {"percent": 100, "calls": CALLS}


@pytest.mark.parametrize("setting", [{"guard_one_peer_percent": 0}, {"trusted_proxies": "10.0.0.0/8"}])
async def test_it_is_blocked_where_the_proxies_are_known_or_nobody_asks(
    plane: ControlPlane, setting: dict[str, Any]
) -> None:
    assert await blocked_after_guesses(plane, **setting) == {"127.0.0.1", "203.0.113.9"}
    assert not await _alerts(plane, "proxy_not_configured")


async def test_an_allowed_address_is_no_proxy(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    allow = NewBlock(kind="network", subject="127.0.0.1", action="allow", reason="our shop")
    await blocks.create(plane, allow, actor="cli")
    async with engine_in_process(plane, **WATCHING) as merchant:
        page = await page_of(plane, merchant, campaign)
        for _ in range(CALLS):
            await page.post("/v1/codes/check", {"code": code})
        await blocks.lift(plane, "blk_1", actor="cli")

        async def is_found() -> bool:
            await page.post("/v1/codes/check", {"code": code})
            return bool(await _alerts(plane, "proxy_not_configured"))

        await wait_until_async(is_found)
    [alert] = await _alerts(plane, "proxy_not_configured")
    assert alert.evidence == {"percent": 100, "calls": CALLS}  # of those after the allow


def test_the_share_must_be_above_the_setting_among_enough_calls() -> None:
    shares = PeerShares(Settings(guard_one_peer_calls_min=10))
    assert not [1 for number in range(1000) if shares.note("a" if number % 5 else "b", 1.0)]  # 80 %, not more
    shares = PeerShares(Settings(guard_one_peer_calls_min=10))
    found = [one for number in range(59) if (one := shares.note("a" if number % 6 else "b", 1.0 + number))]
    assert [(one.address, one.percent, one.calls) for one in found] == [("a", 81, 11)]
    assert shares.note("a", 12.0 + AGAIN_S) is not None  # still so
    shares = PeerShares(Settings(guard_one_peer_calls_min=10, guard_one_peer_s=5))
    assert not [1 for second in range(100) if shares.note("a", float(second))]  # never ten within 5 s


def test_a_clock_that_jumps_begins_a_new_count() -> None:
    shares = PeerShares(Settings(guard_one_peer_calls_min=10))
    for _ in range(9):
        shares.note("a", 1e9)
    assert [bool(shares.note("a", 1.0)) for _ in range(10)] == [False] * 9 + [True]


def test_the_counted_addresses_stay_bounded() -> None:
    shares = PeerShares(Settings())
    for number in range(PEERS_MAX + 100):
        assert shares.note(f"address {number}", 1.0) is None
    assert len(shares) == PEERS_MAX
