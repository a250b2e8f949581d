"""Problem documents: the one table from refusals and faults to HTTP (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from engine.encoding import encode

PROBLEM_TYPE: Final = "application/problem+json"
PAGES: Final = (
    "/problems/"  # where the engine serves the page of each code; relative to the address of the call
)

# code -> (HTTP status, meaning in one sentence)
PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "malformed_request": (400, "The request does not have the form that this call expects."),
    "code_malformed": (400, "This cannot be a code: its length or its symbols are wrong."),
    "invalid_amount": (400, "The amount does not fit this code."),
    "unauthenticated": (401, "The API key is missing, unknown or revoked."),
    "signature_required": (401, "The requests of this API key must be signed."),
    "signature_malformed": (401, "The signature does not have the form that the engine expects."),
    "signature_header_repeated": (401, "A header that belongs to the signature is given more than once."),
    "signature_component_missing": (401, "A part of the request that must be signed is not signed."),
    "signature_components_reordered": (401, "The signed parts of the request are not in the right order."),
    "signature_key_unknown": (401, "This API key has no signing secret with this keyid."),
    "signature_expired": (401, "The signature is too old."),
    "signature_in_future": (401, "The signature was made later than now."),
    "signature_invalid": (401, "The signature is not that of this request."),
    "content_digest_mismatch": (401, "The body is not the one that was signed."),
    "invalid_user_token": (401, "The user token is missing, or does not say who the user is."),
    "request_replayed": (401, "This signed request was received before."),
    "forbidden": (403, "This API key does not have the scope that this call needs."),
    "blocked": (403, "This source is blocked."),
    "challenge_required": (403, "A challenge must be solved first; nothing was done."),
    "not_found": (404, "There is no such resource."),
    "code_not_found": (404, "There is no such code."),
    "redemption_not_found": (404, "There is no such redemption."),
    "hold_not_found": (404, "There is no such hold."),
    "campaign_not_found": (404, "There is no such campaign."),
    "batch_not_found": (404, "There is no such batch."),
    "import_not_found": (404, "There is no such import."),
    "user_not_found": (404, "There is no such user."),
    "webhook_not_found": (404, "There is no such webhook."),
    "method_not_allowed": (405, "This resource does not support this method."),
    "already_redeemed": (409, "The code has been redeemed."),
    "campaign_inactive": (409, "The campaign is not active."),
    "campaign_not_started": (409, "The campaign has not started."),
    "campaign_ended": (409, "The campaign has ended."),
    "sold_out": (409, "The campaign's stock is used up."),
    "uses_exceeded": (409, "The code has reached its maximum number of uses."),
    "budget_exceeded": (409, "The campaign's budget does not cover this."),
    "insufficient_balance": (409, "The balance of the code is too low."),
    "customer_limit_exceeded": (409, "This user has reached the campaign's limit per user."),
    "currency_mismatch": (409, "The code's amounts are in another currency than the request says."),
    "campaign_mismatch": (409, "The code belongs to another campaign than the request says."),
    "held_by_another_order": (409, "The code is held by another order."),
    "code_void": (409, "The code is void."),
    "already_rolled_back": (409, "The redemption has been rolled back."),
    "rollback_exceeds_redeemed": (409, "The amount is larger than the part of the redemption that is left."),
    "hold_expired": (409, "The hold has expired."),
    "import_conflict": (409, "Another import conflicts with this one."),
    "signing_secret_limit": (409, "An API key that signs has one or two signing secrets."),
    "body_too_large": (413, "The body is larger than this call accepts."),
    "unsupported_media_type": (415, "The body must be application/json."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used with another body."),
    "too_many_attempts": (429, "This source has tried too many codes; nothing was done."),
    "internal_error": (500, "The engine failed. Its log has the error."),
    "overloaded": (503, "The engine is at its limit; nothing was done."),
    "store_unavailable": (503, "The store cannot be reached; nothing was done."),
    "store_behind": (503, "The store has lost data and must be rebuilt; nothing was done."),
    "outcome_unknown": (
        503,
        "The answer was lost; it may have been done. Retry with the same Idempotency-Key, or check the code.",
    ),
}
RETRYABLE_STATUS: Final = 503


def problem(code: str, detail: str = "", **extra: object) -> tuple[int, bytes]:
    """Status and problem document of a refusal or fault (RFC 9457, section 3); ``code`` is an extension."""
    status, meaning = PROBLEMS[code]
    body = {
        "type": PAGES + code,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail or meaning,
        "code": code,
        **extra,
    }
    return status, encode(body)


_PLAIN: Final = {code: problem(code) for code in PROBLEMS}
_REPLAYED: Final = {code: problem(code, replayed=True) for code in PROBLEMS}


def plain_problem(code: str, *, replayed: bool = False) -> tuple[int, bytes]:
    """The problem of a code with the sentence of the table. It was encoded once, in advance."""
    return (_REPLAYED if replayed else _PLAIN)[code]
