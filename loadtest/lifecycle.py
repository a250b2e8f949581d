"""The reference model of a code's lifecycle: what each operation answers, and what it leaves behind.

It is pure Python without I/O. It shares no code with the Lua scripts or with the audit, so the three check
each other. Operations run one after another, never at the same time.

The engine gives expired holds back late: when an operation needs what they hold, or when it looks for expired
holds. The model does the same, because each of these moments writes an event.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

UP_TO_BALANCE: Final = "up_to_balance"
Amount = int | Literal["up_to_balance"] | None
State = Literal["fresh", "held", "redeemed", "void"]
Window = Literal["to_come", "open", "over"]


@dataclass(eq=False, slots=True)
class ModelHold:
    """A live hold. ``over``: its time has passed, and nobody has given it back yet."""

    code: ModelCode
    id: str
    order: str
    user: str
    amount: int
    over: bool = False


@dataclass(eq=False, slots=True)
class ModelRedemption:
    """A redemption, and how much of it was given back."""

    code: ModelCode
    id: str
    user: str
    amount: int
    given_back: int = 0
    undone: bool = False


@dataclass(eq=False, slots=True)
class ModelCode:
    """A code. ``used``: of a `multi` code how often, of a `balance` code how much; held uses count.

    ``holds`` is keyed by `slot`: one order holds a code at most once.
    """

    campaign: ModelCampaign
    batch: int
    serial: int
    text: str = ""
    shard: int = 0
    redeemed: bool = False
    void: bool = False
    void_by_range: bool = False
    used: int = 0
    holds: dict[str, ModelHold] = field(default_factory=dict)

    def slot(self, order: str) -> str:
        """The key of an order's hold: a `single` code has only one."""
        return "" if self.campaign.kind == "single" else order

    @property
    def state(self) -> State:
        """The state that Redis stores in two bits. Only a `single` code is ever redeemed or held there."""
        if self.void:
            return "void"
        if self.redeemed:
            return "redeemed"
        return "held" if self.campaign.kind == "single" and self.holds else "fresh"


@dataclass(eq=False, slots=True)
class ModelCampaign:
    """A campaign: its limits, and its counters. Held uses count.

    ``amount`` is what each code is worth, or what a balance starts with.
    """

    id: str
    kind: str
    amount: int | None = None
    max_uses: int | None = None
    stock: int | None = None
    budget: int | None = None
    per_user_limit: int | None = None
    state: str = "active"
    window: Window = "open"
    codes: list[ModelCode] = field(default_factory=list)
    uses: int = 0
    spent: int = 0
    users: dict[str, int] = field(default_factory=dict)

    @property
    def face(self) -> int:
        """The amount; 0 where there is none."""
        return self.amount or 0

    def refusal(self) -> str:
        """Why nothing can be redeemed now; empty if it can."""
        if self.state == "ended":
            return "campaign_ended"
        if self.state != "active":
            return "campaign_inactive"
        return {"open": "", "to_come": "campaign_not_started", "over": "campaign_ended"}[self.window]

    def count(self, user: str, uses: int, amount: int) -> None:
        """Change the counters of the campaign and of the user."""
        self.uses += uses
        self.spent += amount
        if self.per_user_limit is not None:
            self.users[user] = max(0, self.users.get(user, 0) + uses)


class ModelAnswer(NamedTuple):
    """How an operation ends.

    Attributes:
        refusal: its problem code; empty for a success.
        amount: the amount that was taken or given back.
        hold: the hold that was made or renewed.
        redemption: the redemption that was made. Whoever knows its id sets it there.
    """

    refusal: str = ""
    amount: int | None = None
    hold: ModelHold | None = None
    redemption: ModelRedemption | None = None


class ModelEvent(NamedTuple):
    """An event that an operation writes.

    ``subject`` is the hold or the redemption that it is about; ``hold`` is the hold that a confirmation ends.
    """

    type: str
    code: ModelCode
    amount: int = 0
    subject: ModelHold | ModelRedemption | None = None
    user: str = ""
    order: str = ""
    hold: ModelHold | None = None


