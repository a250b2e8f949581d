"""Request bodies of the calls about codes, parsed and checked.

A refusal never quotes the body: it may contain a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from engine.api.checks import (
    AMOUNT_MAX,
    Client,
    check_amount,
    check_customer,
    check_idempotency_key,
    check_text,
)
from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.settings import Settings

UP_TO_BALANCE: Final = "up_to_balance"  # instead of an amount: what is there


class RedeemRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions``. ``amount`` in minor units of the campaign's currency.

    Of a code that holds an amount, ``up_to_balance`` takes what is there.
    """

    code: str
    user: str
    amount: int | Literal["up_to_balance"] | None = None
    order: str | None = None
    client: Client | None = None
    metadata: dict[str, Any] | None = None


class BatchItem(RedeemRequest, forbid_unknown_fields=True):
    """One of the requests of a batch; its idempotency key is a member, as there is one header for all."""

    idempotency_key: str | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/batch``. Each item is checked for itself."""

    items: list[msgspec.Raw]


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


_decode_redeem_request: Final = msgspec.json.Decoder(RedeemRequest).decode
_decode_batch_item: Final = msgspec.json.Decoder(BatchItem).decode
_decode_batch_request: Final = msgspec.json.Decoder(BatchRequest).decode
_decode_hold: Final = msgspec.json.Decoder(HoldRequest).decode
_decode_confirm: Final = msgspec.json.Decoder(ConfirmRequest).decode
_decode_release: Final = msgspec.json.Decoder(ReleaseRequest).decode
_decode_rollback: Final = msgspec.json.Decoder(RollbackRequest).decode
_decode_check: Final = msgspec.json.Decoder(CheckRequest).decode
_decode_adjust: Final = msgspec.json.Decoder(AdjustRequest).decode
_decode_combined: Final = msgspec.json.Decoder(CombinedRequest).decode
T = TypeVar("T")
R = TypeVar("R", bound=RedeemRequest)


def parse_redeem_request(body: bytes, settings: Settings) -> RedeemRequest:
    """The request in a body.

    Raises:
        Refusal: ``malformed_request`` or ``invalid_amount``, with what is wrong; never with the code.
    """
    return _checked(decoded(_decode_redeem_request, body), settings)


def parse_batch_request(body: bytes, settings: Settings) -> list[msgspec.Raw]:
    """The items of a batch, each still to be parsed.

    Raises:
        Refusal: ``malformed_request``: not of the form, no items, or too many.
    """
    items = decoded(_decode_batch_request, body).items
    if not 0 < len(items) <= settings.batch_items_max:
        raise Refusal("malformed_request", f"items must be 1 to {settings.batch_items_max}")
    return items


def parse_batch_item(item: msgspec.Raw, settings: Settings) -> BatchItem:
    """One item of a batch.

    Raises:
        Refusal: as ``parse_redeem_request``, or for its idempotency key.
    """
    request = _checked(decoded(_decode_batch_item, item), settings)
    if request.idempotency_key is not None:
        check_idempotency_key(request.idempotency_key, settings)
    return request


def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """A body in JSON, as a struct.

    Raises:
        Refusal: ``malformed_request``.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Refusal("malformed_request", _without_values(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal("malformed_request", "The body is not valid JSON.") from None


def _checked(request: R, settings: Settings) -> R:
    check_customer(request, settings)
    check_amount(request.amount)
    return request


def parse_hold(body: bytes, settings: Settings) -> HoldRequest:
    """The request in a body.

    Raises:
        Refusal: ``malformed_request`` or ``invalid_amount``, with what is wrong; so all of these do.
    """
    request = decoded(_decode_hold, body)
    check_customer(request, settings)
    check_amount(request.amount)
    if request.ttl_s is not None and not 1 <= request.ttl_s <= settings.hold_ttl_max_s:
        raise Refusal("malformed_request", f"ttl_s must be between 1 and {settings.hold_ttl_max_s}")
    return request


def parse_confirm(body: bytes) -> ConfirmRequest:
    """The request in a body, which may be empty."""
    request = decoded(_decode_confirm, body or b"{}")
    check_amount(request.amount)
    return request


def parse_release(body: bytes) -> None:
    """Nothing, or an empty object."""
    decoded(_decode_release, body or b"{}")


def parse_rollback(body: bytes, settings: Settings) -> RollbackRequest:
    """The request in a body."""
    request = decoded(_decode_rollback, body)
    check_text("reason", request.reason, settings.reason_length_max)
    check_amount(request.amount)
    return request


def parse_check(body: bytes, settings: Settings) -> CheckRequest:
    """The request in a body."""
    request = decoded(_decode_check, body)
    if request.user is not None:
        check_text("user", request.user, settings.user_length_max)
    return request


def parse_adjust(body: bytes, settings: Settings) -> AdjustRequest:
    """The request in a body."""
    request = decoded(_decode_adjust, body)
    check_text("reason", request.reason, settings.reason_length_max)
    if request.amount == 0 or abs(request.amount) > AMOUNT_MAX:
        raise Refusal("invalid_amount", f"amount must be at most {AMOUNT_MAX} minor units, and not 0")
    return request


def parse_combined(body: bytes, settings: Settings) -> CombinedRequest:
    """The request in a body."""
    request = decoded(_decode_combined, body)
    check_customer(request, settings)
    if not 0 < len(request.codes) <= settings.combined_items_max:
        raise Refusal("malformed_request", f"codes must be 1 to {settings.combined_items_max}")
    for item in request.codes:
        check_amount(item.amount)
    return request


def _without_values(message: str) -> str:
    """A validation message that names our fields and types only: what the caller sent may be a code."""
    ours = message.startswith(("Expected ", "Object missing required field "))
    return message if ours else "The body has a field this call does not take."
