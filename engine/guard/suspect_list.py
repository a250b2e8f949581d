"""The suspected sources of one worker with their evidence, for those who decide what to do about them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from engine.guard.labels import OK, SPENT, UNKNOWN
from engine.guard.suspects import SEEN, TRAIL, last4_of
from engine.times import instant

if TYPE_CHECKING:
    from engine.guard.guard import Guard
    from engine.guard.labels import Source
    from engine.guard.suspects import Suspect

LOOKED_AT_MAX: Final = 2000
"""Suspects that one list looks at, those that were heard of last: a few milliseconds of a worker's time."""
_WORDS: Final = {UNKNOWN: "unknown", SPENT: "spent", OK: "ok"}


def suspect_list(guard: Guard, now_s: float, limit: int) -> dict[str, object]:
    """Return the JSON object of ``GET /v1/guard/sources``: the sources with the highest scores first."""
    suspects = guard.behaviour.suspects

    def rank(one: tuple[Source, Suspect]) -> tuple[float, int]:
        return round(suspects.score(one[1], now_s), 2), _last_s(one[1])

    # A page's attempt can be refused with neither label: there is nothing to show of it.
    shown = (one for one in suspects.latest(LOOKED_AT_MAX) if one[1].trail)
    found = heapq.nlargest(limit, shown, key=rank)
    return {
        "items": [_document(guard, source, suspect, now_s) for source, suspect in found],
        "threshold": round(suspects.threshold, 2),
        "suspected": len(suspects),
    }


def _document(guard: Guard, source: Source, suspect: Suspect, now_s: float) -> dict[str, object]:
    api_key, kind, subject = source
    block = guard.block_of(source)
    trail = list(TRAIL.iter_unpack(suspect.trail))
    first = min([trail[0][0], *(at for _, at in SEEN.iter_unpack(suspect.unknown + suspect.spent))])
    return {
        "api_key": api_key,
        "kind": kind,
        "subject": subject,
        "score": round(guard.behaviour.suspects.score(suspect, now_s), 2),
        "unknown": len(suspect.unknown) // SEEN.size,
        "spent": len(suspect.spent) // SEEN.size,
        "since": instant(1000 * first),
        "last_at": instant(1000 * _last_s(suspect)),
        "last4": last4_of(suspect),
        "trail": [
            {"at": instant(1000 * at), "label": _WORDS[label], "score": hundredths / 100}
            for at, label, hundredths in trail
        ],
        "block": None if block is None else f"blk_{block.id}",
        "action": None if block is None else block.action,
    }


def _last_s(suspect: Suspect) -> int:
    second: int
    second, _, _ = TRAIL.unpack(suspect.trail[-TRAIL.size :])
    return second
