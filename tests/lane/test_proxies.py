"""Behind proxies the source of a browser key's call is the client, whatever it writes; in every lane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import api_keys
from engine.lane.proxy_protocol import SIGNATURE, parse
from engine.observability.metrics import CLIENT_ADDRESS_IGNORED, PROXY_PROTOCOL_REFUSED
from engine.worker import serving
from tests.support.browsers import FREE, ORIGIN
from tests.support.deployment import issue
from tests.support.lanes import LANES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.control.change import ControlPlane

UNKNOWN: Final = "0000-0000-0000-0000"
LIMIT_S: Final = 30.0
LOCAL: Final = SIGNATURE + b"\x20\x00\0\0"
ONE_EACH: Final = FREE | {"guard_attempts_per_min": 1, "guard_attempts_burst": 1}
"""A source may try one code; the next one from it is refused with 429."""


def told(address: str, *, tlvs: bytes = b"", version: int = 2, family: int = 0) -> bytes:
    """A header of the PROXY protocol, version 2, for a client with this address."""
    kind, code = (socket.AF_INET6, 0x21) if ":" in address else (socket.AF_INET, 0x11)
    here = "::1" if kind == socket.AF_INET6 else "127.0.0.1"
    body = socket.inet_pton(kind, address) + socket.inet_pton(kind, here) + b"\x12\x34\x00\x50" + tlvs
    head = bytes((version << 4 | 1, family or code)) + len(body).to_bytes(2, "big")
    return SIGNATURE + head + body


@dataclass
class Worker:
    """A worker with one campaign, a browser key and a server key for it."""

    port: int
    codes: list[str]
    page: str
    server: str

    def request(self, *headers: str, code: str = UNKNOWN, key: str = "") -> bytes:
        body = json.dumps({"code": code, "user": "ann"})
        lines = (
            *("POST /v1/redemptions HTTP/1.1", "Host: localhost", "Content-Type: application/json"),
            *(f"Authorization: Bearer {key or self.page}", f"Origin: {ORIGIN}"),
            *(f"Content-Length: {len(body)}", *headers, "", body),
        )
        return "\r\n".join(lines).encode()

    async def statuses(self, *requests: bytes, pieces: Sequence[bytes] = ()) -> list[int]:
        """Send it all on one connection, one request after the other; the statuses until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        found = []
        try:
            async with asyncio.timeout(LIMIT_S):
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    for request in requests:
                        writer.write(request)
                        head = (await reader.readuntil(b"\r\n\r\n")).lower()
                        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                        await reader.readexactly(length)
                        found.append(int(head.split(b" ")[1]))
                    if not requests:
                        assert await reader.read() == b""
        finally:
            writer.transport.abort()
        return found


@contextlib.asynccontextmanager
async def worker(plane: ControlPlane, lane: str, **changes: Any) -> AsyncIterator[Worker]:  # noqa: ANN401 - settings
    campaign, codes = await issue(plane, 8)
    page = await api_keys.create_for_browsers(plane, "page", campaigns=[campaign], origins=[ORIGIN])
    server = await api_keys.create(plane, "server", ["redeem"])
    settings = replace(plane.settings, port=0, lane=lane, **(ONE_EACH | changes))
    async with serving(settings, None) as port:
        yield Worker(port, codes, page.value.key, server.value.key)


@pytest.mark.parametrize("lane", LANES)
async def test_the_address_is_in_the_header_of_a_trusted_proxy(plane: ControlPlane, lane: str) -> None:
    proxies = {"trusted_proxies": "127.0.0.0/8, 10.0.0.0/8", "client_address_header": "X-Forwarded-For"}
    async with worker(plane, lane, **proxies) as front:
        statuses = await front.statuses(
            *(
                front.request(f"X-Forwarded-For: {value}")
                for value in (
                    *("203.0.113.1", "203.0.113.2, 10.0.0.9", "6.6.6.6, 203.0.113.1", "9.9.9.9,203.0.113.2"),
                    *("2001:db8::1", "2001:db8:0:0:ffff::2", "[2001:db8:0:1::1]:443", "203.0.113.3"),
                )
            )
        )
        assert statuses == [404, 404, 429, 429, 404, 429, 404, 404]


@pytest.mark.parametrize("lane", LANES)
async def test_the_address_is_in_forwarded(plane: ControlPlane, lane: str) -> None:
    """Whatever a client writes in front: open quotes, escapes, addresses, lines of its own."""
    proxies = {"trusted_proxies": "127.0.0.0/8, 10.0.0.0/8", "client_address_header": "Forwarded"}
    async with worker(plane, lane, **proxies) as front:
        statuses = await front.statuses(
            *(
                front.request(*(f"Forwarded: {line}" for line in lines))
                for lines in (
                    ["for=203.0.113.1"],
                    ['for="6.6.6.6', 'For="203.0.113.2:_p";by=_a, for=10.0.0.9;note="a, for=7.7.7.7"'],
                    ['for=6.6.6.6;by="a, for=203.0.113.1'],
                    ["for=8.8.8.8\\, for=203.0.113.2"],
                    ['for="[2001:db8::1]:443";proto=https'],
                    ['for=6.6.6.6, for="[2001:db8:0:0:ffff::2]"'],
                    ["for=203.0.113.3, for=unknown"],  # the proxy itself
                    ["for=203.0.113.4, for=_hidden"],
                    ['for=203.0.113.5, for="203.0.113.6'],
                    ["for=203.0.113.3"],
                )
            )
        )
        assert statuses == [404, 404, 429, 429, 404, 429, 404, 429, 429, 404]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("proxies", ["10.0.0.0/8", ""])
