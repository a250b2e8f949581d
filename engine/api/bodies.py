"""Parses and checks the request bodies of calls about codes.

A refusal never quotes the body, because the body may contain a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from engine.api.body_errors import refusal_of
from engine.api.checks import (
    AMOUNT_MAX,
    Client,
    check_amount,
    check_assertions,
    check_client,
    check_customer,
    check_idempotency_key,
    check_text,
    user_name,
)
from engine.encoding import normal_form
from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.settings import Settings

UP_TO_BALANCE: Final = "up_to_balance"  # in place of an amount: the whole balance


class RedeemRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions``. ``amount`` is in minor units of the campaign's currency.

    On a ``balance`` code ``up_to_balance`` takes the whole balance. In every body ``currency`` and
    ``campaign`` are assertions: the request is refused if the code has others.
    """

    code: str
    user: str
    amount: int | Literal["up_to_balance"] | None = None
    order: str | None = None
    currency: str | None = None
    campaign: str | None = None
    client: Client | None = None
    metadata: dict[str, Any] | None = None


class PageRedeemRequest(RedeemRequest, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/redemptions`` beside a user token, which says who the user is."""

    user: str = ""


class BatchItem(RedeemRequest, forbid_unknown_fields=True):
    """One request of a batch. Its idempotency key is a member, because all items share the HTTP headers."""

    idempotency_key: str | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/batch``. Each item is parsed and checked later, on its own."""

    items: list[msgspec.Raw]


class HoldRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds``. ``ttl_s``: how long the hold lasts, in seconds."""

    code: str
    user: str
    order: str
    amount: int | Literal["up_to_balance"] | None = None
    ttl_s: int | None = None
    currency: str | None = None
    campaign: str | None = None
    client: Client | None = None
    metadata: dict[str, Any] | None = None


class PageHoldRequest(HoldRequest, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/holds`` beside a user token."""

    user: str = ""


class ConfirmRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds/{id}/confirm``. On a ``balance`` code ``amount`` may be less than was held."""

    amount: int | None = None


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/holds/{id}/release``."""


class RollbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/{id}/rollback``. ``void``: make the code void as well."""

    reason: str
    amount: int | None = None
    void: bool = False


class CheckRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/codes/check``."""

    code: str
    user: str | None = None
    currency: str | None = None
    campaign: str | None = None
    client: Client | None = None


class AdjustRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/codes/adjust``. ``amount`` is added to the balance; it may be negative."""

    code: str
    amount: int
    reason: str


class CombinedItem(msgspec.Struct, forbid_unknown_fields=True):
    """One code of a combined redemption."""

    code: str
    amount: int | Literal["up_to_balance"] | None = None


class CombinedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/redemptions/combined``: all codes or none, for one order."""

    codes: list[CombinedItem]
    user: str
    order: str
    currency: str | None = None
    campaign: str | None = None
    client: Client | None = None
    metadata: dict[str, Any] | None = None


_decode_redeem_request: Final = msgspec.json.Decoder(RedeemRequest).decode
_decode_page_redeem_request: Final = msgspec.json.Decoder(PageRedeemRequest).decode
_decode_page_hold: Final = msgspec.json.Decoder(PageHoldRequest).decode
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


def parse_redeem_request(body: bytes, settings: Settings, *, signed_user: str | None = None) -> RedeemRequest:
    """Parse and check the body of a redemption.

    ``signed_user``: whom a user token names. The body may name the same user, or none.

    Raises:
        Refusal: ``malformed_request`` or ``invalid_amount``. The detail says what is wrong, but never the
        code.
    """
    if signed_user is None:
        return _checked(decoded(_decode_redeem_request, body), settings)
    request = decoded(_decode_page_redeem_request, body)
    request.user = _same_user(request.user, signed_user)
    return _checked(request, settings)


def _same_user(named: str | None, signed: str) -> str:
    """Return the user whom a user token names.

    Raises:
        Refusal: ``malformed_request``: the body names another one.
    """
    if named and normal_form(named) != signed:
        raise Refusal("malformed_request", "user is not the one whom the user token names: leave it out.")
    return signed


def parse_batch_request(body: bytes, settings: Settings) -> list[msgspec.Raw]:
    """Parse a batch. Its items are not parsed yet.

    Raises:
        Refusal: ``malformed_request``: not of this form, no items, or too many items.
    """
    items = decoded(_decode_batch_request, body).items
    if not 0 < len(items) <= settings.batch_items_max:
        raise Refusal("malformed_request", f"items must have 1 to {settings.batch_items_max} elements")
    return items


def parse_batch_item(item: msgspec.Raw, settings: Settings) -> BatchItem:
    """Parse and check one item of a batch.

    Raises:
        Refusal: as ``parse_redeem_request``; also ``malformed_request`` for its idempotency key.
    """
    request = _checked(decoded(_decode_batch_item, item), settings)
    if request.idempotency_key is not None:
        check_idempotency_key(request.idempotency_key, settings)
    return request


def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode a JSON body into a struct. ``decode`` is the method of a ``msgspec.json.Decoder``.

    Raises:
        Refusal: ``malformed_request``; the detail names the field and says what is expected there.
    """
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        decoder: msgspec.json.Decoder[T] = decode.__self__  # type: ignore[attr-defined] # it is a method
        raise refusal_of(error, body, decoder.type) from None


def _checked(request: R, settings: Settings) -> R:
    check_customer(request, settings)
    check_amount(request.amount)
    check_assertions(request.currency, request.campaign)
    return request


def parse_hold(body: bytes, settings: Settings, *, signed_user: str | None = None) -> HoldRequest:
    """Parse and check the body of a hold. ``signed_user``: as for ``parse_redeem_request``.

    Raises:
        Refusal: ``malformed_request`` or ``invalid_amount``. The functions below raise the same.
    """
    if signed_user is None:
        request = decoded(_decode_hold, body)
    else:
        request = decoded(_decode_page_hold, body)
        request.user = _same_user(request.user, signed_user)
    check_customer(request, settings)
    check_amount(request.amount)
    check_assertions(request.currency, request.campaign)
    if request.ttl_s is not None and not 1 <= request.ttl_s <= settings.hold_ttl_max_s:
        raise Refusal("malformed_request", f"ttl_s must be between 1 and {settings.hold_ttl_max_s}")
    return request


def parse_confirm(body: bytes) -> ConfirmRequest:
    """Parse and check the body of a confirmation. It may be empty."""
    request = decoded(_decode_confirm, body or b"{}")
    check_amount(request.amount)
    return request


def parse_release(body: bytes) -> None:
    """Check the body of a release: empty, or an empty object."""
    decoded(_decode_release, body or b"{}")


def parse_rollback(body: bytes, settings: Settings) -> RollbackRequest:
    """Parse and check the body of a rollback."""
    request = decoded(_decode_rollback, body)
    check_text("reason", request.reason, settings.reason_length_max)
    check_amount(request.amount)
    return request


def parse_check(body: bytes, settings: Settings, *, signed_user: str | None = None) -> CheckRequest:
    """Parse and check the body of a check. ``signed_user``: as for ``parse_redeem_request``."""
    request = decoded(_decode_check, body)
    if signed_user is not None:
        request.user = _same_user(request.user, signed_user)
    if request.user is not None:
        request.user = user_name(request.user, settings.user_length_max)
    check_client(request.client)
    check_assertions(request.currency, request.campaign)
    return request


def parse_adjust(body: bytes, settings: Settings) -> AdjustRequest:
    """Parse and check the body of an adjustment."""
    request = decoded(_decode_adjust, body)
    check_text("reason", request.reason, settings.reason_length_max)
    if request.amount == 0 or abs(request.amount) > AMOUNT_MAX:
        raise Refusal(
            "invalid_amount", f"amount must be between -{AMOUNT_MAX} and {AMOUNT_MAX} minor units, and not 0"
        )
    return request


def parse_combined(body: bytes, settings: Settings) -> CombinedRequest:
    """Parse and check the body of a combined redemption."""
    request = decoded(_decode_combined, body)
    check_customer(request, settings)
    if not 0 < len(request.codes) <= settings.combined_items_max:
        raise Refusal("malformed_request", f"codes must have 1 to {settings.combined_items_max} elements")
    for item in request.codes:
        check_amount(item.amount)
    check_assertions(request.currency, request.campaign)
    return request