class Lifecycle:
    """All holds and redemptions of some codes.

    Each operation returns its `ModelAnswer`, and appends the events that it writes to ``events``.
    ``expired`` has the ids of the holds that have expired.
    """

    def __init__(self) -> None:
        self.holds: list[ModelHold] = []
        self.redemptions: list[ModelRedemption] = []
        self.expired: set[str] = set()
        self.events: list[ModelEvent] = []

    def redeem(self, code: ModelCode, user: str, amount: Amount, order: str) -> ModelAnswer:
        """Redeem a code; a `single` code that the same order holds is confirmed."""
        if refusal := _unusable(code):
            return ModelAnswer(refusal)
        if code.campaign.kind == "single":
            refusal, hold = self._own_hold(code, order, user)
            if refusal:
                return ModelAnswer(refusal)
            if hold is not None:
                return (
                    ModelAnswer("invalid_amount") if amount not in {None, hold.amount} else self._turn(hold)
                )
        refusal, taken = self._allowed(code, user, amount)
        if refusal:
            return ModelAnswer(refusal)
        self._use(code, user, 1, taken)
        return self._redeemed(code, user, taken, order)

    def combined(self, codes: list[ModelCode], user: str, amount: Amount, order: str) -> list[ModelAnswer]:
        """Redeem all of these codes, or none. Expired holds in the way are given back first."""
        trial, copied = copy.deepcopy((self, codes))
        answers = [trial.redeem(code, user, amount, order) for code in copied]
        if trial.expired != self.expired:
            for shard in {hold.code.shard for hold in self.holds if hold.id in trial.expired}:
                self.give_back_expired(shard)
            return self.combined(codes, user, amount, order)
        if any(answer.refusal for answer in answers):
            return answers
        return [self.redeem(code, user, amount, order) for code in codes]

    def hold(self, code: ModelCode, user: str, amount: Amount, order: str) -> ModelAnswer:
        """Hold a code for an order. If the order holds it already, its hold is renewed."""
        if refusal := _unusable(code):
            return ModelAnswer(refusal)
        refusal, own = self._own_hold(code, order, user)
        if refusal:
            return ModelAnswer(refusal)
        if own is not None and code.campaign.kind != "balance":
            if amount not in {None, own.amount}:
                return ModelAnswer("invalid_amount")
            return self._held(own)
        if own is not None:
            return self._hold_other_amount(own, amount)
        refusal, taken = self._allowed(code, user, amount)
        if refusal:
            return ModelAnswer(refusal)
        self._use(code, user, 1, taken)
        hold = code.holds[code.slot(order)] = ModelHold(code, "", order, user, taken)
        self.holds.append(hold)
        return self._held(hold)

    def confirm(self, hold: ModelHold, amount: int | None = None) -> ModelAnswer:
        """Turn a hold into a redemption, of a balance perhaps for less than was held."""
        if refusal := self._gone(hold):
            return ModelAnswer(refusal)
        campaign = hold.code.campaign
        taken = hold.amount if amount is None else amount
        if campaign.state == "paused":
            return ModelAnswer("campaign_inactive")
        if hold.code.void or hold.code.void_by_range:
            return ModelAnswer("code_void")
        if taken != hold.amount and (campaign.kind != "balance" or not 0 < taken <= hold.amount):
            return ModelAnswer("invalid_amount")
        return self._turn(hold, taken)

    def release(self, hold: ModelHold) -> ModelAnswer:
        """Give a hold back."""
        if refusal := self._gone(hold):
            return ModelAnswer(refusal)
        return self._give_back(hold, "released")

    def expire(self, hold: ModelHold) -> ModelAnswer:
        """Give a hold back because its time has passed."""
        self.expired.add(hold.id)
        return self._give_back(hold, "expired")

    def give_back_expired(self, shard: int) -> None:
        """Give back all holds of a shard whose time has passed."""
        for hold in [hold for hold in self.holds if hold.over and hold.code.shard == shard]:
            self.expire(hold)

    def roll_back(
        self, redemption: ModelRedemption, amount: int | None = None, *, void: bool = False
    ) -> ModelAnswer:
        """Give a redemption back, of a balance perhaps in parts; ``void`` makes the code void as well."""
        code = redemption.code
        left = redemption.amount - redemption.given_back
        if code.campaign.kind == "balance":
            returned = left if amount is None else amount
            if left <= 0:
                return ModelAnswer("already_rolled_back")
            if returned <= 0:
                return ModelAnswer("invalid_amount")
            if returned > left:
                return ModelAnswer("rollback_exceeds_redeemed")
        else:
            returned = redemption.amount
            if redemption.undone:
                return ModelAnswer("already_rolled_back")
            if amount is not None and amount != redemption.amount:
                return ModelAnswer(
                    "rollback_exceeds_redeemed" if amount > redemption.amount else "invalid_amount"
                )
        redemption.given_back += returned
        redemption.undone = redemption.given_back == redemption.amount
        self._use(code, redemption.user, -1 if redemption.undone else 0, -returned)
        code.redeemed = False
        self.events.append(ModelEvent("rolled_back", code, returned, redemption, redemption.user))
        if void and not code.void:
            code.void = True
            self.events.append(ModelEvent("voided", code))
        return ModelAnswer("", returned)

    def set_void(self, code: ModelCode, *, void: bool) -> ModelAnswer:
        """Make a code void, or valid again. No event if it is so already."""
        if code.redeemed and not code.void:
            return ModelAnswer("already_redeemed")
        if code.void != void:
            code.void = void
            self.events.append(ModelEvent("voided" if void else "unvoided", code))
        return ModelAnswer()

    def adjust(self, code: ModelCode, amount: int) -> ModelAnswer:
        """Add to a balance, or take from it."""
        if code.campaign.kind != "balance":
            return ModelAnswer("invalid_amount")
        if code.void or code.void_by_range:
            return ModelAnswer("code_void")
        if code.campaign.face - code.used + amount < 0:
            return ModelAnswer("insufficient_balance")
        code.used -= amount
        self.events.append(ModelEvent("adjusted", code, amount))
        return ModelAnswer("", amount)

    def check(self, code: ModelCode, user: str) -> ModelAnswer:
        """Return how a redemption without an order would end; for a balance, one of the whole balance."""
        if refusal := _unusable(code):
            return ModelAnswer(refusal)
        if code.campaign.kind == "single":
            refusal, _ = self._own_hold(code, "", user)
            if refusal:
                return ModelAnswer(refusal)
        return ModelAnswer(
            *self._allowed(code, user, UP_TO_BALANCE if code.campaign.kind == "balance" else None)
        )

    def _use(self, code: ModelCode, user: str, uses: int, amount: int) -> None:
        code.campaign.count(user, uses, amount)
        if code.campaign.kind == "multi":
            code.used += uses
        elif code.campaign.kind == "balance":
            code.used += amount

    def _allowed(self, code: ModelCode, user: str, amount: Amount) -> tuple[str, int]:
        """Return the refusal, if any, and the amount. Before a refusal, expired holds are given back."""
        refusal, taken = _within_limits(code, user, amount)
        if refusal and refusal != "invalid_amount" and self._has_expired_holds(code.shard):
            self.give_back_expired(code.shard)
            return _within_limits(code, user, amount)
        return refusal, taken

    def _has_expired_holds(self, shard: int) -> bool:
        return any(hold.over and hold.code.shard == shard for hold in self.holds)

    def _own_hold(self, code: ModelCode, order: str, user: str) -> tuple[str, ModelHold | None]:
        """The order's own hold, or the refusal if another order holds the code."""
        hold = code.holds.get(code.slot(order))
        if hold is not None and hold.over:
            self.give_back_expired(code.shard)
            hold = None
        if hold is not None and (not order or (hold.order, hold.user) != (order, user)):
            return "held_by_another_order", None
        return "", hold

    def _held(self, hold: ModelHold) -> ModelAnswer:
        self.events.append(ModelEvent("held", hold.code, hold.amount, hold, hold.user, hold.order))
        return ModelAnswer("", hold.amount, hold)

    def _hold_other_amount(self, own: ModelHold, amount: Amount) -> ModelAnswer:
        """Renew a balance's hold: its own amount is available for it."""
        code, user = own.code, own.user
        self._use(code, user, -1, -own.amount)
        refusal, taken = _within_limits(code, user, amount)
        if refusal:
            self._use(code, user, 1, own.amount)
            if refusal != "invalid_amount" and self._has_expired_holds(code.shard):
                self.give_back_expired(code.shard)
                return self._hold_other_amount(own, amount)
            return ModelAnswer(refusal)
        self._use(code, user, 1, taken)
        own.amount = taken
        return self._held(own)

    def _gone(self, hold: ModelHold) -> str:
        """The refusal for a hold that is no longer live."""
        if hold.over or hold.id in self.expired:
            return "hold_expired"
        return "" if hold in self.holds else "hold_not_found"

    def _give_back(self, hold: ModelHold, event_type: str) -> ModelAnswer:
        self._use(hold.code, hold.user, -1, -hold.amount)
        self._remove(hold)
        self.events.append(ModelEvent(event_type, hold.code, hold.amount, hold, hold.user, hold.order))
        return ModelAnswer("", hold.amount)

    def _remove(self, hold: ModelHold) -> None:
        del hold.code.holds[hold.code.slot(hold.order)]
        self.holds.remove(hold)

    def _turn(self, hold: ModelHold, amount: int | None = None) -> ModelAnswer:
        """Turn a hold into a redemption; the part of the hold that is not taken is available again."""
        taken = hold.amount if amount is None else amount
        self._use(hold.code, hold.user, 0, taken - hold.amount)
        self._remove(hold)
        return self._redeemed(hold.code, hold.user, taken, hold.order, hold)

    def _redeemed(
        self, code: ModelCode, user: str, taken: int, order: str, hold: ModelHold | None = None
    ) -> ModelAnswer:
        code.redeemed = code.campaign.kind == "single"
        redemption = ModelRedemption(code, "", user, taken)
        self.redemptions.append(redemption)
        event_type = "redeemed" if hold is None else "confirmed"
        self.events.append(ModelEvent(event_type, code, taken, redemption, user, order, hold))
        return ModelAnswer("", taken, None, redemption)