async def test_the_header_of_anybody_else_is_ignored_and_counted(
    plane: ControlPlane, lane: str, proxies: str
) -> None:
    header = "forwarded" if proxies else ""
    before = CLIENT_ADDRESS_IGNORED._value.get()
    async with worker(plane, lane, trusted_proxies=proxies, client_address_header=header) as front:
        asked = [front.request(f"Forwarded: for=203.0.113.{number}") for number in range(2)]
        assert await front.statuses(*asked) == [404, 429]
    assert CLIENT_ADDRESS_IGNORED._value.get() - before == (2 if proxies else 0)


@pytest.mark.parametrize("lane", LANES)
async def test_the_address_is_in_the_header_of_the_proxy_protocol(plane: ControlPlane, lane: str) -> None:
    async with worker(plane, lane, trusted_proxies="127.0.0.1", proxy_protocol=True) as front:
        ask = front.request()
        tlvs = b"\x03\x00\x04abcd" + b"\x20\x00\x05\x01\0\0\0\0"
        assert await front.statuses(told("203.0.113.1") + ask, ask) == [404, 429]
        assert await front.statuses(told("203.0.113.1") + ask) == [429]
        assert await front.statuses(told("203.0.113.2", tlvs=tlvs) + ask) == [404]
        assert await front.statuses(told("2001:db8::1") + ask) == [404]
        assert await front.statuses(told("2001:db8::ffff:1") + ask) == [429]
        assert await front.statuses(told("2001:db8:0:1::1") + ask) == [404]
        whole = told("203.0.113.3", tlvs=tlvs)
        pieces = [whole[at : at + 1] for at in range(len(whole))]
        assert await front.statuses(ask, pieces=pieces) == [404]
        assert await front.statuses(LOCAL + ask, ask) == [404, 429]  # the proxy itself


@pytest.mark.parametrize("lane", LANES)
async def test_a_server_key_redeems_behind_the_proxy_protocol(plane: ControlPlane, lane: str) -> None:
    proxies = {"trusted_proxies": "127.0.0.1", "proxy_protocol": True, "guard_attempts_per_min": 0}
    async with worker(plane, lane, **proxies) as front:
        served = [front.request(code=code, key=front.server) for code in front.codes[:3]]
        assert await front.statuses(told("203.0.113.9") + served[0], *served[1:]) == [200, 200, 200]


@pytest.mark.parametrize("lane", LANES)
async def test_a_connection_without_a_good_header_is_closed_without_an_answer(
    plane: ControlPlane, lane: str
) -> None:
    async with worker(plane, lane, trusted_proxies="127.0.0.1", proxy_protocol=True) as front:
        ask = front.request()
        good = told("203.0.113.1")
        for bad in (
            ask,
            b"PROXY TCP4 203.0.113.1 127.0.0.1 4660 80\r\n" + ask,  # version 1
            told("203.0.113.1", version=1) + ask,
            told("203.0.113.1", version=3) + ask,
            told("203.0.113.1", family=0x12) + ask,  # UDP
            told("203.0.113.1", family=0x31) + ask,  # a Unix socket
            SIGNATURE + b"\x22\x11" + good[14:] + ask,  # a command that nobody knows
            SIGNATURE + b"\x21\x11\x00\x04abcd" + ask,  # too short for addresses
            b"\r\n\r\n\0\r\nQUIT\r" + ask,
        ):
            assert await front.statuses(bad) == [], bad
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(good[:-1])
        writer.write_eof()
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.transport.abort()
        assert await front.statuses(good + ask) == [404]


@pytest.mark.parametrize("lane", LANES)
async def test_only_a_trusted_proxy_may_speak_for_others(plane: ControlPlane, lane: str) -> None:
    before = PROXY_PROTOCOL_REFUSED.labels("untrusted")._value.get()
    async with worker(plane, lane, trusted_proxies="10.0.0.0/8", proxy_protocol=True) as front:
        assert await front.statuses(told("203.0.113.1") + front.request()) == []
        assert await front.statuses(front.request()) == []
    assert PROXY_PROTOCOL_REFUSED.labels("untrusted")._value.get() > before


@pytest.mark.parametrize("lane", LANES)
async def test_a_header_that_does_not_come_ends_the_connection(plane: ControlPlane, lane: str) -> None:
    proxies = {"trusted_proxies": "127.0.0.1", "proxy_protocol": True, "request_timeout_s": 1}
    before = PROXY_PROTOCOL_REFUSED.labels("late")._value.get()
    async with worker(plane, lane, **proxies) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(told("203.0.113.1")[:20])
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.transport.abort()
    assert PROXY_PROTOCOL_REFUSED.labels("late")._value.get() == before + 1


async def test_a_worker_that_stops_waits_for_no_header(plane: ControlPlane) -> None:
    async with worker(plane, LANES[0], trusted_proxies="127.0.0.1", proxy_protocol=True) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(SIGNATURE)
        before = PROXY_PROTOCOL_REFUSED.labels("stopping")._value.get()
        assert await front.statuses(LOCAL + front.request()) == [404]  # so the first was accepted
    async with asyncio.timeout(LIMIT_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.transport.abort()
    assert PROXY_PROTOCOL_REFUSED.labels("stopping")._value.get() == before + 1


def test_a_header_is_complete_with_its_last_byte() -> None:
    whole = told("203.0.113.1", tlvs=b"\x03\x00\x04abcd")
    for at in range(len(whole)):
        assert parse(whole[:at]) is None
    assert parse(whole + b"GET /") == ("203.0.113.1", len(whole))
    assert parse(LOCAL) == (None, 16)
    assert parse(SIGNATURE + b"\x21\x00\0\0") == (None, 16)  # of an unknown family
