"""Reads rows in the binary format of PostgreSQL's COPY (PostgreSQL 18, "COPY", section "Binary Format").

``copy_rows`` passes on the bytes as they come. ``BinaryRows`` makes numpy columns of them, without a Python
object for each row; there all columns must be integers and never null, so that every row has the same width.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from numpy.typing import NDArray

    from engine.postgres_types import Connection

CHUNK_BYTES: Final = 1 << 22
_SIGNATURE_BYTES: Final = 19  # signature, flags, no extension
_TRAILER_BYTES: Final = 2


async def copy_rows(
    connection: Connection, take: Callable[[bytes], Awaitable[None]], sql: str, *arguments: object
) -> None:
    """Give the binary rows of a query to ``take``, piece by piece; none after an error of ``take``.

    The error is raised once all rows have come: if taking the last piece fails, asyncpg waits for ever with
    the next query.
    """
    failed: BaseException | None = None

    async def take_unless_failed(piece: bytes) -> None:
        nonlocal failed
        if failed is None:
            try:
                await take(piece)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised below
                failed = error

    await connection.copy_from_query(sql, *arguments, output=take_unless_failed, format="binary")
    if failed is not None:
        raise failed


class BinaryRows:
    """Takes pieces of any size. ``take`` is the output for asyncpg's ``copy_from_query``.

    ``columns``: name and width in bytes of each. ``give`` is called with rows as they arrive; without it, all
    rows are kept until ``finish``.
    """

    def __init__(
        self, columns: Sequence[tuple[str, int]], give: Callable[[NDArray[Any]], None] | None = None
    ) -> None:
        self._give = give
        self._begun = False
        fields = [("columns", ">i2")]
        for name, width in columns:
            fields += [(f"{name}_bytes", ">i4"), (name, f">i{width}")]
        self._row = np.dtype(fields)
        self._buffer = bytearray()

    async def take(self, piece: bytes) -> None:
        """Add a piece of the stream; calls ``give`` once there are many rows."""
        self._buffer += piece
        if not self._begun and len(self._buffer) >= _SIGNATURE_BYTES:
            del self._buffer[:_SIGNATURE_BYTES]
            self._begun = True
        if self._give is not None and len(self._buffer) > CHUNK_BYTES:
            # Keep one row back: its bytes may contain the trailer.
            self._give(self._rows(len(self._buffer) // self._row.itemsize - 1))

    def finish(self) -> NDArray[Any]:
        """The rows that ``give`` has not received.

        Raises:
            ValueError: the last row is incomplete, or rows have another width.
        """
        rows, rest = divmod(len(self._buffer) - _TRAILER_BYTES, self._row.itemsize)
        if rest or not self._begun:
            raise ValueError("the rows were not read whole")
        return self._rows(rows)

    def _rows(self, number: int) -> NDArray[Any]:
        content = bytes(self._buffer[: number * self._row.itemsize])
        del self._buffer[: len(content)]
        return np.frombuffer(content, self._row)
