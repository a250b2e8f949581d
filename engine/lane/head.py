"""Decides from the head of a request whether the fast lane answers it.

In doubt it does not. Then aiohttp reads the same bytes again and answers.
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

LINE: Final = b"POST /v1/redemptions HTTP/1.1\r\n"
BLANK: Final = b"\r\n\r\n"
HEAD_BYTES_MAX: Final = 8190  # aiohttp's limit for one line, here for the whole head
# Bytes that may wait during a request in flight. With more, the lane stops reading from the client.
WAITING_BYTES_MAX: Final = 65_536
_REMEMBERED_MAX: Final = 1024
_HEADERS_MAX: Final = 64  # aiohttp accepts more
_LENGTH_DIGITS_MAX: Final = 9
_JSON_TYPES: Final = frozenset(
    (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
)
# Headers that change how a request is framed, read or answered; signatures, which this lane cannot verify;
# and an idempotency key or request id that its pattern did not match: a second one, or other characters.
_NOT_PLAIN: Final = frozenset(
    (
        *(b"content-encoding", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"),
        *(b"sec-websocket-key1", b"signature", b"signature-input", b"idempotency-key", b"request-id"),
    )
)
# The characters of ``request_ids``. A head without a Request-Id is remembered as it is, so it costs no more.
REQUEST_ID: Final = re.compile(rb"\r\nrequest-id: ?([A-Za-z0-9._~+/=:@-]{1,128})(?=\r\n)", re.IGNORECASE)
KEY: Final = re.compile(rb"\r\nidempotency-key: ?([!-~](?:[\t -~]*[!-~])?)(?=\r\n)", re.IGNORECASE)


class PlainHead(NamedTuple):
    """The head of a plain redemption, without its idempotency key and its request id.

    Attributes:
        authorization: the header's value.
        length: length of the body in bytes; at least 1.
        is_last: the client wants the connection closed after the answer.
    """

    authorization: str
    length: int
    is_last: bool


class Heads:
    """Reads the heads of all connections of a worker.

    Apart from the idempotency key and the request id, a client sends the same head again and again. So parsed
    heads are cached by their bytes, up to a limit.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self.body_bytes_max = body_bytes_max
        self._remembered: dict[bytes, PlainHead] = {}

    def read(self, head: bytes) -> tuple[PlainHead, str | None, str | None] | None:
        """Parse a head that begins with ``LINE``, up to its blank line.

        Also returns its idempotency key and its request id, each None if it has none.

        None: the fast lane does not answer this request.
        """
        key = request_id = None
        match = KEY.search(head)
        if match is not None:
            key = match[1].decode()
            head = head[: match.start()] + head[match.end() :]
        plain = self._remembered.get(head)
        if plain is None:
            match = REQUEST_ID.search(head)
            if match is not None:
                request_id = match[1].decode()
                head = head[: match.start()] + head[match.end() :]
            plain = self._remembered.get(head) or self._parse(head)
            if plain is None:
                return None
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[head] = plain
        return plain, key, request_id

    def _parse(self, head: bytes) -> PlainHead | None:
        fields: dict[bytes, bytes] = {}
        ends: list[None] = []
        # The parser calls methods of a dictionary and a list, so no Python code runs for a header.
        parser = HttpRequestParser(
            SimpleNamespace(
                on_header=fields.__setitem__, on_message_complete=functools.partial(ends.append, None)
            )
        )
        if not _feed(parser, head) or ends or len(fields) > _HEADERS_MAX:
            return None
        named = {name.lower(): value for name, value in fields.items()}
        # As many headers as lines: so no header occurs twice, is folded, or hides behind another kind of line
        # end.
        if not len(named) == len(fields) == head.count(b"\n") - 2 or not _NOT_PLAIN.isdisjoint(named):
            return None
        plain = self._plain_head(named)
        if plain is None:
            return None
        # The parser must agree that the request ends with the last byte of its body, and not before.
        if not _feed(parser, bytes(plain.length - 1)) or ends or not _feed(parser, b"\0") or not ends:
            return None
        return plain

    def _plain_head(self, named: dict[bytes, bytes]) -> PlainHead | None:
        authorization, length = named.get(b"authorization", b""), named.get(b"content-length", b"")
        if b"host" not in named or not _is_plain(authorization):
            return None
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
            return None
        if not 0 < int(length) <= self.body_bytes_max:
            return None
        if named.get(b"content-type", b"").lower() not in _JSON_TYPES:
            return None
        connection = named.get(b"connection", b"keep-alive").lower()
        if connection not in {b"keep-alive", b"close"}:
            return None
        return PlainHead(authorization.decode(), int(length), connection == b"close")


def _feed(parser: HttpRequestParser, data: bytes) -> bool:
    try:
        parser.feed_data(data)
    except (HttpParserError, HttpParserUpgrade):
        return False
    return True


def _is_plain(value: bytes) -> bool:
    """Whether all parsers read a header value the same: it is ASCII, not empty, without outer spaces."""
    return value.isascii() and value == value.strip() != b""
