"""Encodes outcomes for HTTP. Both lanes and the batch call use it, so equal outcomes get equal bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.api.outcomes import Challenged, Refused, RefusedTogether, Retry
from engine.api.problems import RETRYABLE_STATUS, plain_problem, problem
from engine.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api.outcomes import Outcome

_OK: Final = 200
_MISTAKES: Final = {
    "missing": "Solve the challenge, and send the solution as client.challenge.",
    "malformed": "client.challenge is no solution of a challenge. Solve the new one.",
    "expired": "The challenge has expired. Solve the new one.",
    "foreign": "The challenge was made for another address or API key. Solve the new one.",
    "used": "The challenge was used before. Solve the new one.",
    "wrong": "The solution is wrong. Solve the new challenge.",
}
_encode: Final = msgspec.json.Encoder().encode


Answer = tuple[int, bytes, int]
"""Status, body, and Retry-After in seconds, 0 for none. A plain tuple: one is made for every redemption."""


def encode_outcome(outcome: Outcome | Challenged, fault_retry_after_s: int) -> Answer:
    """Encode an outcome. ``fault_retry_after_s`` is the Retry-After of every 503.

    Raises:
        ContractViolation: the outcome is internal (``Retry``); no client may get it.
    """
    # Looked up by type: for structs, isinstance() costs as much as the encoding.
    encode_problem = _PROBLEM_ENCODERS.get(type(outcome))
    if encode_problem is None:
        return _OK, _encode(outcome), 0
    status, body, retry_after_s = encode_problem(outcome)
    return status, body, fault_retry_after_s if status == RETRYABLE_STATUS else retry_after_s


def _refused(refused: Refused) -> Answer:
    if not (refused.detail or refused.retry_after_s):
        return *plain_problem(refused.code, replayed=refused.replayed), 0
    extra: dict[str, Any] = {}
    if refused.retry_after_s:
        extra["retry_after_s"] = refused.retry_after_s
    if refused.redemption:
        extra["redemption"] = refused.redemption
    if refused.replayed:
        extra["replayed"] = True
    return *problem(refused.code, refused.detail, **extra), refused.retry_after_s


def _refused_together(refused: RefusedTogether) -> Answer:
    """A problem with the code of the first refusal. ``refusals`` lists all, by the position of the code."""
    extra: dict[str, Any] = {
        "item": min(refused.refusals),
        "refusals": [{"item": at, "code": code} for at, code in sorted(refused.refusals.items())],
    }
    if refused.retry_after_s:
        extra["retry_after_s"] = refused.retry_after_s
    if refused.replayed:
        extra["replayed"] = True
    return *problem(refused.code, **extra), refused.retry_after_s


def _challenged(challenged: Challenged) -> Answer:
    """A problem with the challenge to solve. ``reason``: why the solution that came is none."""
    detail = _MISTAKES[challenged.reason]
    extra = {"reason": challenged.reason, "challenge": challenged.challenge}
    return *problem("challenge_required", detail, **extra), 0


def _internal(outcome: Retry) -> Answer:
    raise ContractViolation(f"{outcome.value} is not an outcome for a client")


_PROBLEM_ENCODERS: Final[dict[type, Callable[[Any], Answer]]] = {
    Refused: _refused,
    RefusedTogether: _refused_together,
    Challenged: _challenged,
    Retry: _internal,
}
