"""Origins of web pages, as a browser sends them in the header ``Origin`` (RFC 6454, section 6.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

ORIGINS_MAX: Final = 100
ORIGIN_LENGTH_MAX: Final = 300
_PORT_MAX: Final = 65_535
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_OWN_MACHINE: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))


def check_origins(origins: Iterable[str]) -> list[str]:
    """Return the origins as browsers spell them, sorted, each once.

    Raises:
        Refusal: ``malformed_request``: there are none or too many, or one is no origin.
    """
    spelled = sorted({_spelled(origin) for origin in origins})
    if not 0 < len(spelled) <= ORIGINS_MAX:
        raise Refusal("malformed_request", f"origins must have 1 to {ORIGINS_MAX} elements")
    return spelled


def _spelled(origin: str) -> str:
    """Browsers send small letters, and no port that is the scheme's own."""
    found = _ORIGIN.fullmatch(origin.lower()) if len(origin) <= ORIGIN_LENGTH_MAX else None
    if found is None or not 0 < int(found[3] or 1) <= _PORT_MAX:
        raise Refusal("malformed_request", "An origin is like https://shop.example, without a path.")
    scheme, host, port = found[1], found[2], int(found[3] or 0)
    if scheme == "http" and host not in _OWN_MACHINE:
        raise Refusal("malformed_request", "An origin must begin with https://, except on localhost.")
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORT[scheme] else "")
