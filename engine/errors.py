"""Refusals and faults.

A refusal is a value: its code travels as a plain ``str`` from the script to the answer.
A fault is an exception: ``Overloaded`` and ``StoreUnavailable`` mean certainly not done,
``OutcomeUnknown`` perhaps done, ``ContractViolation`` our own bug.
``engine/api/problems.py`` maps every code to HTTP.
"""

from __future__ import annotations

from typing import Final


class Fault(Exception):
    """Something failed that is not the caller's doing."""

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
    """Sent, and the reply was lost: perhaps done. Safe to retry with the same key."""

    code = "outcome_unknown"


class ContractViolation(Fault):
    """Two of our own parts disagree. A bug: logged whole, answered bare."""


RETRYABLE_FAULTS: Final = frozenset(
    fault.code for fault in (Overloaded, StoreUnavailable, StoreBehind, OutcomeUnknown)
)
"""Codes of faults after which the same request may fare better."""


class Refusal(Exception):
    """A refusal raised where returning it would only thread it through; never on the redeem path.

    Attributes:
        code: a key of ``engine.api.problems.PROBLEMS``.
        detail: what exactly, in a sentence. Never a code, key or token.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
