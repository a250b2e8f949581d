"""Checks fields that several requests share.

A refusal names the field, never its value, because the value may be a code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import orjson

from engine.encoding import canonical, normal_form
from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.settings import Settings

AMOUNT_MAX: Final = 2**53 - 1  # minor units; the largest integer that JSON numbers and Lua hold exactly
CLIENT_FIELD_LENGTH_MAX: Final = 256
SOLUTION_LENGTH_MAX: Final = 2048
CAMPAIGN_LENGTH_MAX: Final = 40
# Of the characters that Python calls printable: those with Default_Ignorable_Code_Point (UAX #44), and the
# empty Braille pattern, which looks like a space.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


class Client(msgspec.Struct, forbid_unknown_fields=True):
    """The device of the merchant's customer. The merchant may leave out each field.

    ``challenge``: the solution of a challenge (``engine.guard.challenges``).
    """

    ip: str | None = None
    device: str | None = None
    challenge: str | None = None


class Customer(Protocol):
    """A request with a user, and optionally an order, a client and metadata."""

    user: str
    client: Client | None
    metadata: dict[str, Any] | None


def check_customer(request: Customer, settings: Settings) -> None:
    """Refuse a user, an order, a client or metadata that cannot be stored.

    Raises:
        Refusal: ``malformed_request``.
    """
    request.user = user_name(request.user, settings.user_length_max)
    order = getattr(request, "order", None)
    if order is not None:
        check_text("order", order, settings.order_length_max)
    check_client(request.client)
    if request.metadata is not None:
        _check_metadata(request.metadata, settings.metadata_bytes_max)


def check_client(client: Client | None) -> None:
    """Refuse a client whose fields cannot be compared.

    Raises:
        Refusal: ``malformed_request``.
    """
    if client is not None:
        for name in ("ip", "device"):
            value = getattr(client, name)
            if value is not None:
                check_text(f"client.{name}", value, CLIENT_FIELD_LENGTH_MAX)
        if client.challenge is not None:
            check_text("client.challenge", client.challenge, SOLUTION_LENGTH_MAX)


def check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    """Refuse a value that is not among at least two choices; None is accepted.

    Raises:
        Refusal: ``malformed_request``.
    """
    if value is not None and value not in choices:
        raise Refusal("malformed_request", f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}")


def user_name(user: str, length_max: int) -> str:
    """Return the name under which a user is known: in NFC (UAX #15), so that one spelling is one user.

    Raises:
        Refusal: ``malformed_request``: as ``check_text``; or the name has a space at an end, or an invisible
            character, so that it would look like that of another user.
    """
    user = normal_form(user)
    check_text("user", user, length_max)
    if user[0] == " " or user[-1] == " ":
        raise Refusal("malformed_request", "user must not begin or end with a space")
    if not user.isascii() and _INVISIBLE.search(user):
        raise Refusal("malformed_request", "user has invisible characters")
    return user


def check_amount(amount: int | str | None) -> None:
    """Refuse an amount that is negative or too large for any code.

    Raises:
        Refusal: ``invalid_amount``.
    """
    if isinstance(amount, int) and not 0 <= amount <= AMOUNT_MAX:
        raise Refusal("invalid_amount", f"amount must be between 0 and {AMOUNT_MAX} minor units")


def check_assertions(currency: str | None, campaign: str | None) -> None:
    """Refuse a currency or a campaign that no code can have.

    Raises:
        Refusal: ``malformed_request``.
    """
    if currency is not None and not _CURRENCY.fullmatch(currency):
        raise Refusal("malformed_request", "currency must be three capital letters (ISO 4217), such as EUR")
    if campaign is not None:
        check_text("campaign", campaign, CAMPAIGN_LENGTH_MAX)


def _check_metadata(metadata: dict[str, Any], bytes_max: int) -> None:
    try:
        size = len(canonical([metadata])) - 2  # in a list, as in a fingerprint: it must nest no deeper there
    except orjson.JSONEncodeError:  # nested too deep, or an integer of more than 64 bits
        raise Refusal(
            "malformed_request", "metadata is nested too deep, or has an integer of more than 64 bits"
        ) from None
    if size > bytes_max:
        raise Refusal("malformed_request", f"metadata is larger than {bytes_max} bytes")


def check_text(name: str, value: str, length_max: int) -> None:
    """Refuse text that is empty, too long, or has unprintable characters.

    Raises:
        Refusal: ``malformed_request``; the detail names the field.
    """
    if not 0 < len(value) <= length_max:
        raise Refusal("malformed_request", f"{name} must have 1 to {length_max} characters")
    if not value.isprintable():
        raise Refusal("malformed_request", f"{name} has unprintable characters")


def check_idempotency_key(value: str, settings: Settings) -> None:
    """Refuse an Idempotency-Key that is empty, too long, or has characters other than printable ASCII.

    Raises:
        Refusal: ``malformed_request``.
    """
    if not value.isascii():
        raise Refusal("malformed_request", "Idempotency-Key must be ASCII")
    check_text("Idempotency-Key", value, settings.idempotency_key_length_max)
