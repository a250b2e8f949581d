"""Refusals and faults.

On the redeem path a refusal is a value (``engine.api.outcomes.Refused``).
A fault is an exception. ``Overloaded`` and ``StoreUnavailable`` mean that nothing was done.
``OutcomeUnknown`` means that it may have been done. ``ContractViolation`` is a bug of the engine.
``engine/api/problems.py`` maps every code to HTTP.
"""

from __future__ import annotations

from typing import Final


class Fault(Exception):
    """Something failed, and the caller is not the cause."""

    code = "internal_error"


class Overloaded(Fault):
    """A limit is reached; certainly not done."""

    code = "overloaded"


class StoreUnavailable(Fault):
    """Redis or PostgreSQL cannot be used now; certainly not done."""

    code = "store_unavailable"


class StoreBehind(StoreUnavailable):
    """Redis has lost events that the ledger holds; it must be rebuilt. Certainly not done."""

    code = "store_behind"


class OutcomeUnknown(Fault):
    """The request was sent, but the reply was lost: perhaps done. Safe to retry with the same key."""

    code = "outcome_unknown"


class ContractViolation(Fault):
    """Two parts of the engine disagree: a bug. The details are logged, not sent to the caller."""


RETRYABLE_FAULTS: Final = frozenset(
    fault.code for fault in (Overloaded, StoreUnavailable, StoreBehind, OutcomeUnknown)
)
"""Codes of faults after which the same request may succeed if it is sent again."""


class Refusal(Exception):
    """A refusal as an exception, for calls outside the redeem path and for request checks.

    Attributes:
        code: a key of ``engine.api.problems.PROBLEMS``.
        detail: one sentence about the cause. Never contains a code, key or token.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


def not_a_cursor() -> Refusal:
    """Return the refusal of an ``after`` that does not come from the list."""
    return Refusal("malformed_request", "after is not a cursor of this list")
