"""The bodies of requests about codes, checked; none of what they refuse is quoted, as it may be a code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from engine.api.bodies import (
    AMOUNT_MAX,
    Client,
    check_amount,
    check_customer,
    check_text,
    decoded,
)
from engine.errors import Refusal

if TYPE_CHECKING:
    from engine.settings import Settings


class HoldRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds``. ``ttl_s``: how long the hold lasts, in seconds."""

    code: str
    user: str
    order: str
    amount: int | Literal["up_to_balance"] | None = None
    ttl_s: int | None = None
    client: Client | None = None
    metadata: dict[str, Any] | None = None


class ConfirmRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds/{id}/confirm``: less than what a balance's hold holds."""

    amount: int | None = None


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds/{id}/release``."""


class RollbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/{id}/rollback``. ``void``: the code is not to be used again."""

    reason: str
    amount: int | None = None
    void: bool = False


class CheckRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/codes/check``."""

    code: str
    user: str | None = None


class AdjustRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/codes/adjust``. ``amount``: what is added to the balance; it may be negative."""

    code: str
    amount: int
    reason: str


class CombinedItem(msgspec.Struct, forbid_unknown_fields=True):
    """One of the codes of a combined redemption."""

    code: str
    amount: int | Literal["up_to_balance"] | None = None


class CombinedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/combined``: all of the codes or none, for one order."""

    codes: list[CombinedItem]
    user: str
    order: str
    client: Client | None = None
    metadata: dict[str, Any] | None = None


_hold: Final = msgspec.json.Decoder(HoldRequest).decode
_confirm: Final = msgspec.json.Decoder(ConfirmRequest).decode
_release: Final = msgspec.json.Decoder(ReleaseRequest).decode
_rollback: Final = msgspec.json.Decoder(RollbackRequest).decode
_check: Final = msgspec.json.Decoder(CheckRequest).decode
_adjust: Final = msgspec.json.Decoder(AdjustRequest).decode
_combined: Final = msgspec.json.Decoder(CombinedRequest).decode


def parse_hold(body: bytes, settings: Settings) -> HoldRequest:
    """The request in a body.

    Raises:
        Refusal: ``malformed_request`` or ``invalid_amount``, with what is wrong; so all of these do.
    """
    request = decoded(_hold, body)
    check_customer(request, settings)
    check_amount(request.amount)
    if request.ttl_s is not None and not 1 <= request.ttl_s <= settings.hold_ttl_max_s:
        raise Refusal("malformed_request", f"ttl_s must be between 1 and {settings.hold_ttl_max_s}")
    return request


def parse_confirm(body: bytes) -> ConfirmRequest:
    """The request in a body, which may be empty."""
    request = decoded(_confirm, body or b"{}")
    check_amount(request.amount)
    return request


def parse_release(body: bytes) -> None:
    """Nothing, or an empty object."""
    decoded(_release, body or b"{}")


def parse_rollback(body: bytes, settings: Settings) -> RollbackRequest:
    """The request in a body."""
    request = decoded(_rollback, body)
    check_text("reason", request.reason, settings.reason_length_max)
    check_amount(request.amount)
    return request


def parse_check(body: bytes, settings: Settings) -> CheckRequest:
    """The request in a body."""
    request = decoded(_check, body)
    if request.user is not None:
        check_text("user", request.user, settings.user_length_max)
    return request


def parse_adjust(body: bytes, settings: Settings) -> AdjustRequest:
    """The request in a body."""
    request = decoded(_adjust, body)
    check_text("reason", request.reason, settings.reason_length_max)
    if request.amount == 0 or abs(request.amount) > AMOUNT_MAX:
        raise Refusal("invalid_amount", f"amount must be at most {AMOUNT_MAX} minor units, and not 0")
    return request


def parse_combined(body: bytes, settings: Settings) -> CombinedRequest:
    """The request in a body."""
    request = decoded(_combined, body)
    check_customer(request, settings)
    if not 0 < len(request.codes) <= settings.combined_items_max:
        raise Refusal("malformed_request", f"codes must be 1 to {settings.combined_items_max}")
    for item in request.codes:
        check_amount(item.amount)
    return request
