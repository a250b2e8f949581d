"""Times calls of a page one after another, on a connection of its own and without an event loop."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from tests.support.browsers import Page

TIMEOUT_S: Final = 30.0
MORE_FIELDS: Final = {"/v1/holds": {"order": "o-2"}}
_BLANK: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


class TimedCalls:
    """Makes calls with the browser key of a page, and measures each."""

    def __init__(self, page: Page) -> None:
        address = urlsplit(page.merchant.url)
        self._address = address.hostname or "", address.port or 0
        self._head = (
            f"Host: localhost\r\nOrigin: {page.origin}\r\n"
            f"Authorization: Bearer {page.key}\r\nContent-Type: application/json\r\n"
        )

    def run(
        self, codes: Mapping[str, Mapping[str, Sequence[str]]], calls: int, chance: random.Random
    ) -> dict[str, dict[str, list[float]]]:
        """Make so many calls for each path and kind of refusal, with codes of its own, in random order.

        Return the seconds of each call, by path and kind. Each must be refused.
        """
        order = [
            (path, name, code)
            for path, kinds in codes.items()
            for name, some in kinds.items()
            for code in chance.choices(some, k=calls)
        ]
        chance.shuffle(order)
        seconds: dict[str, dict[str, list[float]]] = {
            path: {name: [] for name in kinds} for path, kinds in codes.items()
        }
        with socket.create_connection(self._address, TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for path, name, code in order:
                data = self._request(path, code)
                began = time.perf_counter()
                connection.sendall(data)
                answer = _receive(connection)
                seconds[path][name].append(time.perf_counter() - began)
                assert answer.startswith(b"HTTP/1.1 404 "), answer
        return seconds

    def _request(self, path: str, code: str) -> bytes:
        body = json.dumps({"code": code, "user": "ann"} | MORE_FIELDS.get(path, {}))
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        return (head + body).encode()


def _receive(connection: socket.socket) -> bytes:
    answer = b""
    while _BLANK not in answer:
        answer += connection.recv(65_536)
    head, _, body = answer.partition(_BLANK)
    (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(_LENGTH))
    while len(body) < int(line[len(_LENGTH) :]):
        body += connection.recv(65_536)
    return head
