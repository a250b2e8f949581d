"""Holds: a code, or part of a balance, is reserved for an order while its payment runs.

Whoever confirms or releases a hold names it by its id, so its record is read first, and the
script acts only if it still is that record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from redis.exceptions import RedisError

from engine.api.bodies import encode, instant
from engine.errors import Overloaded, Refusal, StoreUnavailable
from engine.redemption.attempt import READ_AGAIN, Attempt, load_script, number
from engine.redemption.redeem import redeemed_body, told
from engine.store import events, idempotency, keys

if TYPE_CHECKING:
    from engine.api.code_bodies import HoldRequest
    from engine.redemption.core import Answer, Core
    from engine.store.call import Call
    from engine.store.configuration import ApiKey
    from engine.store.events import EventId

OWN_MARK: Final = "\x1f"  # in an order: what follows makes a hold a span's own (lua/lib/add_event.lua)
EXPIRED: Final = b"expired"  # in place of the record of a hold whose time was over (lua/lib/holds.lua)
_TRIES: Final = 5  # a record changes while it is confirmed only if its order renews it at that moment


class HoldRecord(NamedTuple):
    """What Redis keeps of a hold: a line each (lua/lib/holds.lua)."""

    expires_at_ms: int
    order: str
    user: str
    amount: int | None
    campaign: str
    batch: int
    serial: int
    last4: str
    actor: str


def parse_record(text: str) -> HoldRecord:
    """The record of a hold."""
    expires_at_ms, order, user, amount, campaign, batch, serial, last4, actor, _ = text.split("\n")
    return HoldRecord(
        int(expires_at_ms), order, user, number(amount), campaign, int(batch), int(serial), last4, actor
    )


class Hold(Attempt):
    """An attempt to hold a code for an order, or to renew the order's hold."""

    __slots__ = ("request", "ttl_s")
    script = load_script("hold", "ttl_ms")
    success = "held"

    def __init__(self, core: Core, request: HoldRequest, key: str | None, api_key: ApiKey) -> None:
        super().__init__(
            core,
            api_key=api_key,
            user=request.user,
            amount="" if request.amount is None else request.amount,
            order=request.order,
            key=key,
        )
        self.request = request
        self.ttl_s = core.settings.hold_ttl_s if request.ttl_s is None else request.ttl_s

    def seen(self) -> list[object]:
        """What is held, for whom, and how long."""
        seen = ["hold", self.batch, self.serial, self.user, self.amount, self.order, self.ttl_s]
        return seen + told(self.request)

    def write_to(self, call: Call) -> None:
        """Append the fields of ``hold.lua``."""
        super().write_to(call)
        call.fields.append(self.ttl_s * 1000)

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """The hold."""
        word, amount, expires_at_ms, *balance = words
        campaign = self.campaign
        return encode(
            {
                "id": self.event(word)[0],
                "status": "held",
                "campaign": campaign.id,
                "code": self.masked,
                "user": self.user,
                "amount": number(amount),
                "currency": campaign.currency,
                **({"balance": int(balance[0])} if balance else {}),
                "order": self.order,
                "expires_at": instant(int(expires_at_ms)),
                "replayed": replayed,
            }
        )


class HoldEnd(Attempt):
    """An attempt on a hold that is there already."""

    __slots__ = ("_record", "hold_id")

    def __init__(
        self,
        core: Core,
        hold_id: EventId,
        record: bytes | None,
        *,
        api_key: ApiKey | None,
        actor: str = "",
        amount: int | str = "",
        key: str | None = None,
    ) -> None:
        super().__init__(core, api_key=api_key, actor=actor, amount=amount, key=key)
        self.hold_id = hold_id
        self._record = (record or b"").decode()
        if key:
            self.fingerprint = idempotency.fingerprint(idempotency.UNKNOWN, self.seen())
        if record is None or record == EXPIRED:
            self.is_about_none(hold_id.shard)
        else:
            self._holds(parse_record(self._record))

    def _holds(self, hold: HoldRecord) -> None:
        self.is_on(hold.campaign, hold.batch, hold.serial, hold.last4)
        self.user, self.order = hold.user, hold.order

    def seen(self) -> list[object]:
        """What is done to which hold."""
        return [self.success, str(self.hold_id), self.amount]

    def write_to(self, call: Call) -> None:
        """Append the fields that ``confirm.lua`` and ``release.lua`` have in common."""
        super().write_to(call)
        call.fields += (self.hold_id.stream_id, self._record)