def _unusable(code: ModelCode) -> str:
    """Return why nobody can redeem or hold the code; empty if it is usable."""
    if refusal := code.campaign.refusal():
        return refusal
    if code.void or code.void_by_range:
        return "code_void"
    return "already_redeemed" if code.redeemed else ""


def _within_limits(code: ModelCode, user: str, amount: Amount) -> tuple[str, int]:
    """Return the refusal by a limit of the code or the campaign, else empty; and the amount to take."""
    campaign = code.campaign
    taken = campaign.face
    if campaign.kind == "balance":
        left = campaign.face - code.used
        if amount is None or amount == 0:
            return "invalid_amount", 0
        taken = left if amount == UP_TO_BALANCE else int(amount)
        if taken > left or taken <= 0:
            return "insufficient_balance", taken
    elif amount is not None and amount != campaign.amount:
        return "invalid_amount", 0
    elif campaign.max_uses is not None and code.used >= campaign.max_uses:
        return "uses_exceeded", taken
    if campaign.stock is not None and campaign.uses >= campaign.stock:
        return "sold_out", taken
    if campaign.budget is not None and campaign.spent + taken > campaign.budget:
        return "budget_exceeded", taken
    if campaign.per_user_limit is not None and campaign.users.get(user, 0) >= campaign.per_user_limit:
        return "customer_limit_exceeded", taken
    return "", taken
