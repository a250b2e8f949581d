"""Encodes outcomes for HTTP. Both lanes and the batch call use it, so equal outcomes get equal bytes."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from engine.api.outcomes import Refused, RefusedTogether, Retry
from engine.api.problems import RETRYABLE_STATUS, plain_problem, problem
from engine.errors import ContractViolation

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome

_encode: Final = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """Status and body of an HTTP response. ``retry_after_s`` is 0 if it has no Retry-After header."""

    status: int
    body: bytes
    retry_after_s: int = 0


def encode_outcome(outcome: Outcome, fault_retry_after_s: int) -> Answer:
    """Encode an outcome. ``fault_retry_after_s`` is the Retry-After of every 503.

    Raises:
        ContractViolation: the outcome is internal (``Retry``); no client may get it.
    """
    if isinstance(outcome, Refused):
        status, body = _refused(outcome)
        retry_after_s = outcome.retry_after_s
    elif isinstance(outcome, RefusedTogether):
        status, body = _refused_together(outcome)
        retry_after_s = outcome.retry_after_s
    elif isinstance(outcome, Retry):
        raise ContractViolation(f"{outcome.value} is not an outcome for a client")
    else:
        return Answer(HTTPStatus.OK, _encode(outcome))
    return Answer(status, body, fault_retry_after_s if status == RETRYABLE_STATUS else retry_after_s)


def _refused(refused: Refused) -> tuple[int, bytes]:
    if not (refused.detail or refused.retry_after_s):
        return plain_problem(refused.code, replayed=refused.replayed)
    extra: dict[str, Any] = {}
    if refused.retry_after_s:
        extra["retry_after_s"] = refused.retry_after_s
    if refused.replayed:
        extra["replayed"] = True
    return problem(refused.code, refused.detail, **extra)


def _refused_together(refused: RefusedTogether) -> tuple[int, bytes]:
    """A problem with the code of the first refusal. ``refusals`` lists all, by the position of the code."""
    extra: dict[str, Any] = {
        "item": min(refused.refusals),
        "refusals": [{"item": at, "code": code} for at, code in sorted(refused.refusals.items())],
    }
    if refused.retry_after_s:
        extra["retry_after_s"] = refused.retry_after_s
    if refused.replayed:
        extra["replayed"] = True
    return problem(refused.code, **extra)
