"""A client that asks, and takes nothing of the answer."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.deployment import Merchant


async def stuck_reader(merchant: Merchant, path: str, accept: str = "*/*") -> socket.socket:
    """Send a GET request on a connection with a small buffer; return its socket."""
    host, _, port = merchant.url.removeprefix("http://").partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)  # noqa: FBT003 - it takes no keyword
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, int(port)))
    request = (
        f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n"
        f"Authorization: Bearer {merchant.key}\r\n\r\n"
    )
    await loop.sock_sendall(client, request.encode())
    return client
