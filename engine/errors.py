"""Every refusal and every fault, and the one table that maps them to HTTP.

A refusal is a value: its code travels as a plain ``str`` from the script to the answer.
A fault is an exception: ``Overloaded`` and ``StoreUnavailable`` mean certainly not done,
``OutcomeUnknown`` perhaps done, ``ContractViolation`` our own bug.
Problem documents are RFC 9457 (section 3); ``code`` is their stable extension member.
"""

from __future__ import annotations

from typing import Final

# code -> (HTTP status, what it means in one sentence)
PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "malformed_request": (400, "The request is not of the form this call takes."),
    "code_malformed": (400, "This cannot be a code: wrong length or symbols."),
    "invalid_amount": (400, "The amount does not fit this code."),
    "unauthenticated": (401, "An API key is required, and this one is missing, unknown or revoked."),
    "forbidden": (403, "This API key does not have the scope this call needs."),
    "not_found": (404, "There is no such resource."),
    "code_not_found": (404, "There is no such code."),
    "redemption_not_found": (404, "There is no such redemption."),
    "hold_not_found": (404, "There is no such hold."),
    "campaign_not_found": (404, "There is no such campaign."),
    "batch_not_found": (404, "There is no such batch."),
    "import_not_found": (404, "There is no such import."),
    "user_not_found": (404, "There is no such user."),
    "webhook_not_found": (404, "There is no such webhook."),
    "method_not_allowed": (405, "This resource does not take that method."),
    "already_redeemed": (409, "The code has been redeemed."),
    "campaign_inactive": (409, "The campaign is not active."),
    "campaign_not_started": (409, "The campaign has not started."),
    "campaign_ended": (409, "The campaign has ended."),
    "sold_out": (409, "The campaign's stock is used up."),
    "uses_exceeded": (409, "The code has been used as often as it may be."),
    "budget_exceeded": (409, "The campaign's budget does not cover this."),
    "insufficient_balance": (409, "The code does not hold that much."),
    "customer_limit_exceeded": (409, "This user has reached the campaign's limit for one user."),
    "held_by_another_order": (409, "The code is held by another order."),
    "code_void": (409, "The code is void."),
    "already_rolled_back": (409, "The redemption has been rolled back."),
    "rollback_exceeds_redeemed": (409, "That is more than what is left of the redemption."),
    "hold_expired": (409, "The hold has expired."),
    "import_conflict": (409, "Another import is in the way of this one."),
    "body_too_large": (413, "The body is larger than this call takes."),
    "unsupported_media_type": (415, "The body must be application/json."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used with another body."),
    "internal_error": (500, "The engine failed; what happened is in its log."),
    "overloaded": (503, "The engine is at its limit; nothing was done."),
    "store_unavailable": (503, "The store cannot be reached; nothing was done."),
    "store_behind": (503, "The store has lost data and must be rebuilt; nothing was done."),
    "outcome_unknown": (
        503,
        "The answer was lost; it may have been done. Retry with the same Idempotency-Key, or look.",
    ),
}
RETRYABLE_STATUS: Final = 503


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


class Refusal(Exception):
    """A refusal raised where returning it would only thread it through; never on the redeem path.

    Attributes:
        code: a key of ``PROBLEMS``.
        detail: what exactly, in a sentence. Never a code, key or token.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
