"""Times calls of a page one after another, on a connection of its own and without an event loop."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import random

    from tests.support.browsers import Page

TIMEOUT_S: Final = 30.0
_BLANK: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


class TimedCalls:
    """Redeems codes with the browser key of a page, and measures each call."""

    def __init__(self, page: Page) -> None:
        address = urlsplit(page.merchant.url)
        self._address = address.hostname or "", address.port or 0
        self._head = (
            f"POST /v1/redemptions HTTP/1.1\r\nHost: localhost\r\nOrigin: {page.origin}\r\n"
            f"Authorization: Bearer {page.key}\r\nContent-Type: application/json\r\n"
        )

    def run(self, calls: dict[str, list[str]], chance: random.Random) -> dict[str, list[float]]:
        """Make all calls in random order. Return the seconds of each, by their names; all must be refused."""
        order = [(name, code) for name, codes in calls.items() for code in codes]
        chance.shuffle(order)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        with socket.create_connection(self._address, TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for name, code in order:
                body = json.dumps({"code": code, "user": "ann"})
                data = f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
                began = time.perf_counter()
                connection.sendall(data)
                answer = _receive(connection)
                seconds[name].append(time.perf_counter() - began)
                assert answer.startswith(b"HTTP/1.1 404 "), answer
        return seconds


def _receive(connection: socket.socket) -> bytes:
    answer = b""
    while _BLANK not in answer:
        answer += connection.recv(65_536)
    head, _, body = answer.partition(_BLANK)
    (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(_LENGTH))
    while len(body) < int(line[len(_LENGTH) :]):
        body += connection.recv(65_536)
    return head
