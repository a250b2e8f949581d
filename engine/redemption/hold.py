"""Operations on holds: hold a code or part of a balance for an order, confirm, release, expire.

A client confirms or releases a hold by its id. So ``hold_calls`` reads the hold's record first, and the
script does nothing if the record has changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from msgspec import UNSET
from msgspec.structs import replace

from engine.api.outcomes import Held, Released
from engine.redemption.assertions import Assertions
from engine.redemption.attempt import Attempt, event_of, number
from engine.redemption.call_fields import load_script
from engine.redemption.redeem import client_context, redeemed
from engine.store import idempotency
from engine.store.hold_record import EXPIRED, HoldRecord
from engine.times import instant

if TYPE_CHECKING:
    from engine.api.bodies import HoldRequest
    from engine.api.outcomes import Redeemed
    from engine.store.call import Call
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher
    from engine.store.events import EventId


class Hold(Attempt):
    """An attempt to hold a code for an order, or to renew the hold of that order."""

    __slots__ = ("request", "ttl_s")
    script = load_script("hold", "ending", "ttl_ms")
    success = "held"
    is_guarded = True

    def __init__(
        self, dispatcher: Dispatcher, request: HoldRequest, key: str | None, api_key: CachedKey
    ) -> None:
        super().__init__(
            dispatcher,
            api_key=api_key,
            user=request.user,
            amount="" if request.amount is None else request.amount,
            order=request.order,
            key=key,
            asserted=Assertions.of(request),
            metadata=request.metadata,
            client=request.client,
        )
        self.request = request
        self.ttl_s = dispatcher.settings.hold_ttl_s if request.ttl_s is None else request.ttl_s

    def fingerprint_fields(self) -> list[object]:
        """What is held, for whom, and how long."""
        fields = ["hold", self.batch, self.serial, self.user, self.amount, self.order, self.ttl_s]
        return [*fields, *client_context(self.request), *(self.asserted or ())]

    def write_to(self, call: Call) -> None:
        """Append the fields of ``hold.lua``."""
        super().write_to(call)
        call.own_fields.append(self.ttl_s * 1000)

    def succeeded(self, words: list[str], *, replayed: bool) -> Held:
        """The hold."""
        word, amount, expires_at_ms, *balance = words
        return Held(
            id=event_of(word, self.location.shard)[0],
            campaign=self.campaign.id,
            code=self.masked,
            user=self.user,
            amount=number(amount),
            currency=self.campaign.currency,
            balance=int(balance[0]) if balance else UNSET,
            order=self.order,
            expires_at=instant(int(expires_at_ms)),
            replayed=replayed,
        )


class HoldEnd(Attempt):
    """An attempt to end a hold. ``record`` is the hold's record as it was read; None if there was none."""

    __slots__ = ("_record", "hold_id")

    def __init__(
        self,
        dispatcher: Dispatcher,
        hold_id: EventId,
        record: bytes | None,
        *,
        api_key: CachedKey | None,
        actor: str = "",
        amount: int | str = "",
        key: str | None = None,
    ) -> None:
        super().__init__(dispatcher, api_key=api_key, actor=actor, amount=amount, key=key)
        self.hold_id = hold_id
        self._record = (record or b"").decode()
        if key:
            self.fingerprint = idempotency.fingerprint(idempotency.UNKNOWN, self.fingerprint_fields())
        if record is None or record == EXPIRED:
            self.bind_shard(hold_id.shard)
        else:
            self._bind_hold(HoldRecord.parse(self._record))

    def _bind_hold(self, hold: HoldRecord) -> None:
        self.bind_record(hold.campaign, hold.batch, hold.serial, hold.last4)
        self.user, self.order = hold.user, hold.order

    def fingerprint_fields(self) -> list[object]:
        """What is done, to which hold, with which amount."""
        return [self.success, str(self.hold_id), self.amount]

    def write_to(self, call: Call) -> None:
        """Append the fields that ``confirm.lua`` and ``release.lua`` share."""
        super().write_to(call)
        call.own_fields += (self.hold_id.stream_id, self._record)


class Confirmation(HoldEnd):
    """An attempt to turn a hold into a redemption."""

    __slots__ = ()
    script = load_script("confirm", "ending", "hold_id", "hold_record")
    success = "redeemed"

    def amount_expected(self) -> str:
        """How much of the hold may be redeemed."""
        if self.campaign.kind == "balance":  # so the record is that of a live hold
            held = HoldRecord.parse(self._record).amount
            return f"amount must be between 1 and {held}, what is held, or be left out."
        return super().amount_expected()

    def succeeded(self, words: list[str], *, replayed: bool) -> Redeemed:
        """The redemption. The answer contains the hold's record, because on a replay the hold is gone."""
        record = words.pop()
        self._bind_hold(HoldRecord.parse(record))
        return replace(redeemed(self, words, replayed=replayed), hold=str(self.hold_id))


class Release(HoldEnd):
    """An attempt to release a hold."""

    __slots__ = ()
    script = load_script("release", "ending", "hold_id", "hold_record", "event_type")
    success = "released"
    heeds_voids = False
    event_type: ClassVar[str] = "released"

    def write_to(self, call: Call) -> None:
        """Append the fields of ``release.lua``."""
        super().write_to(call)
        call.own_fields.append(self.event_type)

    def succeeded(self, words: list[str], *, replayed: bool) -> Released:
        """The hold that ended."""
        word, record = words
        hold = HoldRecord.parse(record)
        self._bind_hold(hold)
        return Released(
            id=str(self.hold_id),
            campaign=hold.campaign,
            code=self.masked,
            user=hold.user,
            amount=hold.amount,
            currency=self.campaign.currency,
            order=hold.order,
            released_at=event_of(word, self.location.shard)[1],
            replayed=replayed,
        )


class Expiry(Release):
    """An attempt to end an expired hold, or to remove the mark that an expired hold leaves for a day."""

    __slots__ = ()
    event_type = "expired"
