"""Encodes the HTTP answers of the fast lane. aiohttp would send the same bytes."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from engine.api.answers import encode_outcome
from engine.api.headers import SERVER, durability_headers, response_headers
from engine.api.request_ids import HEADER

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.settings import Settings


class Answers:
    """Encodes answers. Heads are cached for one second, because they contain the date."""

    def __init__(self, settings: Settings) -> None:
        self._fault_retry_after_s = settings.retry_after_s
        self._always = durability_headers(settings)
        self._second = 0
        self._heads: dict[tuple[int, int, bool], bytes] = {}

    def of(self, outcome: Outcome, request_id: str, *, is_last: bool) -> tuple[int, bytes]:
        """Status, and head and body of the answer. ``is_last``: the connection is closed after it."""
        status, body, retry_after_s = encode_outcome(outcome, self._fault_retry_after_s)
        head = self.head(status, retry_after_s, is_last=is_last)
        answer = b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (head, request_id.encode(), len(body), body)
        return status, answer

    def head(self, status: int, retry_after_s: int, *, is_last: bool) -> bytes:
        """The head of an answer, up to the value of Request-Id; Content-Length follows."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._heads.clear()
        kind = status, retry_after_s, is_last
        head = self._heads.get(kind)
        if head is None:
            head = self._heads[kind] = self._head(*kind)
        return head

    def _head(self, status: int, retry_after_s: int, is_last: bool) -> bytes:
        headers = {
            **response_headers(status, retry_after_s),
            "Date": formatdate(self._second, usegmt=True),
            "Server": SERVER,
            **self._always,
            **({"Connection": "close"} if is_last else {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}{HEADER}: ".encode()
