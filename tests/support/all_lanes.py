"""Sends the same requests to workers on one Redis, one for each lane, and compares answers and effects."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine import worker
from engine.http import redemptions
from engine.http.services import services_of
from tests.support.bad_input import Raw
from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES, Read
from tests.support.streams import read_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest
    from aiohttp import web
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.http.services import Services

LIMIT_S: Final = 60.0
BLANK: Final = b"\r\n\r\n"
CODE: Final = b"<code>"  # stands for a new code
AGAIN: Final = b"<same>"  # stands for the latest of them
KEY: Final = b"<key>"  # stands for the API key
BODY: Final = b'{"code": "<code>", "user": "ann"}'
CODE_BYTES: Final = 19
# What differs between any two redemptions; the rest of a body is compared byte for byte.
VARIES: Final = re.compile(rb'"(id|code)":"[^"_]*[0-9\xe2][^"_]*"|"redeemed_at":"[^"]*"|cmp_[0-9]+')
MADE: Final = re.compile(r"req-[0-9a-f]{12}-[0-9a-f]+")  # an id that the engine made
SAME: Final = ("type", "serial", "user", "amount", "currency", "order", "key")


@dataclass
class Lane:
    """A worker with one of the lanes, and the codes that are redeemed there, one for each request."""

    name: str
    raw: Raw
    campaign: str
    codes: list[str]
    read: Read
    latest: bytes = b"0000-0000-0000-0000"

    def _code(self, found: re.Match[bytes]) -> bytes:
        if found[0] == CODE:
            self.latest = self.codes.pop(0).encode()
        return self.latest

    async def exchange(self, template: bytes, cuts: Sequence[int] = ()) -> list[tuple[Any, ...]]:
        """Send it in these pieces, say no more, and read all answers."""
        data = re.sub(CODE + b"|" + AGAIN, self._code, template)
        data = data.replace(KEY, self.raw.merchant.key.encode())
        reader, writer = await self.raw.connect()
        reading = asyncio.create_task(read_all(reader))
        try:
            async with asyncio.timeout(LIMIT_S):
                at = 0
                with contextlib.suppress(OSError):  # hung up on
                    for cut in (*sorted(cut % (len(data) + 1) for cut in cuts), len(data)):
                        target = self.read.bytes + cut - at
                        writer.write(data[at:cut])
                        at = cut
                        while self.read.bytes < target and not reading.done():  # noqa: ASYNC110 - in turns
                            await asyncio.sleep(0)
                    writer.write_eof()
                return answers(await reading)
        finally:
            reading.cancel()
            writer.transport.abort()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(2**16):
            received += piece
    return received


def answers(stream: bytes) -> list[tuple[Any, ...]]:
    """All answers of a connection, without what differs between any two."""
    found: list[tuple[Any, ...]] = []
    while stream:
        head, blank, stream = stream.partition(BLANK)
        assert blank
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body, stream = (
            stream[: (length := int(headers.pop("content-length", 0)))],
            stream[length:],
        )
        assert len(body) == length
        if not status_line.endswith("Continue"):
            assert headers.pop("date")
            headers["request-id"] = MADE.sub("made", headers["request-id"])
        body = VARIES.sub(b"", body)
        found.append((status_line, headers, body))
    return found


@dataclass
class AllLanes:
    """The lanes to compare.

    Attributes:
        by_aiohttp: how many plain redemptions the other lanes have handed over to aiohttp.
        by_python: how many the express lane has handed over to the python lane.
    """

    lanes: list[Lane]
    redis: Redis
    by_aiohttp: int = 0
    by_python: int = 0

    async def check(self, template: bytes, cuts: Sequence[int] = ()) -> list[tuple[Any, ...]]:
        """Their answers, which are alike."""
        first, *others = [await lane.exchange(template, cuts) for lane in self.lanes]
        for lane, other in zip(self.lanes[1:], others, strict=True):
            assert first == other, (lane.name, template)
        return first

    async def check_effects(self) -> int:
        """What has come of it, which is alike; how many events."""
        events = await read_events(self.redis, 0)
        seen: dict[bytes, list[list[bytes]]] = {lane.campaign.encode(): [] for lane in self.lanes}
        for _, event in events:
            seen[event[b"campaign"]].append([event[name.encode()] for name in SAME])
        first, *others = seen.values()
        assert others == [first] * len(others)
        assert {len(lane.codes) for lane in self.lanes} == {len(self.lanes[0].codes)}
        return len(first)


@contextlib.asynccontextmanager
async def all_lanes(
    plane: ControlPlane,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    **changes: Any,  # noqa: ANN401 - settings, by name
) -> AsyncIterator[AllLanes]:
    changes = {"attempt_deadline_ms": 30_000} | changes  # what a busy machine delays is no difference
    read = Read(monkeypatch)
    redeem, redeem_at_once = redemptions.redeem, redemptions.redeem_at_once
    found = AllLanes([], redis)

    async def counting(request: web.Request) -> web.Response:
        found.by_aiohttp += services_of(request).settings.lane != "aiohttp"
        return await redeem(request)

    def counting_at_once(services: Services, *arguments: Any) -> bool:  # noqa: ANN401 - passed on
        found.by_python += services.settings.lane == "express"
        return redeem_at_once(services, *arguments)

    monkeypatch.setattr(redemptions, "redeem", counting)
    monkeypatch.setattr(worker, "redeem_at_once", counting_at_once)
    async with contextlib.AsyncExitStack() as stack:
        for name in LANES:
            campaign, codes = await issue(plane, count, amount=500, currency="EUR")
            merchant = await stack.enter_async_context(engine_in_process(plane, lane=name, **changes))
            found.lanes.append(Lane(name, Raw(merchant), campaign, codes, read))
        for lane in found.lanes:  # so that its key is known
            assert await lane.exchange(request(b'{"code": "nothing", "user": "ann"}'))
        found.by_aiohttp = found.by_python = 0
        yield found


def request(
    body: bytes = BODY,
    *headers: bytes,
    line: bytes = b"POST /v1/redemptions HTTP/1.1",
    standard: bool = True,
    length: int | None = None,
) -> bytes:
    places = body.count(CODE) + body.count(AGAIN)
    size = len(body) + places * (CODE_BYTES - len(CODE)) if length is None else length
    usual = (
        b"Host: localhost",
        b"Authorization: Bearer " + KEY,
        b"Content-Type: application/json",
        b"Content-Length: %d" % size,
    )
    return b"\r\n".join((line, *(usual if standard else ()), *headers, b"", body))
