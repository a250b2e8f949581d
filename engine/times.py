"""Times: ISO 8601 with a zone in requests, UTC to the millisecond in answers and Redis."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import Final

from engine.errors import Refusal

EPOCH_YEAR: Final = 1970  # Redis counts milliseconds from this year
# RFC 3339, section 5.6. Its note allows a space instead of the T.
_INSTANT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(Z|[+-]\d\d:?\d\d)?", re.ASCII | re.IGNORECASE
)


def parse_instant(name: str, text: str) -> datetime:
    """Parse a time; return it in UTC, to the millisecond. ``name`` is the parameter's name for refusals.

    Raises:
        Refusal: ``malformed_request``: it is not a time, has no zone, or is before 1970.
    """
    match = _INSTANT.fullmatch(text)
    if not match:
        raise _malformed(f"{name} must be a time in ISO 8601, such as 2030-01-31T09:00:00Z")
    if not match[2]:
        raise _malformed(f"{name} needs a zone: Z for UTC, or an offset such as +02:00")
    try:
        at = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _malformed(f"{name} is not a time that exists") from None
    if at.year < EPOCH_YEAR:
        raise _malformed(f"{name} must not be before {EPOCH_YEAR}")
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def milliseconds(at: datetime) -> int:
    """Return milliseconds since the epoch, as Redis counts them."""
    return round(at.timestamp() * 1000)


@functools.lru_cache(maxsize=256)  # the redemptions of one call share their millisecond
def instant(at_ms: int) -> str:
    """Format milliseconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    second, rest = divmod(at_ms, 1000)
    return f"{_second(second)}.{rest:03}Z"


@functools.lru_cache(maxsize=256)
def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().removesuffix("+00:00")


def shown_instant(at: datetime) -> str:
    """Format a time as ISO 8601 in UTC, to the millisecond."""
    return instant(milliseconds(at))


def _malformed(detail: str) -> Refusal:
    return Refusal("malformed_request", detail)
