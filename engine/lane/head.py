"""Whether a request is one that the fast lane answers, from the bytes of its head.

In doubt it is not: aiohttp then reads the same bytes again, and decides what to say.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

LINE: Final = b"POST /v1/redemptions HTTP/1.1\r\n"
BLANK: Final = b"\r\n\r\n"
HEAD_BYTES_MAX: Final = 8190  # aiohttp's limit for one line; a whole head within it keeps that, too
# Bytes that may wait behind a request in flight: past it the client is not read from.
WAITING_BYTES_MAX: Final = 65_536
_HEADERS_MAX: Final = 64  # aiohttp takes more
_LENGTH_DIGITS_MAX: Final = 9
_JSON_TYPES: Final = frozenset(
    (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
)
# What changes how a request is framed, read or answered; and signatures, of which this lane knows nothing.
_NOT_PLAIN: Final = frozenset(
    (
        *(b"content-encoding", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"),
        *(b"sec-websocket-key1", b"signature", b"signature-input"),
    )
)


class PlainHead:
    """Reads the heads of one connection, one after another; after a False it is of no more use.

    Attributes:
        authorization: the header's value.
        idempotency_key: the header's value, if there is one.
        length: of the body, in bytes; at least 1.
        is_last: the client wants the connection closed after its answer.
    """

    __slots__ = ("_body_bytes_max", "_ends", "_fields", "_parser", "authorization", "idempotency_key",
                 "is_last", "length")  # fmt: skip

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._fields: dict[bytes, bytes] = {}
        self._ends: list[None] = []
        # The parser calls into a dictionary and a list: no Python code runs for a header.
        target = SimpleNamespace(
            on_header=self._fields.__setitem__,
            on_message_complete=functools.partial(self._ends.append, None),
        )
        self._parser = HttpRequestParser(target)
        self.authorization = ""
        self.idempotency_key: str | None = None
        self.length = 0
        self.is_last = False

    def read(self, head: bytes) -> bool:
        """Read a head that begins with ``LINE``, its blank line included; False: not one for this lane."""
        fields = self._fields
        fields.clear()
        if not self._parses(head) or self._ends or len(fields) > _HEADERS_MAX:
            return False
        named = {name.lower(): value for name, value in fields.items()}
        # As many lines as headers: none is given twice, folded, or hidden behind a line end of another kind.
        if not len(named) == len(fields) == head.count(b"\n") - 2 or not _NOT_PLAIN.isdisjoint(named):
            return False
        return b"host" in named and self._take(named)

    def _take(self, named: dict[bytes, bytes]) -> bool:
        authorization, length = named.get(b"authorization", b""), named.get(b"content-length", b"")
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or not _is_plain(authorization):
            return False
        if named.get(b"content-type", b"").lower() not in _JSON_TYPES:
            return False
        connection = named.get(b"connection", b"keep-alive").lower()
        if connection not in {b"keep-alive", b"close"}:
            return False
        key = named.get(b"idempotency-key")
        if key is not None and not _is_plain(key):
            return False
        self.authorization = authorization.decode()
        self.idempotency_key = None if key is None else key.decode()
        self.length = int(length)
        self.is_last = connection == b"close"
        return 0 < self.length <= self._body_bytes_max

    def ends_with(self, body: bytes) -> bool:
        """Whether the request ends with these bytes behind its head, for the parser as well."""
        if not self._parses(body) or len(self._ends) != 1:
            return False
        self._ends.clear()
        return True

    def _parses(self, data: bytes) -> bool:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return False
        return True


def _is_plain(value: bytes) -> bool:
    """Text that is the same to everybody who reads it."""
    return value.isascii() and value == value.strip() != b""
