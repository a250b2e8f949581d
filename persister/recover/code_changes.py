"""Which events turn the code that the ledger knows into the code that Redis has.

The events that were lost are not known, only their effect. So the events made here are the fewest that have
the same effect; what they cannot say (user, order, key, time) stays empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.store import keys
from persister.reconcile.code_state import CodeEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persister.reconcile.code_state import CodeState
    from persister.reconcile.comparisons import ComparedHold, Difference


@dataclass(slots=True)
class CodeChanges:
    """What Redis has of one code, where that differs from the ledger.

    Attributes:
        state: its two bits; None if they are the same.
        used: uses or amount used; None if it is the same.
        ended: ids of holds that Redis no longer has.
        held: holds that only Redis has, by id.
        given_back: amount given back of redemptions, by id, where Redis has more than the ledger.
    """

    state: int | None = None
    used: int | None = None
    ended: list[str] = field(default_factory=list)
    held: dict[str, ComparedHold] = field(default_factory=dict)
    given_back: dict[str, int] = field(default_factory=dict)


class LiveRedemption(NamedTuple):
    """A redemption in the ledger that was not rolled back."""

    id: str
    user: str
    amount: int | None


def changes_by_code(
    different: Iterable[Difference], codes_of_redemptions: dict[str, tuple[int, int]]
) -> dict[tuple[int, int], CodeChanges]:
    """Sort differences by batch and serial. Counters are left out: they follow from the codes."""
    changes: dict[tuple[int, int], CodeChanges] = {}
    for (check, shard, name), ours, found in different:
        if check == "states":
            changes.setdefault(name, CodeChanges()).state = found
        elif check in {"balances", "uses"}:
            changes.setdefault(name, CodeChanges()).used = found
        elif check == "rollbacks" and name[1] in codes_of_redemptions and (found or 0) >= (ours or 0):
            code = changes.setdefault(codes_of_redemptions[name[1]], CodeChanges())
            code.given_back[name[1]] = (found or 0) - (ours or 0)
        elif check == "holds":
            hold = ours if found is None else found
            code = changes.setdefault((hold.batch, hold.serial), CodeChanges())
            hold_id = f"{shard}-{name[0]}"
            if ours is not None:
                code.ended.append(hold_id)
            if found is not None:
                code.held[hold_id] = found
    return changes


def events_of(
    code: CodeState, changes: CodeChanges, live: Iterable[LiveRedemption], face: int | None
) -> list[CodeEvent]:
    """Return the events, and apply each to ``code``.

    Args:
        code: as the ledger knows it.
        changes: what Redis has instead.
        live: the code's redemptions that may be rolled back, the newest first.
        face: the amount of one success; None if the code has no amount, or a balance.
    """
    making = _Making(code, changes, list(live), face)
    making.give_back()
    making.end_holds()
    making.use()
    making.undo()
    making.hold()
    making.void()
    return making.events


class _Making:
    """The events of one code, in the making."""

    def __init__(
        self, code: CodeState, changes: CodeChanges, live: list[LiveRedemption], face: int | None
    ) -> None:
        self.events: list[CodeEvent] = []
        self._code, self._changes, self._live, self._face = code, changes, live, face
        self._balance = code.rules.kind == "balance"
        self._single = code.rules.kind == "single"
        state = code.state if changes.state is None else changes.state
        self._redeemed, self._void = state == keys.REDEEMED, state == keys.VOID
        used = code.used if changes.used is None else changes.used
        # Without the holds that are still to be made.
        self._used = used - sum(hold.amount if self._balance else 1 for hold in changes.held.values())

    def _add(self, event: CodeEvent) -> None:
        self._code.apply(event)
        self.events.append(event)

    def give_back(self) -> None:
        for redemption, amount in self._changes.given_back.items():
            self._live = [other for other in self._live if other.id != redemption]
            has_amount = self._balance or self._face is not None
            self._add(CodeEvent("rolled_back", redemption, amount=amount if has_amount else None))

    def end_holds(self) -> None:
        for hold_id in self._changes.ended:
            if held := self._code.holds.get(hold_id):
                self._add(CodeEvent("released", hold_id, held.user, held.order, held.amount))

    def use(self) -> None:
        if self._is_used_less():
            self._make_valid()
        while self._is_used_less():
            amount = self._used - self._code.used if self._balance else self._face
            self._add(CodeEvent("redeemed", "", amount=amount))

    def undo(self) -> None:
        """Undo redemptions. If none is known, it was lost as well, and there is nothing to undo."""
        if self._balance and self._is_used_more():
            self._make_valid()
            self._add(CodeEvent("adjusted", "", amount=self._code.used - self._used))
        while self._is_used_more() and self._live:
            newest = self._live.pop(0)
            self._add(CodeEvent("rolled_back", newest.id, newest.user, amount=newest.amount))

    def hold(self) -> None:
        for hold_id, hold in self._changes.held.items():
            self._add(CodeEvent("held", hold_id, hold.user or "", hold.order, hold.amount or None))

    def void(self) -> None:
        if self._code.void != self._void:
            self._add(CodeEvent("voided" if self._void else "unvoided", ""))

    def _make_valid(self) -> None:
        if self._code.void:
            self._add(CodeEvent("unvoided", ""))

    def _is_used_less(self) -> bool:
        return self._redeemed and not self._code.redeemed if self._single else self._code.used < self._used

    def _is_used_more(self) -> bool:
        return self._code.redeemed and not self._redeemed if self._single else self._code.used > self._used
