"""Decides from the head of a request whether the fast lane answers it.

In doubt it does not. Then aiohttp reads the same bytes again and answers.
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from engine.guard.signatures import SignedHead

METHOD: Final = "POST"
PATH: Final = "/v1/redemptions"
LINE: Final = f"{METHOD} {PATH} HTTP/1.1\r\n".encode()
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
# Headers that change how a request is framed, read or answered; and those of ``KEY``, ``REQUEST_ID`` and
# ``SIGNED`` that their pattern did not match: a second one, or other characters.
_NOT_PLAIN: Final = frozenset(
    (
        *(b"content-encoding", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"),
        *(b"sec-websocket-key1", b"signature", b"signature-input", b"content-digest"),
        *(b"idempotency-key", b"request-id"),
    )
)
# The characters of ``request_ids``. A head without a Request-Id is remembered as it is, so it costs no more.
REQUEST_ID: Final = re.compile(rb"\r\nrequest-id: ?([A-Za-z0-9._~+/=:@-]{1,128})(?=\r\n)", re.IGNORECASE)
KEY: Final = re.compile(rb"\r\nidempotency-key: ?([!-~](?:[\t -~]*[!-~])?)(?=\r\n)", re.IGNORECASE)
# The headers of a signature, in the order of ``SignedHead``.
SIGNED: Final = tuple(
    re.compile(rb"\r\n%b: ?([!-~](?:[ -~]*[!-~])?)(?=\r\n)" % name, re.IGNORECASE)
    for name in (b"content-digest", b"signature-input", b"signature")
)


class PlainHead(NamedTuple):
    """The head of a plain redemption, without what differs from request to request.

    Attributes:
        authorization: the header's value.
        host: the header's value; empty if parsers may read it differently. Then no signature can be verified.
        length: length of the body in bytes; at least 1.
        is_last: the client wants the connection closed after the answer.
    """

    authorization: str
    host: str
    length: int
    is_last: bool

    def signed(self, key: str, digest: str, signature_input: str, signature: str) -> SignedHead:
        """Return what a signature of this head covers, and the signature."""
        return SignedHead(METHOD, self.host, PATH, key, digest, signature_input, signature)


class ReadHead(NamedTuple):
    """A plain head, and what it has of its own: idempotency key, request id, signature; None for none."""

    plain: PlainHead
    key: str | None
    request_id: str | None
    signed: SignedHead | None


class Heads:
    """Reads the heads of all connections of a worker.

    Apart from the idempotency key, the request id and the signature, a client sends the same head again and
    again. So parsed heads are cached by their bytes, up to a limit.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self.body_bytes_max = body_bytes_max
        self._remembered: dict[bytes, PlainHead] = {}

    def read(self, head: bytes) -> ReadHead | None:
        """Parse a head that begins with ``LINE``, up to its blank line.

        None: the fast lane does not answer this request.
        """
        head, key = _without(head, KEY)
        plain = self._remembered.get(head)
        if plain is not None:
            return ReadHead(plain, key, None, None)
        head, request_id = _without(head, REQUEST_ID)
        plain = self._remembered.get(head)
        if plain is not None:
            return ReadHead(plain, key, request_id, None)
        values = []
        for pattern in SIGNED:
            head, value = _without(head, pattern)
            values.append(value)
        plain = self._remembered.get(head) or self._parse(head)
        if plain is None:
            return None
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[head] = plain
        digest, signature_input, signature = values
        if signature_input is None and signature is None:
            return ReadHead(plain, key, request_id, None)
        if not (key and digest and signature_input and signature and plain.host):
            return None
        return ReadHead(plain, key, request_id, plain.signed(key, digest, signature_input, signature))

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
        host = named.get(b"host")
        if host is None or not _is_plain(authorization):
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
        shown_host = host.decode() if _is_plain(host) else ""
        return PlainHead(authorization.decode(), shown_host, int(length), connection == b"close")


def _without(head: bytes, pattern: re.Pattern[bytes]) -> tuple[bytes, str | None]:
    """Return a head without the header that a pattern finds, and the header's value."""
    match = pattern.search(head)
    if match is None:
        return head, None
    return head[: match.start()] + head[match.end() :], match[1].decode()


def _feed(parser: HttpRequestParser, data: bytes) -> bool:
    try:
        parser.feed_data(data)
    except (HttpParserError, HttpParserUpgrade):
        return False
    return True


def _is_plain(value: bytes) -> bool:
    """Whether all parsers read a header value the same: it is ASCII, not empty, without outer spaces."""
    return value.isascii() and value == value.strip() != b""
