"""Response headers that both lanes send."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from engine.api.problems import PROBLEM_TYPE
from engine.encoding import JSON_TYPE

if TYPE_CHECKING:
    from engine.settings import Settings

SERVER: Final = "redeem"
"""Without versions, which help only attackers."""
CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 11.6.1


def response_headers(status: int, retry_after_s: int) -> dict[str, str]:
    """Headers of an answer. ``retry_after_s`` is 0 for an answer without Retry-After."""
    headers = {"Content-Type": JSON_TYPE if status == HTTPStatus.OK else PROBLEM_TYPE}
    if retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    return headers


def durability_headers(settings: Settings) -> dict[str, str]:
    """Headers that warn that Redis may lose a change; none if Redis fsyncs every change."""
    return {} if settings.durability == "disk" else {"Redeem-Durability": "memory"}
