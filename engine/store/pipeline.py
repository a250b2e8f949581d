"""Sends many plain commands at once over one connection, and returns their replies in order.

Used for commands that need no script, and that a client library must not retry on its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import hiredis

from engine.errors import StoreUnavailable
from engine.store.link import Link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.errors import Fault

AWAY_S: Final = 0.25


class Pipeline:
    """A connection that is opened at its first use. ``timeout_s`` bounds each call.

    If a reply is lost, nobody knows whether the commands were done. Callers must be able to live with that.
    """

    def __init__(self, redis_url: str, *, timeout_s: float) -> None:
        self._redis_url = redis_url
        self._timeout_s = timeout_s
        self._link: Link | None = None
        self._connected = asyncio.Event()
        self._connections = 0

    async def close(self) -> None:
        """Disconnect."""
        if self._link:
            await self._link.close()

    async def ask(self, commands: Sequence[bytes]) -> list[object]:
        """Send packed commands (``link.pack``), and return their replies.

        Raises:
            StoreUnavailable: there is no connection, no reply in time, or a reply is an error.
        """
        return (await self.ask_over(None, commands))[0]

    async def ask_over(self, connection: int | None, commands: Sequence[bytes]) -> tuple[list[object], int]:
        """As ``ask``, but on one given connection. Returns the replies and the number of the connection.

        A WATCH counts for one connection only, so the EXEC must go over the same one. None: any connection.

        Raises:
            StoreUnavailable: as ``ask``, or the given connection is gone.
        """
        link = self._opened()
        try:
            async with asyncio.timeout(self._timeout_s):
                while not link.ready:
                    if link.down_s > AWAY_S:
                        raise StoreUnavailable("Redis is unreachable")
                    self._connected.clear()
                    await self._connected.wait()
                used = self._connections
                if connection not in {None, used}:
                    raise StoreUnavailable("connection to Redis lost")
                replies = await _replies(link, commands)
        except TimeoutError:
            link.abort()
            raise StoreUnavailable("Redis does not answer") from None
        for reply in replies:
            for part in reply if isinstance(reply, list) else (reply,):  # EXEC replies with a list
                if isinstance(part, hiredis.ReplyError):
                    raise StoreUnavailable(f"Redis refuses: {part}")
        return replies, used

    def _opened(self) -> Link:
        if self._link is None:
            self._link = Link(self._redis_url, (), on_ready=self._on_ready)
            self._link.open()
        return self._link

    def _on_ready(self) -> None:
        self._connections += 1
        self._connected.set()


async def _replies(link: Link, commands: Sequence[bytes]) -> list[object]:
    replies: list[object] = []
    whole: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()

    def on_reply(reply: object) -> None:
        replies.append(reply)
        if len(replies) == len(commands) and not whole.done():
            whole.set_result(replies)

    def on_fault(_: Fault) -> None:
        if not whole.done():
            whole.set_exception(StoreUnavailable("connection to Redis lost"))

    link.call(b"".join(commands), on_reply, on_fault)  # one write for all commands
    for _ in commands[1:]:
        link.call(b"", on_reply, on_fault)
    return await whole
