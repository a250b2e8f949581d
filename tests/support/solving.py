"""Challenges, solved by altcha's own solver as a page would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import altcha
import orjson

if TYPE_CHECKING:
    from tests.support.browsers import Seen

EASY: Final[dict[str, Any]] = {"guard_challenge_rounds": 1, "guard_requests_per_min": 0}
"""Settings with which a challenge takes no time, and without the limit of calls."""


def challenge_of(seen: Seen) -> altcha.Challenge:
    """Return the challenge of an answer that demands a solution."""
    assert (seen.status, seen.code) == (403, "challenge_required")
    return altcha.Challenge.from_dict(orjson.loads(seen.body)["challenge"])


def reason_of(seen: Seen) -> str:
    """Return why a challenge is demanded."""
    challenge_of(seen)
    return str(orjson.loads(seen.body)["reason"])


def solved(challenge: altcha.Challenge, counter_start: int = 0) -> str:
    """Return the solution, as a page sends it."""
    solution = altcha.solve_challenge(challenge, counter_start=counter_start)
    assert solution is not None
    return altcha.Payload(challenge, solution).to_base64()
