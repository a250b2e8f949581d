"""Webhooks that ask for alerts get them, signed and retried; no other webhook does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import alerts, erasure
from engine.errors import Refusal
from engine.guard.behaviour import Alarm
from engine.ledger.feed import BEGINNING
from engine.webhooks import changes, endpoints
from engine.webhooks.changes import NewWebhook, Replay, WebhookChange
from tests.support.endpoints import Events, delivering, receiving
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.streams import Ledger

BOTH: Final = ["alert.raised", "alert.acknowledged"]
ALARM: Final = Alarm("leaked_list", "leaked_list:1", "a list", "key_1", {"spent": 10}, "user", "Ann Erased")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhooks_allow_private=True, webhook_retry_s="0.01", webhook_poll_ms=10)


async def register(plane: ControlPlane, url: str, **fields: Any) -> tuple[str, str]:  # noqa: ANN401 - by name
    made = (await changes.create(plane, NewWebhook(url=url, **fields), actor="test")).value
    return made.webhook.id, made.secret


async def test_alerts_come_once_each_signed_to_those_who_asked(
    plane: ControlPlane, settings: Settings, ledger: Ledger
) -> None:
    events = Events(ledger.connection)
    async with receiving() as pager, receiving() as shop, delivering(settings):
        webhook_id, secret = await register(plane, pager.url, types=["redeemed", *BOTH], batch_max=None)
        await register(plane, shop.url)
        for _ in range(2):  # the second time it only counts
            await alerts.raise_alert(plane, ALARM, 1)
        await pager.has(1)
        [raised] = pager.calls
        raised.verify(secret)
        [shown] = await alerts.page(plane, state=None, after=None, limit=9)
        assert raised.id == "alr_1-raised"
        assert (raised.json["type"], raised.json["id"]) == ("alert.raised", "alr_1")
        assert raised.json.keys() == {"type"} | shown.document().keys()
        for _ in range(2):
            await alerts.acknowledge(plane, "alr_1", actor="ops")
        await pager.has(2)
        assert (
            pager.calls[1].json
            == {"type": "alert.acknowledged"}
            | (await alerts.page(plane, state="acknowledged", after=None, limit=9))[0].document()
        )
        [event] = await events.add(1)
        await pager.has(3)
        await shop.has(1)
        assert pager.ids == ["alr_1-raised", "alr_1-acknowledged", event]
        assert shop.ids == [event]
    found = await endpoints.attempts(plane, webhook_id, message="alr_1-raised", after=None, limit=9)
    assert [(each.attempt, each.events, each.status) for each in found] == [(1, 1, 200)]


async def test_an_alert_that_fails_is_tried_again_then_kept_and_sent_when_it_is_replayed(
    plane: ControlPlane, settings: Settings
) -> None:
    async with receiving() as receiver, delivering(settings):
        receiver.status = 500
        webhook_id, _ = await register(plane, receiver.url, types=BOTH, batch_max=5)
        await alerts.raise_alert(plane, ALARM, 1)

        async def given_up() -> list[endpoints.DeadLetter]:
            return await endpoints.dead_letters(plane, webhook_id, after=None, limit=9)

        [letter] = await wait_until_async(given_up)
        assert (letter.message, letter.events, letter.attempts) == ("alr_1-raised", ["alr_1"], 2)
        assert (letter.after, letter.until) == (str(BEGINNING), str(BEGINNING))
        assert receiver.ids == ["alr_1-raised"] * 2
        await erasure.erase(plane, "Ann Erased", actor="cli")
        receiver.status = 200
        await changes.replay(plane, webhook_id, Replay(dead_letters=[letter.id]), actor="test")
        await receiver.has(3)

        async def none_left() -> bool:
            return not await given_up()

        await wait_until_async(none_left)
        [sent] = receiver.calls[2].json["events"]
        assert sent["subject"] not in {"Ann Erased", None}  # the pseudonym
        with pytest.raises(Refusal):
            await changes.replay(plane, webhook_id, Replay(dead_letters=[letter.id]), actor="test")


async def test_an_alert_does_not_wait_for_an_event_that_failed_nor_an_event_for_an_alert(
    plane: ControlPlane, settings: Settings, ledger: Ledger
) -> None:
    events = Events(ledger.connection)
    async with receiving() as receiver, delivering(replace(settings, webhook_retry_s="1000")):
        receiver.status = 500
        webhook_id, _ = await register(plane, receiver.url, types=["redeemed", *BOTH])
        [event] = await events.add(1)
        await receiver.has(1)
        await alerts.raise_alert(plane, ALARM, 1)
        await receiver.has(2)
        assert receiver.ids == [event, "alr_1-raised"]

        async def both_are_noted() -> bool:  # before that, a retry would be followed by their pauses
            noted = [
                await endpoints.attempts(plane, webhook_id, message=message, after=None, limit=1)
                for message in receiver.ids
            ]
            return all(noted)

        await wait_until_async(both_are_noted)
        receiver.status = 200
        await changes.retry(plane, webhook_id, actor="test")  # both are due
        await receiver.has(4)
        assert sorted(receiver.ids[2:]) == sorted([event, "alr_1-raised"])


async def test_an_endpoint_that_was_away_gets_the_alerts_of_that_time(
    plane: ControlPlane, settings: Settings
) -> None:
    async with receiving() as receiver:
        webhook_id, _ = await register(plane, receiver.url, types=["alert.raised"])
        await changes.update(plane, webhook_id, WebhookChange(enabled=False), actor="test")
        await alerts.raise_alert(plane, ALARM, 1)
        await alerts.raise_alert(plane, ALARM._replace(cause="leaked_list:2"), 1)
        await alerts.acknowledge(plane, "alr_1", actor="ops")
        async with delivering(settings):
            await changes.update(plane, webhook_id, WebhookChange(enabled=True), actor="test")
            await receiver.has(2)
        assert receiver.ids == ["alr_1-raised", "alr_2-raised"]
