"""A model of everything that a code can do, one call after the other: what is answered, and what is then so.

It knows no Redis and no scripts; where the engine is lazy (holds whose time is over are given back when
somebody asks, or by the sweep) the model is lazy in the same way, as events tell.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Final, Literal

UP_TO_BALANCE: Final = "up_to_balance"
Amount = int | Literal["up_to_balance"] | None


@dataclass(eq=False)
class Hold:
    """A hold that is there. ``over``: its time is."""

    code: Code
    id: str
    order: str
    user: str
    amount: int
    over: bool = False


@dataclass(eq=False)
class Redemption:
    """A redemption, and what was given back of it."""

    code: Code
    id: str
    user: str
    amount: int
    given_back: int = 0
    undone: bool = False


@dataclass(eq=False)
class Code:
    """A code: ``used`` is how often, or how much of it."""

    campaign: Campaign
    serial: int
    text: str
    shard: int
    redeemed: bool = False
    void: bool = False
    void_by_range: bool = False
    used: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)  # by what at most one order can hold

    def slot(self, order: str) -> str:
        return "" if self.campaign.kind == "single" else order


@dataclass(eq=False)
class Campaign:
    """A campaign and its counters."""

    id: str
    kind: str
    amount: int
    max_uses: int | None
    stock: int | None
    budget: int | None
    per_user_limit: int | None
    state: str = "active"
    window: str = "open"  # to_come, open, over
    codes: list[Code] = field(default_factory=list)
    uses: int = 0
    spent: int = 0
    users: dict[str, int] = field(default_factory=dict)

    def refusal(self) -> str | None:
        if self.state == "ended":
            return "campaign_ended"
        if self.state != "active":
            return "campaign_inactive"
        return {"to_come": "campaign_not_started", "over": "campaign_ended"}.get(self.window)

    def count(self, user: str, uses: int, amount: int) -> None:
        self.uses += uses
        self.spent += amount
        if self.per_user_limit is not None:
            self.users[user] = max(0, self.users.get(user, 0) + uses)


Outcome = tuple[str, int | None]
"""How a call ends: the code of a refusal, or ``""`` and the amount that was taken or given back."""


class Life:
    """The model. Every call answers with its outcome, and adds the events it makes to ``events``."""

    def __init__(self) -> None:
        self.campaigns: list[Campaign] = []
        self.holds: list[Hold] = []
        self.redemptions: list[Redemption] = []
        self.traces: set[str] = set()  # ids of holds that have expired
        self.events: dict[str, list[tuple[str, int, int]]] = {}  # by campaign: type, serial, amount

    def note(self, code: Code, type_: str, amount: int = 0) -> None:
        self.events.setdefault(code.campaign.id, []).append((type_, code.serial, amount))

    # what counts

    def _use(self, code: Code, user: str, uses: int, amount: int) -> None:
        code.campaign.count(user, uses, amount)
        if code.campaign.kind == "multi":
            code.used += uses
        elif code.campaign.kind == "balance":
            code.used += amount

    def _end(self, hold: Hold) -> None:
        del hold.code.holds[hold.code.slot(hold.order)]
        self.holds.remove(hold)

    def sweep(self, shard: int) -> None:
        """Give back what is held too long."""
        for hold in [hold for hold in self.holds if hold.over and hold.code.shard == shard]:
            self._use(hold.code, hold.user, -1, -hold.amount)
            self.note(hold.code, "expired", hold.amount)
            self._end(hold)
            self.traces.add(hold.id)

    def _takes(self, code: Code, user: str, amount: Amount) -> Outcome:
        campaign = code.campaign
        taken = campaign.amount
        refusal = ""
        if campaign.kind == "balance":
            left = campaign.amount - code.used
            if amount is None or amount == 0:
                return "invalid_amount", None
            taken = left if amount == UP_TO_BALANCE else int(amount)
            if taken > left or taken <= 0:
                refusal = "insufficient_balance"
        elif amount is not None and amount != campaign.amount:
            return "invalid_amount", None
        elif campaign.max_uses is not None and code.used >= campaign.max_uses:
            refusal = "uses_exceeded"
        if refusal:
            pass
        elif campaign.stock is not None and campaign.uses >= campaign.stock:
            refusal = "sold_out"
        elif campaign.budget is not None and campaign.spent + taken > campaign.budget:
            refusal = "budget_exceeded"
        elif campaign.per_user_limit is not None and campaign.users.get(user, 0) >= campaign.per_user_limit:
            refusal = "customer_limit_exceeded"
        return refusal, taken

    def takes(self, code: Code, user: str, amount: Amount) -> Outcome:
        """What code and limits give; refused, once more without what is held too long."""
        refusal, taken = self._takes(code, user, amount)
        over = any(hold.over and hold.code.shard == code.shard for hold in self.holds)
        if refusal not in {"", "invalid_amount"} and over:
            self.sweep(code.shard)
            return self.takes(code, user, amount)
        return refusal, taken

    # the calls

    def _refusal(self, code: Code) -> str | None:
        if refusal := code.campaign.refusal():
            return refusal
        if code.void or code.void_by_range:
            return "code_void"
        return "already_redeemed" if code.redeemed else None

    def _held(self, code: Code, order: str, user: str) -> tuple[str, Hold | None]:
        """Whether somebody else holds it, and the order's own hold."""
        hold = code.holds.get(code.slot(order))
        if hold is not None and hold.over:
            self.sweep(code.shard)
            hold = None
        if hold is not None and (not order or (hold.order, hold.user) != (order, user)):
            return "held_by_another_order", None
        return "", hold

    def redeem(self, code: Code, user: str, amount: Amount, order: str) -> Outcome:
        if refusal := self._refusal(code):
            return refusal, None
        if code.campaign.kind == "single":
            refusal, hold = self._held(code, order, user)
            if refusal:
                return refusal, None
            if hold is not None:
                if amount is not None and amount != hold.amount:
                    return "invalid_amount", None
                return "", self._confirmed(hold, hold.amount)
        refusal, taken = self.takes(code, user, amount)
        if refusal or taken is None:
            return refusal, None
        self._use(code, user, 1, taken)
        code.redeemed = code.campaign.kind == "single"
        self.note(code, "redeemed", taken)
        return "", taken

    def combined(self, codes: list[Code], user: str, amount: Amount, order: str) -> list[Outcome]:
        """All of them or none, of one shard; what is in the way and held too long is given back before."""
        trial, copied = copy.deepcopy((self, codes))
        outcomes = [trial.redeem(code, user, amount, order) for code in copied]
        if trial.traces != self.traces:
            self.sweep(codes[0].shard)
            return self.combined(codes, user, amount, order)
        if all(not refusal for refusal, _ in outcomes):
            for code in codes:
                self.redeem(code, user, amount, order)
        return outcomes

    def _confirmed(self, hold: Hold, taken: int) -> int:
        code = hold.code
        if taken != hold.amount:
            code.campaign.spent += taken - hold.amount
            code.used += taken - hold.amount
        code.redeemed = code.campaign.kind == "single"
        self._end(hold)
        self.note(code, "confirmed", taken)
        return taken

    def hold(  # noqa: C901 - as many ways as a renewal can end
        self, code: Code, user: str, amount: Amount, order: str
    ) -> tuple[str, int | None, Hold | None]:
        if refusal := self._refusal(code):
            return refusal, None, None
        refusal, own = self._held(code, order, user)
        if refusal:
            return refusal, None, None
        if own is not None and code.campaign.kind != "balance":
            if amount is not None and amount != own.amount:
                return "invalid_amount", None, None
            self.note(code, "held", own.amount)
            return "", own.amount, own
        if own is not None:
            self._use(code, user, -1, -own.amount)
        refusal, taken = self._takes(code, user, amount)
        if own is not None and refusal:
            self._use(code, user, 1, own.amount)
            over = any(hold.over and hold.code.shard == code.shard for hold in self.holds)
            if refusal != "invalid_amount" and over:
                self.sweep(code.shard)
                return self.hold(code, user, amount, order)
        elif own is None:
            refusal, taken = self.takes(code, user, amount)
        if refusal or taken is None:
            return refusal, None, None
        self._use(code, user, 1, taken)
        if own is None:
            own = code.holds[code.slot(order)] = Hold(code, "", order, user, taken)
            self.holds.append(own)
        own.amount = taken
        self.note(code, "held", taken)
        return "", taken, own

    def confirm(self, hold: Hold, amount: int | None) -> Outcome:
        if hold not in self.holds:
            return "hold_expired" if hold.id in self.traces else "hold_not_found", None
        campaign = hold.code.campaign
        taken = hold.amount if amount is None else amount
        if hold.over:
            return "hold_expired", None
        if campaign.state == "paused":
            return "campaign_inactive", None
        if hold.code.void or hold.code.void_by_range:
            return "code_void", None
        if taken != hold.amount and (campaign.kind != "balance" or not 0 < taken <= hold.amount):
            return "invalid_amount", None
        return "", self._confirmed(hold, taken)

    def release(self, hold: Hold) -> Outcome:
        if hold not in self.holds:
            return "hold_expired" if hold.id in self.traces else "hold_not_found", None
        if hold.over:
            return "hold_expired", None
        self._use(hold.code, hold.user, -1, -hold.amount)
        self.note(hold.code, "released", hold.amount)
        self._end(hold)
        return "", hold.amount

    def roll_back(self, redemption: Redemption, amount: int | None, *, void: bool) -> Outcome:
        code = redemption.code
        left = redemption.amount - redemption.given_back
        if code.campaign.kind == "balance":
            returned = left if amount is None else amount
            if left <= 0:
                return "already_rolled_back", None
            if returned <= 0:
                return "invalid_amount", None
            if returned > left:
                return "rollback_exceeds_redeemed", None
        else:
            returned = redemption.amount
            if redemption.undone:
                return "already_rolled_back", None
            if amount is not None and amount != redemption.amount:
                return ("rollback_exceeds_redeemed" if amount > redemption.amount else "invalid_amount"), None
        redemption.given_back += returned
        redemption.undone = redemption.given_back == redemption.amount
        self._use(code, redemption.user, -1 if redemption.undone else 0, -returned)
        code.redeemed = False
        self.note(code, "rolled_back", returned)
        if void and not code.void:
            code.void = True
            self.note(code, "voided")
        return "", returned

    def set_void(self, code: Code, *, void: bool) -> Outcome:
        if code.redeemed and not code.void:
            return "already_redeemed", None
        if code.void != void:
            code.void = void
            self.note(code, "voided" if void else "unvoided")
        return "", None

    def adjust(self, code: Code, amount: int) -> Outcome:
        if code.campaign.kind != "balance":
            return "invalid_amount", None
        if code.void or code.void_by_range:
            return "code_void", None
        if code.campaign.amount - code.used + amount < 0:
            return "insufficient_balance", None
        code.used -= amount
        self.note(code, "adjusted", amount)
        return "", None

    def check(self, code: Code, user: str) -> Outcome:
        """What a redemption without an order would be answered; of a balance, of all that is left."""
        if refusal := self._refusal(code):
            return refusal, None
        if code.campaign.kind == "single":
            refusal, _ = self._held(code, "", user)
            if refusal:
                return refusal, None
        return self.takes(code, user, UP_TO_BALANCE if code.campaign.kind == "balance" else None)
