"""What every connection of the persister shares: time limits, keepalives, and errors as one line."""

from __future__ import annotations

from typing import Final

REPLY_TIMEOUT_S: Final = 10.0
"""How long Redis may take for a reply, beyond the time it was asked to wait."""

KEEPALIVES: Final = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""PostgreSQL notices within a minute that this machine is gone, and frees its advisory locks."""


def describe_error(error: BaseException) -> str:
    """An error in one line, without the values of the row it is about (PostgreSQL puts them in DETAIL)."""
    code = getattr(error, "sqlstate", None)
    message = str(error if isinstance(error, OSError) or not error.args else error.args[0])
    return " ".join(part for part in (type(error).__name__, code, message) if part)