class Confirmation(HoldEnd):
    """An attempt to turn a hold into a redemption."""

    __slots__ = ()
    script = load_script("confirm", "hold_id", "hold_record", "decided")
    success = "redeemed"
    decided: ClassVar[bool] = False

    def write_to(self, call: Call) -> None:
        """Append the fields of ``confirm.lua``."""
        super().write_to(call)
        call.fields.append(int(self.decided))

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """The redemption; of one that was made earlier the hold is gone, and the receipt tells of it."""
        record = words.pop()
        self._holds(parse_record(record))
        return redeemed_body(self, words, self.user, replayed=replayed)


class Release(HoldEnd):
    """An attempt to give a hold back."""

    __slots__ = ()
    script = load_script("release", "hold_id", "hold_record", "event_type")
    success = "released"
    heeds_voids = False
    event_type: ClassVar[str] = "released"

    def write_to(self, call: Call) -> None:
        """Append the fields of ``release.lua``."""
        super().write_to(call)
        call.fields.append(self.event_type)

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """What was given back."""
        word, record = words
        hold = parse_record(record)
        self._holds(hold)
        return encode(
            {
                "id": str(self.hold_id),
                "status": "released",
                "campaign": hold.campaign,
                "code": self.masked,
                "user": hold.user,
                "amount": hold.amount,
                "currency": self.campaign.currency,
                "order": hold.order,
                "released_at": self.event(word)[1],
                "replayed": replayed,
            }
        )


class Expiry(Release):
    """Gives back a hold whose time is over, or removes the trace of one."""

    __slots__ = ()
    event_type = "expired"


async def confirm(core: Core, hold: str, *, amount: int | None, key: str | None, api_key: ApiKey) -> Answer:
    """Turn a hold into a redemption, of a balance also into one of less.

    Raises:
        Refusal: ``hold_not_found``: this is not the id of a hold; ``malformed_request``: the key is its code.
        StoreUnavailable: Redis cannot be asked.
    """
    return await _end(
        core, hold, Confirmation, amount="" if amount is None else amount, key=key, api_key=api_key
    )


async def release(
    core: Core, hold: str, *, key: str | None, api_key: ApiKey, of_a_span: bool = False
) -> Answer:
    """Give a hold back. Those of a combined redemption only it may give back (``of_a_span``).

    Raises:
        Refusal, StoreUnavailable: as ``confirm``.
    """
    return await _end(core, hold, Release, amount="", key=key, api_key=api_key, of_a_span=of_a_span)


async def _end(
    core: Core,
    hold: str,
    kind: type[HoldEnd],
    *,
    amount: int | str,
    key: str | None,
    api_key: ApiKey,
    of_a_span: bool = False,
) -> Answer:
    hold_id = events.parse_id(hold)
    if hold_id is None or hold_id.shard >= core.registry.shards:
        raise Refusal("hold_not_found")
    for _ in range(_TRIES):
        (record,) = await read_records(core, hold_id.shard, [hold_id.stream_id])
        if record is not None and record != EXPIRED:
            held = parse_record(record.decode())
            if (OWN_MARK in held.order) is not of_a_span:
                raise Refusal("hold_not_found")
            await core.refuse_code_of(held.batch, held.serial, key)
        answer = await core.answer(kind(core, hold_id, record, api_key=api_key, amount=amount, key=key))
        if answer.status != READ_AGAIN:
            return answer
    raise Overloaded("the hold keeps changing")


async def read_records(core: Core, shard: int, ids: list[str]) -> list[bytes | None]:
    """The records of holds, by their stream ids; None for each that is not there.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    try:
        records: Any = await core.redis.hmget(keys.holds(shard), ids)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    live = [parse_record(record.decode()) for record in records if record and record != EXPIRED]
    if any(hold.batch not in core.registry.batches for hold in live):
        await core.registry.refresh()  # held through another worker, whose configuration is newer
    return list(records)
