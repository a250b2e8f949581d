"""State machine of one code: what each event changes, and which events are illegal.

It uses neither Redis nor PostgreSQL, and follows the rules in ``lua/``. An illegal event is applied as far as
possible, and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Collection


class CodeEvent(NamedTuple):
    """An event of one code.

    Attributes:
        redemption: id of the redemption, of the hold, or of the redemption that is rolled back.
        amount: minor units; None: the code has no amount.
        hold: id of the hold that a confirmation ends; empty in events that are older than this field.
        redeemed: for a rollback, the amount of the redemption that is rolled back.
        known: for a rollback, whether the code has such a redemption before it.
    """

    type: str
    redemption: str
    user: str = ""
    order: str = ""
    amount: int | None = None
    redeemed: int | None = None
    known: bool = True
    hold: str = ""


class CampaignRules(NamedTuple):
    """Limits from the campaign. ``face``: the code's amount, or the initial balance, in minor units."""

    kind: str
    face: int = 0
    max_uses: int = 1


class Effect(NamedTuple):
    """What an event adds to the counters of campaign and user. ``illegal``: why it is, or empty."""

    uses: int = 0
    spent: int = 0
    illegal: str = ""


@dataclass(slots=True)
class CodeHold:
    """A live hold."""

    user: str
    order: str
    amount: int


