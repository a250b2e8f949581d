"""Response headers that both lanes send."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from engine.api.problems import PROBLEM_TYPE
from engine.encoding import JSON_TYPE

if TYPE_CHECKING:
    from engine.settings import Settings

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 11.6.1


def response_headers(status: int, retry_after_s: int) -> dict[str, str]:
    """Headers of one answer of the core; ``retry_after_s`` is 0 where there is no Retry-After."""
    headers = {"Content-Type": JSON_TYPE if status == HTTPStatus.OK else PROBLEM_TYPE}
    if retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    return headers


def durability_headers(settings: Settings) -> dict[str, str]:
    """Headers that warn that a change may be lost, where Redis does not fsync."""
    return {} if settings.durability == "disk" else {"Redeem-Durability": "memory"}
