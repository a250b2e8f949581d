"""Webhooks come at least once, in order, signed; what fails is tried again, then kept as a dead letter."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from engine.errors import Refusal
from engine.ledger.feed import BEGINNING
from engine.webhooks import changes, endpoints
from engine.webhooks.changes import NewWebhook, Replay, SecretRotation, WebhookChange
from tests.support.endpoints import Events, delivering, receiving
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from engine.webhooks.endpoints import Webhook as Shown
    from tests.support.endpoints import Received
    from tests.support.streams import Ledger

QUICK: Final = "0,0.01,0.01"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhooks_allow_private=True, webhook_retry_s=QUICK, webhook_poll_ms=10)


@pytest.fixture
def events(ledger: Ledger) -> Events:
    return Events(ledger.connection)


async def register(plane: ControlPlane, url: str, **fields: Any) -> tuple[str, str]:  # noqa: ANN401 - by name
    """The id and the secret of an endpoint that hears of everything."""
    new = NewWebhook(url=url, **{"after": "beginning"} | fields)
    made = (await changes.create(plane, new, actor="test")).value
    return made.webhook.id, made.secret


async def reaches(plane: ControlPlane, webhook_id: str, cursor: str) -> Shown:
    """Wait until an endpoint is there."""

    async def there() -> list[Shown]:
        shown = await endpoints.get(plane, webhook_id)
        return [shown] if shown.cursor == cursor else []

    [shown] = await wait_until_async(there)
    return shown


async def test_events_come_once_each_in_their_order_signed(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async with receiving() as receiver, delivering(settings):
        webhook_id, secret = await register(plane, receiver.url)
        ids = await events.add(3) + await events.add(250)
        await receiver.has(253)
        shown = await reaches(plane, webhook_id, str(BEGINNING.moved(0, 253)))
        assert receiver.ids == ids
        for call in receiver.calls[:3]:
            call.verify(secret)
            assert call.json["id"] == call.id
            assert call.headers["content-type"] == "application/json"
        assert (receiver.calls[0].json["seq"], receiver.calls[0].json["last4"]) == (1, "JK4M")
        assert (shown.failures, shown.failing_since, shown.dead_letters) == (0, None, 0)
        found = await endpoints.attempts(plane, webhook_id, message=None, after=None, limit=1000)
        assert [attempt.message for attempt in reversed(found)] == ids
        assert {(attempt.status, attempt.error, attempt.response) for attempt in found} == {(200, None, None)}
        one = receiver.calls[0]
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(one.body + b" ", one.headers)


async def test_an_endpoint_begins_with_what_comes_and_hears_only_of_what_it_asked_for(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    await events.add(5)
    async with receiving() as receiver, delivering(settings):
        wanted = {"types": ["redeemed", "rolled_back"], "campaigns": ["cmp_2"]}
        await register(plane, receiver.url, after=None, **wanted)
        await events.add(3, campaign="cmp_2", type="held")
        await events.add(3, type="redeemed")
        expected = await events.add(2, campaign="cmp_2", type="rolled_back")
        await events.add(150, campaign="cmp_1")
        expected += await events.add(2, campaign="cmp_2")
        await receiver.has(4)
        assert receiver.ids == expected


async def test_a_batch_is_one_message_of_several_events(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    ids = await events.add(25)
    async with receiving() as receiver:
        receiver.status = 500
        webhook_id, secret = await register(plane, receiver.url, batch_max=10)
        async with delivering(replace(settings, webhook_retry_s="0,0,1000")):
            await receiver.has(3)
        assert len(set(receiver.ids)) == 1  # tried again, it is the same
        assert len({call.body for call in receiver.calls}) == 1
        receiver.calls.clear()
        receiver.status = 200
        ids += await events.add(2)
        # What was begun goes on in another process as it was, though by now there is more.
        await changes.update(plane, webhook_id, WebhookChange(description="now"), actor="test")
        async with delivering(settings):
            await receiver.has(3)
    for each in receiver.calls:
        each.verify(secret)
    batches = [[event["id"] for event in call.json["events"]] for call in receiver.calls]
    assert batches == [ids[:10], ids[10:20], ids[20:]]


async def test_a_batch_that_was_begun_is_sent_again_as_it_was(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    first = await events.add(2)
    async with receiving() as receiver:
        receiver.status = 500
        await register(plane, receiver.url, batch_max=10)
        async with delivering(replace(settings, webhook_retry_s="0.2")):
            await receiver.has(1)
        second = await events.add(3)
        receiver.status = 200
        async with delivering(settings):
            await receiver.has(3)
    assert receiver.ids[0] == receiver.ids[1] != receiver.ids[2]
    assert receiver.calls[0].body == receiver.calls[1].body
    assert [event["id"] for event in receiver.calls[1].json["events"]] == first
    assert [event["id"] for event in receiver.calls[2].json["events"]] == second


async def test_a_dead_endpoint_delays_only_itself(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    """One hangs, one cannot be connected to, one refuses: the fourth gets all, while they get nothing."""
    hanging = asyncio.Event()

    async def hang(_: Received) -> web.StreamResponse:
        await hanging.wait()
        return web.Response()

    async with receiving() as dead:
        pass
    async with (
        receiving() as hung,
        receiving() as refusing,
        receiving() as alive,
        delivering(replace(settings, webhook_retry_s="1000", webhook_timeout_s=1000)),
    ):
        hung.answer, refusing.status = hang, 500
        for url in (dead.url, hung.url, refusing.url):
            await register(plane, url)
        await register(plane, alive.url)
        ids = await events.add(120)
        await alive.has(120)
        assert alive.ids == ids
        assert (len(hung.calls), len(refusing.calls)) == (1, 1)
        hanging.set()


async def test_an_endpoint_that_does_not_answer_in_time_has_failed(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async def hang(_: Received) -> web.StreamResponse:
        if len(receiver.calls) == 1:
            await asyncio.Event().wait()
        return web.Response()

    async with receiving() as receiver, delivering(replace(settings, webhook_timeout_s=1)):
        receiver.answer = hang
        webhook_id, _ = await register(plane, receiver.url)
        [first] = await events.add(1)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 1)))
        assert receiver.ids == [first, first]
    found = await endpoints.attempts(plane, webhook_id, message=first, after=None, limit=10)
    assert [(each.attempt, each.status, each.error) for each in found] == [
        (2, 200, None),
        (1, None, "no answer within 1 s"),
    ]


async def test_of_a_refusal_little_is_read_and_kept_and_a_success_needs_no_body(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    sent = 0

    async def flood(_: Received) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=500 if len(receiver.calls) == 1 else 200)
        await response.prepare(receiver.requests[-1])
        for _number in range(10_000):
            await response.write(b"\0no " * 4096)
            sent += 1
        return response

    async with receiving() as receiver, delivering(settings):
        receiver.answer = flood
        webhook_id, _ = await register(plane, receiver.url)
        await events.add(1)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 1)))
    assert sent < 10_000
    kept, refused = await endpoints.attempts(plane, webhook_id, message=None, after=None, limit=10)
    assert (kept.status, kept.response) == (200, None)
    assert refused.error == "answered 500"
    assert refused.response == "\N{REPLACEMENT CHARACTER}no " * (settings.webhook_response_bytes_max // 4)


async def test_a_redirect_is_not_followed(plane: ControlPlane, settings: Settings, events: Events) -> None:
    async def redirect(_: Received) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": other.url})

    async with receiving() as receiver, receiving() as other, delivering(settings):
        receiver.answer = redirect
        webhook_id, _ = await register(plane, receiver.url)
        await events.add(1)
        await receiver.has(4)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 1)))  # given up
        assert not other.calls


async def test_past_the_retry_schedule_a_message_is_a_dead_letter_and_the_next_goes_out(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async def refuse_second(call: Received) -> web.StreamResponse:
        return web.Response(status=422 if call.id == ids[1] and refusing else 200, text="no such user")

    ids = await events.add(3)
    refusing = True
    async with receiving() as receiver, delivering(settings):
        receiver.answer = refuse_second
        webhook_id, secret = await register(plane, receiver.url)
        shown = await reaches(plane, webhook_id, str(BEGINNING.moved(0, 3)))
        assert receiver.ids == [ids[0], *[ids[1]] * 4, ids[2]]
        assert (shown.failures, shown.failing_since, shown.dead_letters) == (0, None, 1)
        [letter] = await endpoints.dead_letters(plane, webhook_id, after=None, limit=10)
        assert (letter.message, letter.events) == (ids[1], [ids[1]])
        assert (letter.attempts, letter.error) == (4, "answered 422")
        [last, *_] = await endpoints.attempts(plane, webhook_id, message=ids[1], after=None, limit=10)
        assert (last.attempt, last.response) == (4, "no such user")

        async def replayed() -> bool:
            [left] = await endpoints.dead_letters(plane, webhook_id, after=None, limit=10)
            return left.replay_at is None

        await changes.replay(plane, webhook_id, Replay(dead_letters=[letter.id]), actor="test")
        await receiver.has(7)
        await wait_until_async(replayed)  # in vain: it stays
        refusing = False
        await changes.replay(plane, webhook_id, Replay(dead_letters=[letter.id]), actor="test")
        await receiver.has(8)
        receiver.calls[-1].verify(secret)
        assert receiver.ids[6:] == [ids[1], ids[1]]

        async def gone() -> bool:
            return not await endpoints.dead_letters(plane, webhook_id, after=None, limit=10)

        await wait_until_async(gone)


async def test_what_was_delivered_comes_again_from_any_cursor(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    ids = await events.add(5)
    async with receiving() as receiver, delivering(settings):
        webhook_id, _ = await register(plane, receiver.url)
        await receiver.has(5)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 5)))
        after = str(BEGINNING.moved(0, 2))
        await changes.replay(plane, webhook_id, Replay(after=after), actor="test")
        await receiver.has(8)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 5)))
        assert receiver.ids == ids + ids[2:]


async def test_a_replay_that_is_asked_for_during_a_call_is_not_lost_with_its_end(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async def replay_once(_: Received) -> web.StreamResponse:
        if len(receiver.calls) == 3:
            await changes.replay(plane, webhook_id, Replay(after="beginning"), actor="test")
        return web.Response()

    ids = await events.add(3)
    async with receiving() as receiver:
        receiver.answer = replay_once
        webhook_id, _ = await register(plane, receiver.url)
        async with delivering(settings):
            await receiver.has(6)
            await reaches(plane, webhook_id, str(BEGINNING.moved(0, 3)))
    assert receiver.ids == ids + ids


async def test_a_replay_ends_the_wait_for_the_next_try(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    ids = await events.add(2)
    async with receiving() as receiver, delivering(replace(settings, webhook_retry_s="1000")):
        receiver.status = 503
        webhook_id, _ = await register(plane, receiver.url, after=str(BEGINNING.moved(0, 1)))

        async def waits() -> bool:
            return (await endpoints.get(plane, webhook_id)).failures == 1

        await wait_until_async(waits)
        receiver.status = 200
        await changes.replay(plane, webhook_id, Replay(after="beginning"), actor="test")
        await receiver.has(3)
        assert receiver.ids == [ids[1], ids[0], ids[1]]


async def test_a_retry_sends_the_same_message_at_once_and_the_schedule_goes_on(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    (event,) = await events.add(1)
    async with receiving() as receiver, delivering(replace(settings, webhook_retry_s="1000,1000,1000")):
        receiver.status = 503
        webhook_id, _ = await register(plane, receiver.url)

        for tries in (1, 2):

            async def waits(tries: int = tries) -> bool:
                shown = await endpoints.get(plane, webhook_id)
                return shown.failures == tries and shown.next_at is not None

            await wait_until_async(waits)
            receiver.status = 503 if tries == 1 else 200
            await changes.retry(plane, webhook_id, actor="test")
            await receiver.has(tries + 1)
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 1)))
        assert receiver.ids == [event] * 3
        await changes.update(plane, webhook_id, WebhookChange(enabled=False), actor="test")
        with pytest.raises(Refusal, match="disabled"):
            await changes.retry(plane, webhook_id, actor="test")


async def test_while_a_secret_is_replaced_both_sign(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async with receiving() as receiver, delivering(settings):
        webhook_id, old = await register(plane, receiver.url)
        new = (await changes.rotate(plane, webhook_id, SecretRotation(), actor="test")).value.secret
        await events.add(1)
        await receiver.has(1)
        receiver.calls[0].verify(old)
        receiver.calls[0].verify(new)
        await changes.rotate(plane, webhook_id, SecretRotation(grace_s=0), actor="test")

        async def refused(secret: str) -> bool:
            await events.add(1)
            await receiver.has(events.seq)
            try:
                receiver.calls[-1].verify(secret)
            except WebhookVerificationError:
                return True
            return False

        await wait_until_async(lambda: refused(old))
        assert await refused(new)


async def test_an_endpoint_that_asks_for_time_gets_it(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async def busy(_: Received) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "600"})

    async with receiving() as receiver, delivering(settings):
        receiver.answer = busy
        webhook_id, _ = await register(plane, receiver.url)
        await events.add(1)

        async def waits() -> bool:
            shown = await endpoints.get(plane, webhook_id)
            since, until = shown.failing_since, shown.next_at
            return since is not None and until is not None and (until - since).total_seconds() > 590

        await wait_until_async(waits)


async def test_an_endpoint_that_is_gone_is_disabled_until_it_is_enabled_again(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    ids = await events.add(2)
    async with receiving() as receiver, delivering(settings):
        receiver.status = 410
        webhook_id, _ = await register(plane, receiver.url)

        async def disabled() -> bool:
            return not (await endpoints.get(plane, webhook_id)).enabled

        await wait_until_async(disabled)
        assert (await endpoints.get(plane, webhook_id)).disabled_reason == "answered 410"
        receiver.status = 200
        await changes.update(plane, webhook_id, WebhookChange(enabled=True), actor="test")
        await reaches(plane, webhook_id, str(BEGINNING.moved(0, 2)))
        assert receiver.ids == [ids[0], *ids]


async def test_a_removed_endpoint_is_called_no_more(
    plane: ControlPlane, settings: Settings, events: Events
) -> None:
    async with receiving() as removed, receiving() as other, delivering(settings):
        webhook_id, _ = await register(plane, removed.url)
        await register(plane, other.url)
        await events.add(1)
        await removed.has(1)
        await changes.remove(plane, webhook_id, actor="test")

        async def unknown() -> bool:
            before = len(removed.calls)
            await events.add(1)
            await other.has(events.seq)
            return len(removed.calls) == before

        await wait_until_async(unknown)
        assert await unknown()


async def test_several_shards_make_one_order_each(
    plane: ControlPlane, settings: Settings, ledger: Ledger
) -> None:
    await ledger.connection.execute("INSERT INTO ledger_offsets (shard) VALUES (1)")
    both = [Events(ledger.connection, shard) for shard in (0, 1)]
    async with receiving() as receiver, delivering(settings):
        await register(plane, receiver.url)
        ids: list[list[str]] = [[], []]
        for count in (1, 40, 3, 150):
            for shard, events in enumerate(both):
                ids[shard] += await events.add(count)
        await receiver.has(2 * 194)
    for shard in (0, 1):
        assert [call.id for call in receiver.calls if call.json["shard"] == shard] == ids[shard]
