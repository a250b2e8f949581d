"""What travels over HTTP on the redeem path: the request, checked, and every answer as bytes.

The call for one code and the batch call use these, so that the same request gets the same bytes.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec
import orjson

from engine.errors import PROBLEMS, Refusal
from engine.store.idempotency import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.settings import Settings

AMOUNT_MAX: Final = 2**53 - 1  # minor units; what JSON numbers and Lua hold exactly
UP_TO_BALANCE: Final = "up_to_balance"  # instead of an amount: what is there
CLIENT_FIELD_LENGTH_MAX: Final = 256

JSON_TYPE: Final = "application/json"
PROBLEM_TYPE: Final = "application/problem+json"


class Client(msgspec.Struct, forbid_unknown_fields=True):
    """Who the merchant's customer is, as far as the merchant tells."""

    ip: str | None = None
    device: str | None = None


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


_decode_redeem_request = msgspec.json.Decoder(RedeemRequest).decode
_decode_batch_item = msgspec.json.Decoder(BatchItem).decode
_decode_batch_request = msgspec.json.Decoder(BatchRequest).decode
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


class Customer(Protocol):
    """A request that says for whom, and for which of their orders."""

    user: str
    client: Client | None
    metadata: dict[str, Any] | None


def check_customer(request: Customer, settings: Settings) -> None:
    """Refuse a user, an order or what else is told of them that cannot be kept.

    Raises:
        Refusal: ``malformed_request``.
    """
    check_text("user", request.user, settings.user_length_max)
    order = getattr(request, "order", None)
    if order is not None:
        check_text("order", order, settings.order_length_max)
    if request.client is not None:
        for name in ("ip", "device"):
            value = getattr(request.client, name)
            if value is not None:
                check_text(f"client.{name}", value, CLIENT_FIELD_LENGTH_MAX)
    if request.metadata is not None:
        _check_metadata(request.metadata, settings.metadata_bytes_max)


def check_amount(amount: int | str | None) -> None:
    """Refuse an amount that no code can have.

    Raises:
        Refusal: ``invalid_amount``.
    """
    if isinstance(amount, int) and not 0 <= amount <= AMOUNT_MAX:
        raise Refusal("invalid_amount", f"amount must be between 0 and {AMOUNT_MAX} minor units")


def _check_metadata(metadata: dict[str, Any], bytes_max: int) -> None:
    try:
        size = len(canonical([metadata])) - 2  # as deep as a fingerprint has it
    except orjson.JSONEncodeError:  # nested too deep, or an integer past 64 bits
        raise Refusal("malformed_request", "metadata cannot be kept as it is") from None
    if size > bytes_max:
        raise Refusal("malformed_request", f"metadata is larger than {bytes_max} bytes")


def check_text(name: str, value: str, length_max: int) -> None:
    """Refuse text that is empty, too long, or has characters that do not print.

    Raises:
        Refusal: ``malformed_request``, naming the field.
    """
    if not 0 < len(value) <= length_max:
        raise Refusal("malformed_request", f"{name} must have 1 to {length_max} characters")
    if not value.isprintable():
        raise Refusal("malformed_request", f"{name} has characters that do not print")


def check_idempotency_key(value: str, settings: Settings) -> None:
    """Refuse an Idempotency-Key that is empty, too long, or not of visible ASCII characters.

    Raises:
        Refusal: ``malformed_request``.
    """
    if not value.isascii():
        raise Refusal("malformed_request", "Idempotency-Key must be ASCII")
    check_text("Idempotency-Key", value, settings.idempotency_key_length_max)


def _without_values(message: str) -> str:
    """A validation message that names our fields and types only: what the caller sent may be a code."""
    ours = message.startswith(("Expected ", "Object missing required field "))
    return message if ours else "The body has a field this call does not take."


encode = orjson.dumps


def problem(code: str, detail: str = "", **extra: object) -> tuple[int, bytes]:
    """Status and body of a refusal or fault: ``application/problem+json`` (RFC 9457, section 3)."""
    status, meaning = PROBLEMS[code]
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail or meaning,
        "code": code,
        **extra,
    }
    return status, orjson.dumps(body)


_PLAIN: Final = {code: problem(code) for code in PROBLEMS}
_REPLAYED: Final = {code: problem(code, replayed=True) for code in PROBLEMS}


def plain_problem(code: str, *, replayed: bool = False) -> tuple[int, bytes]:
    """The problem of a code with nothing to add, made once."""
    return (_REPLAYED if replayed else _PLAIN)[code]


@functools.lru_cache(maxsize=256)  # what one call redeems is redeemed in one millisecond
def instant(milliseconds: int) -> str:
    """A time as ISO 8601 in UTC, to the millisecond."""
    second, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(second, UTC).isoformat().removesuffix('+00:00')}.{rest:03}Z"


def redeemed(
    *,
    redemption: str,
    campaign: str,
    masked_code: str,
    user: str,
    amount: int | None,
    currency: str | None,
    balance: int | None,
    redeemed_at: str,
    replayed: bool,
) -> bytes:
    """Body of a success. ``masked_code`` shows the last four symbols only.

    ``balance``: what is left on a code that holds an amount; None, and not shown, for any other.
    """
    return encode(
        {
            "id": redemption,
            "status": "redeemed",
            "campaign": campaign,
            "code": masked_code,
            "user": user,
            "amount": amount,
            "currency": currency,
            **({} if balance is None else {"balance": balance}),
            "redeemed_at": redeemed_at,
            "replayed": replayed,
        }
    )
