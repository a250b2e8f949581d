"""Operations that change a code afterwards: roll back a redemption, void a code, adjust a balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from msgspec import UNSET

from engine.api.outcomes import Adjusted, RolledBack, Voided
from engine.redemption.attempt import Attempt, event_of, number
from engine.redemption.call_fields import load_script
from engine.store import idempotency, keys

if TYPE_CHECKING:
    from engine.api.bodies import RollbackRequest
    from engine.store.call import Call
    from engine.store.configuration import CachedKey
    from engine.store.dispatcher import Dispatcher
    from engine.store.events import EventId

_UNCHANGED: Final = "-"  # the script answers this instead of an event id if it changed nothing


class Rollback(Attempt):
    """An attempt to undo a redemption: completely or, for a ``balance`` code, in part."""

    __slots__ = ("_and_void", "_record", "_redemption", "reason")
    script = load_script("rollback", "ending", "rolled_at", "redemption", "redeemed_amount", "and_void")
    success = "rolled_back"
    act = "rollback"
    heeds_voids = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        redemption: EventId,
        record: dict[str, Any],
        request: RollbackRequest,
        *,
        key: str | None,
        api_key: CachedKey | None,
        actor: str = "",
    ) -> None:
        super().__init__(
            dispatcher,
            api_key=api_key,
            actor=actor,
            user=record["user"],
            amount="" if request.amount is None else request.amount,
            order=record["order"] or "",
            key=key,
        )
        self._redemption, self._record = redemption, record
        self._and_void, self.reason = request.void, request.reason
        self.bind_record(record["campaign"], record["batch"], record["serial"], record["last4"])
        if key:
            known = idempotency.known_half(self.user, self.order, [(self.batch, self.serial)])
            self.fingerprint = idempotency.fingerprint(known, self.fingerprint_fields())

    def fingerprint_fields(self) -> list[object]:
        """Which redemption, how much of it, and why."""
        return [self.success, str(self._redemption), self.amount, self._and_void, self.reason]

    def write_to(self, call: Call) -> None:
        """Append the fields of ``rollback.lua``."""
        super().write_to(call)
        amount = self._record["amount"]
        call.own_fields += (
            call.key(keys.rolled_back(self.location.shard, self.batch)),
            str(self._redemption),
            "" if amount is None else amount,
            int(self._and_void),
        )

    def amount_expected(self) -> str:
        """How much may be given back."""
        amount = self._record["amount"]
        if self.campaign.kind == "balance":
            return f"amount must be between 1 and {amount}, what was redeemed, and the balance below 2^53."
        if amount is None:
            return "This redemption has no amount: leave amount out."
        return f"amount must be {amount}, all that was redeemed, or be left out."

    def succeeded(self, words: list[str], *, replayed: bool) -> RolledBack:
        """The amounts given back: ``returned`` by this call, ``rolled_back`` in total."""
        word, returned, total, left = words
        amount = self._record["amount"]
        whole = amount is None or int(total) == amount
        return RolledBack(
            id=str(self._redemption),
            status="rolled_back" if whole else "partly_rolled_back",
            campaign=self._record["campaign"],
            code=self.masked,
            user=self.user,
            amount=amount,
            currency=self._record["currency"],
            returned=number(returned),
            rolled_back=None if amount is None else int(total),
            balance=int(left) if left else UNSET,
            rolled_back_at=event_of(word, self.location.shard)[1],
            replayed=replayed,
        )


class Correction(Attempt):
    """An attempt of operations staff on a typed code. It needs a reason."""

    __slots__ = ("reason",)

    act: ClassVar[str]  # its name in the audit log
    reason: str


class Adjustment(Correction):
    """An attempt to raise or lower a balance."""

    __slots__ = ()
    script = load_script("adjust", "ending")
    success = "adjusted"
    act = "adjust"

    def __init__(
        self,
        dispatcher: Dispatcher,
        amount: int,
        reason: str,
        *,
        key: str | None,
        api_key: CachedKey | None,
        actor: str = "",
    ) -> None:
        super().__init__(dispatcher, api_key=api_key, actor=actor, amount=amount, key=key)
        self.reason = reason

    def fingerprint_fields(self) -> list[object]:
        """Which code, by how much, and why."""
        return [self.success, self.batch, self.serial, self.amount, self.reason]

    def amount_expected(self) -> str:
        """What can be adjusted, and how far."""
        if self.campaign.kind == "balance":
            return "amount must leave the balance below 2^53 minor units."
        return (
            f"Only a code of the kind balance can be adjusted; this one is of the kind {self.campaign.kind}."
        )

    def succeeded(self, words: list[str], *, replayed: bool) -> Adjusted:
        """The new balance."""
        word, left = words
        event_id, adjusted_at = event_of(word, self.location.shard)
        return Adjusted(
            id=event_id,
            campaign=self.campaign.id,
            code=self.masked,
            amount=int(self.amount),
            currency=self.campaign.currency,
            balance=int(left),
            adjusted_at=adjusted_at,
            replayed=replayed,
        )


class Voiding(Correction):
    """An attempt to make one code void."""

    __slots__ = ()
    script = load_script("void", "ending", "make_void", "void_by_range")
    success = "voided"
    act = "void"
    heeds_voids = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        reason: str,
        *,
        key: str | None,
        api_key: CachedKey | None,
        actor: str = "",
    ) -> None:
        super().__init__(dispatcher, api_key=api_key, actor=actor, key=key)
        self.reason = reason

    def fingerprint_fields(self) -> list[object]:
        """Which code, and why."""
        return [self.success, self.batch, self.serial, self.reason]

    def write_to(self, call: Call) -> None:
        """Append the fields of ``void.lua``."""
        super().write_to(call)
        by_range = self.configuration.is_void(self.batch, self.serial)
        call.own_fields += (int(self.success == Voiding.success), int(by_range))

    def succeeded(self, words: list[str], *, replayed: bool) -> Voided:
        """Whether this changed anything, and whether the code is void now: it may be void by its batch."""
        event, by_range = words
        makes_void = self.success == Voiding.success
        return Voided(
            status="voided" if makes_void else "unvoided",
            campaign=self.campaign.id,
            batch=self.batch,
            serial=self.serial,
            code=self.masked,
            changed=event != _UNCHANGED,
            void=makes_void or by_range == "1",
            replayed=replayed,
        )


class Unvoiding(Voiding):
    """An attempt to make one void code valid again."""

    __slots__ = ()
    success = "unvoided"
    act = "unvoid"