@dataclass(slots=True)
class CodeState:
    """State of a code after the events so far.

    Attributes:
        used: number of successes and live holds; for a balance, the amount used and held.
        holds: live holds by id.
        given_back: amount given back by redemption; 0 if the code has no amount.
        names_erased: the pseudonyms of erased users. Earlier events may have had the name instead.
    """

    rules: CampaignRules
    used: int = 0
    redeemed: bool = False
    void: bool = False
    holds: dict[str, CodeHold] = field(default_factory=dict)
    given_back: dict[str, int] = field(default_factory=dict)
    names_erased: Collection[str] = ()

    @property
    def state(self) -> int:
        """The code's two bits in Redis."""
        single = self.rules.kind == "single"
        if single and self.redeemed:
            return keys.REDEEMED
        if self.void:
            return keys.VOID
        return keys.HELD if single and self.holds else keys.FRESH

    def apply(self, event: CodeEvent) -> Effect:
        """Apply one event."""
        if event.type == "redeemed":
            return self._redeemed(event)
        if event.type == "held":
            return self._held(event)
        if event.type == "confirmed":
            return self._confirmed(event)
        if event.type in {"released", "expired"}:
            return self._ended(event)
        if event.type == "rolled_back":
            return self._rolled_back(event)
        if event.type in {"voided", "unvoided"}:
            return self._voided(void=event.type == "voided")
        if event.type == "adjusted":
            return self._adjusted(event)
        return Effect(illegal=f"there is no event {event.type}")

    def _use(self, uses: int, amount: int) -> None:
        self.used += amount if self.rules.kind == "balance" else uses

    def _too_much(self, amount: int) -> str:
        """Why ``amount``, already applied, is illegal, or empty."""
        if self.rules.kind == "balance" and amount <= 0:
            return "nothing was taken from the balance"
        if self.rules.kind != "balance" and amount != self.rules.face:
            return "another amount than the code is worth"
        if self.rules.kind == "balance":
            return "the balance is below zero" if self.used > self.rules.face else ""
        if self.rules.kind == "multi":
            return "used more often than max_uses" if self.used > self.rules.max_uses else ""
        return ""

    def _redeemed(self, event: CodeEvent) -> Effect:
        amount = event.amount or 0
        illegal = ""
        if self.rules.kind == "single":
            if self.redeemed:
                illegal = "succeeds a second time"
            elif self.holds:
                illegal = "redeemed while it is held"
            self.redeemed = True
        if self.void:
            illegal = illegal or "redeemed while it is void"
        self._use(1, amount)
        return Effect(1, amount, illegal or self._too_much(amount))

    def _held(self, event: CodeEvent) -> Effect:
        amount, before = event.amount or 0, self.holds.get(event.redemption)
        illegal = "held while it is void" if self.void else ""
        if self.rules.kind == "single":
            if self.redeemed:
                illegal = "held after it was redeemed"
            elif self.holds and before is None:
                illegal = "held twice"
        self.holds[event.redemption] = CodeHold(event.user, event.order, amount)
        if before is None:
            self._use(1, amount)
            return Effect(1, amount, illegal or self._too_much(amount))
        if self.rules.kind != "balance" and amount != before.amount:
            illegal = "a renewed hold has another amount"
        self._use(0, amount - before.amount)
        return Effect(0, amount - before.amount, illegal or self._too_much(amount))

    def _confirmed(self, event: CodeEvent) -> Effect:
        amount, hold_id = event.amount or 0, self._hold_of(event)
        illegal = "succeeds a second time" if self.redeemed else ""
        if self.rules.kind == "single":
            self.redeemed, self.void = True, False
        if hold_id is None:
            self._use(1, amount)
            return Effect(1, amount, illegal or "confirmed without a hold")
        held = self.holds.pop(hold_id)
        if amount > held.amount or (self.rules.kind != "balance" and amount != held.amount):
            illegal = illegal or "confirmed with another amount than was held"
        self._use(0, amount - held.amount)
        return Effect(0, amount - held.amount, illegal)

    def _hold_of(self, event: CodeEvent) -> str | None:
        """The hold that a confirmation ends.

        If the event does not name it, it is its order's; of several, one of the same amount.
        """
        if event.hold:
            held = self.holds.get(event.hold)
            return event.hold if held is not None and self._is_of(held, event) else None
        own = [id_ for id_, hold in self.holds.items() if self._is_of(hold, event)]
        same = [id_ for id_ in own if self.holds[id_].amount == (event.amount or 0)]
        return next(iter(same or own), None)

    def _is_of(self, hold: CodeHold, event: CodeEvent) -> bool:
        return may_be_same_user(hold.user, event.user, self.names_erased) and hold.order == event.order

    def _ended(self, event: CodeEvent) -> Effect:
        held = self.holds.pop(event.redemption, None)
        if held is None:
            return Effect(illegal=f"{event.type} without a hold")
        self._use(-1, -held.amount)
        illegal = (
            "" if held.amount == (event.amount or 0) else f"{event.type} with another amount than was held"
        )
        return Effect(-1, -held.amount, illegal)

    def _rolled_back(self, event: CodeEvent) -> Effect:
        amount, before = event.amount or 0, self.given_back.get(event.redemption)
        total = (before or 0) + amount
        self.given_back[event.redemption] = total
        whole = self.rules.kind != "balance" or total >= (event.redeemed or 0)
        illegal = "" if event.known else "rolled back what was not redeemed"
        if event.known and self.rules.kind == "balance" and (amount <= 0 or total > (event.redeemed or 0)):
            illegal = "rolled back more than was redeemed"
        elif event.known and self.rules.kind != "balance":
            if before is not None:
                illegal = "rolled back twice"
            elif amount != (event.redeemed or 0):
                illegal = "rolled back another amount than was redeemed"
            elif self.rules.kind == "single" and not self.redeemed:
                illegal = "rolled back while it was not redeemed"
        self.redeemed = False
        self._use(-1, -amount)
        return Effect(-1 if whole else 0, -amount, illegal)

    def _voided(self, *, void: bool) -> Effect:
        illegal = ""
        if self.rules.kind == "single" and self.redeemed:
            illegal = "void or not after it was redeemed"
        elif self.void == void:
            illegal = "made void twice" if void else "made good again while it was not void"
        self.void = void
        return Effect(illegal=illegal)

    def _adjusted(self, event: CodeEvent) -> Effect:
        if self.rules.kind != "balance":
            return Effect(illegal="adjusted without a balance")
        illegal = "adjusted while it is void" if self.void else ""
        self.used -= event.amount or 0
        below = self.used > self.rules.face
        return Effect(illegal=illegal or ("the balance is below zero" if below else ""))


def may_be_same_user(user: str, other: str, names_erased: Collection[str]) -> bool:
    """Whether two names can be one user: equal, or one is the pseudonym of an erased user."""
    return user == other or user in names_erased or other in names_erased
