"""What is done to a code afterwards: redemptions rolled back, codes made void, balances adjusted."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from engine.api.bodies import encode
from engine.control import audit_log
from engine.control import idempotency as change_records
from engine.errors import OutcomeUnknown, Refusal, StoreUnavailable
from engine.redemption.attempt import Attempt, load_script, number
from engine.store import idempotency, keys

if TYPE_CHECKING:
    from engine.api.code_bodies import RollbackRequest
    from engine.database import Database
    from engine.redemption.core import Answer, Core
    from engine.store.call import Call
    from engine.store.configuration import ApiKey
    from engine.store.events import EventId


_UNCHANGED: Final = "-"  # in place of an event's id


class Rollback(Attempt):
    """An attempt to undo a redemption, whole or, of a balance, in part."""

    __slots__ = ("_and_void", "_record", "_redemption", "reason")
    script = load_script("rollback", "rolled_at", "redemption", "redeemed_amount", "and_void")
    success = "rolled_back"
    act = "rollback"
    heeds_voids = False

    def __init__(
        self,
        core: Core,
        redemption: EventId,
        record: dict[str, Any],
        request: RollbackRequest,
        *,
        key: str | None,
        api_key: ApiKey,
    ) -> None:
        super().__init__(
            core,
            api_key=api_key,
            user=record["user"],
            amount="" if request.amount is None else request.amount,
            order=record["order"] or "",
            key=key,
        )
        self._redemption, self._record = redemption, record
        self._and_void, self.reason = request.void, request.reason
        self.is_on(record["campaign"], record["batch"], record["serial"], record["last4"])
        if key:
            known = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known, self.seen())

    def seen(self) -> list[object]:
        """Which redemption, how much of it, and why."""
        return [self.success, str(self._redemption), self.amount, self._and_void, self.reason]

    def write_to(self, call: Call) -> None:
        """Append the fields of ``rollback.lua``."""
        super().write_to(call)
        amount = self._record["amount"]
        call.fields += (
            call.key(keys.rolled_back(self.place.shard, self.batch)),
            str(self._redemption),
            "" if amount is None else amount,
            int(self._and_void),
        )

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """What was given back, by this call and so far."""
        word, returned, total, left = words
        amount = self._record["amount"]
        whole = amount is None or int(total) == amount
        return encode(
            {
                "id": str(self._redemption),
                "status": "rolled_back" if whole else "partly_rolled_back",
                "campaign": self._record["campaign"],
                "code": self.masked,
                "user": self.user,
                "amount": amount,
                "currency": self._record["currency"],
                "returned": number(returned),
                "rolled_back": None if amount is None else int(total),
                **({"balance": int(left)} if left else {}),
                "rolled_back_at": self.event(word)[1],
                "replayed": replayed,
            }
        )


class Correction(Attempt):
    """An attempt of administration on a code that was typed, for a reason."""

    __slots__ = ("reason",)

    act: ClassVar[str]  # what the audit log calls it
    reason: str


class Adjustment(Correction):
    """An attempt to top up a balance, or to correct it."""

    __slots__ = ()
    script = load_script("adjust")
    success = "adjusted"
    act = "adjust"

    def __init__(
        self,
        core: Core,
        amount: int,
        reason: str,
        *,
        key: str | None,
        api_key: ApiKey | None,
        actor: str = "",
    ) -> None:
        super().__init__(core, api_key=api_key, actor=actor, amount=amount, key=key)
        self.reason = reason

    def seen(self) -> list[object]:
        """Which balance, by how much, and why."""
        return [self.success, self.batch, self.serial, self.amount, self.reason]

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """The balance as it is now."""
        word, left = words
        event_id, adjusted_at = self.event(word)
        campaign = self.campaign
        return encode(
            {
                "id": event_id,
                "status": "adjusted",
                "campaign": campaign.id,
                "code": self.masked,
                "amount": self.amount,
                "currency": campaign.currency,
                "balance": int(left),
                "adjusted_at": adjusted_at,
                "replayed": replayed,
            }
        )


class Voiding(Correction):
    """An attempt to make one code void."""

    __slots__ = ()
    script = load_script("void", "make_void", "void_by_range")
    success = "voided"
    act = "void"
    heeds_voids = False

    def __init__(
        self, core: Core, reason: str, *, key: str | None, api_key: ApiKey | None, actor: str = ""
    ) -> None:
        super().__init__(core, api_key=api_key, actor=actor, key=key)
        self.reason = reason

    def seen(self) -> list[object]:
        """Which code, and why."""
        return [self.success, self.batch, self.serial, self.reason]

    def write_to(self, call: Call) -> None:
        """Append the fields of ``void.lua``."""
        super().write_to(call)
        by_range = self.core.registry.is_void(self.batch, self.serial)
        call.fields += (int(self.success == Voiding.success), int(by_range))

    def succeeded(self, words: list[str], *, replayed: bool) -> bytes:
        """Whether that has changed anything; and whether the code is void, as it may be by its batch, too."""
        event, by_range = words
        return encode(
            {
                "status": self.success,
                "campaign": self.campaign.id,
                "batch": self.batch,
                "serial": self.serial,
                "code": self.masked,
                "changed": event != _UNCHANGED,
                "void": self.success == Voiding.success or by_range == "1",
                "replayed": replayed,
            }
        )


class Unvoiding(Voiding):
    """An attempt to lift that."""

    __slots__ = ()
    success = "unvoided"
    act = "unvoid"


async def correct(core: Core, database: Database, attempt: Correction, code: str) -> Answer:
    """Do something to the code that was typed, on record.

    Raises:
        Refusal: there is no such code, or it stands in the reason.
        Fault: it cannot be found out, or be put on record.
    """
    attempt.is_about(await core.find(code, attempt.key, attempt.reason))
    return await on_record(core, database, attempt, f"code:{attempt.batch}:{attempt.serial}")


async def on_record(core: Core, database: Database, attempt: Rollback | Correction, subject: str) -> Answer:
    """Do what has a reason: it is in the audit log before, and how it ended after.

    Raises:
        Refusal: ``idempotency_key_reused``: for a change of administration; nothing was done.
        StoreUnavailable, OutcomeUnknown: it cannot be put on record; nothing was done.
    """
    async with database.transaction() as connection:
        if attempt.key and await change_records.is_used(connection, attempt.actor, attempt.key):
            raise Refusal("idempotency_key_reused")
        act = await audit_log.record(
            connection, act=attempt.act, actor=attempt.actor, subject=subject, reason=attempt.reason
        )
    answer = await core.answer(attempt)
    body = orjson.loads(answer.body)
    if body.get("replayed"):
        outcome = "replayed"  # nothing was done: what was is on record already
    else:
        outcome = attempt.success if answer.status == HTTPStatus.OK else body["code"]
    with contextlib.suppress(StoreUnavailable, OutcomeUnknown):  # what was done is done
        async with database.transaction() as connection:
            await audit_log.finish(connection, act, outcome)
    return answer
