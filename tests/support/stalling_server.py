"""A server that reads requests and does not answer until it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY: Final = b'{"id":"0-1-0","replayed":false}'
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class StallingServer:
    """Answers each request once ``go`` is set; hangs up instead where it shall."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.hang_up = False
        self.bodies: list[bytes] = []
        self.address = ("", 0)
        self._serving: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._serving.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                await self.go.wait()
                if self.hang_up:
                    break
                writer.write(ANSWER[:20])
                await writer.drain()
                writer.write(ANSWER[20:])
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()[:2]
        try:
            yield
        finally:
            server.close()
            self.go.set()
            await asyncio.gather(*self._serving)
