"""Counts the events of a write by campaign and type, for ``campaign_totals``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from engine.store.events import EventId, counted_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Totals(NamedTuple):
    """What a write adds, as columns: one entry for each campaign and type."""

    campaigns: list[str]
    types: list[str]
    events: list[int]
    amounts: list[int]


NO_TOTALS: Final = Totals([], [], [], [])


def count_totals(columns: Sequence[Sequence[object]]) -> Totals:
    """Count rows of the ledger, given by column in the order of ``COLUMNS``."""
    events: Counter[tuple[str, str]] = Counter()
    amounts: Counter[tuple[str, str]] = Counter()
    if columns:
        shards, stream_ms, stream_seq, _, types, redemptions, campaigns, _, _, last4, _, amount, *_ = columns
        # Rows that are alike are counted together: a sale has few amounts.
        rows = cast("Iterable[tuple[str, str, int | None]]", zip(campaigns, types, amount, strict=True))
        for (campaign, kind, value), count in Counter(rows).items():
            events[campaign, kind] += count
            amounts[campaign, kind] += count * (value or 0)
        for at, kind in enumerate(cast("Sequence[str]", types)):
            if kind in {"held", "voided", "unvoided"}:
                name = EventId(*cast("tuple[int, int, int]", (shards[at], stream_ms[at], stream_seq[at])))
                counted = counted_type(kind, str(name), str(redemptions[at]), str(last4[at]))
                if counted != kind:
                    campaign, value = str(campaigns[at]), cast("int | None", amount[at]) or 0
                    events[campaign, kind] -= 1
                    amounts[campaign, kind] -= value
                    if counted:
                        events[campaign, counted] += 1
                        amounts[campaign, counted] += value
    found = [place for place, count in events.items() if count]
    return Totals(
        [campaign for campaign, _ in found],
        [kind for _, kind in found],
        [events[place] for place in found],
        [amounts[place] for place in found],
    )
