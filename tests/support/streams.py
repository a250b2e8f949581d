"""Writes streams as the engine's scripts do, and reads the resulting ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.processes.process import _leash
from engine.store import keys
from engine.store.events import FIELDS
from persister.main import run_persister
from tests.support.running import STOP_TIMEOUT_S, running
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.settings import Settings


def values(number: int, **changes: str) -> dict[str, str]:
    """Return the fields of an event; every second event leaves the optional fields empty."""
    full = number % 2 == 0
    event = {
        "v": "1",
        "type": "redeemed",
        "redemption": f"0-1-{number}",
        "hold": f"0-0-{number}" if number % 5 == 4 else "",
        "campaign": "cmp_1",
        "batch": "7",
        "serial": str(number),
        "last4": "JK4M",
        "user": f"üser-{number}",
        "amount": "2500" if full else "",
        "currency": "EUR" if full else "",
        "order": f"order-{number}" if full else "",
        "key": f"key-{number}" if full else "",
        "actor": "key_1",
        "at": str(1_795_376_794_500 + number),
    }
    return {name: changes.get(name, event[name]) for name in FIELDS}


@dataclass
class Stream:
    """One shard's stream, and the ids written to it."""

    redis: Redis
    shard: int = 0

    def __post_init__(self) -> None:
        self.ids: list[tuple[int, int]] = []

    @property
    def key(self) -> str:
        return keys.events(self.shard)

    async def add(self, count: int) -> None:
        for number in range(len(self.ids), len(self.ids) + count):
            self.ids.append(await self.add_raw(dict(values(number))))

    async def add_raw(self, fields: Mapping[Any, str | bytes], entry_id: str = "*") -> tuple[int, int]:
        entry = await self.redis.xadd(self.key, dict(fields), id=entry_id)
        assert isinstance(entry, bytes)
        ms, sequence = entry.split(b"-")
        return int(ms), int(sequence)

    async def length(self) -> int:
        return int(await self.redis.xlen(self.key))


@dataclass
class Ledger:
    """Reads the ledger of one shard directly."""

    connection: Any
    shard: int = 0

    async def ids(self) -> list[tuple[int, int]]:
        rows = await self.connection.fetch(
            "SELECT stream_ms, stream_seq FROM ledger WHERE shard = $1 ORDER BY seq", self.shard
        )
        return [tuple(row) for row in rows]

    async def seqs(self) -> list[int]:
        rows = await self.connection.fetch("SELECT seq FROM ledger WHERE shard = $1 ORDER BY 1", self.shard)
        return [row["seq"] for row in rows]

    async def offset(self) -> tuple[int, int, int]:
        row = await self.connection.fetchrow(
            "SELECT stream_ms, stream_seq, seq FROM ledger_offsets WHERE shard = $1", self.shard
        )
        return tuple(row)

    async def rejects(self) -> dict[tuple[int, int], list[bytes]]:
        rows = await self.connection.fetch("SELECT * FROM ledger_rejects WHERE shard = $1", self.shard)
        return {(row["stream_ms"], row["stream_seq"]): row["raw"] for row in rows}

    async def reaches(self, stream: Stream) -> None:
        """Wait until the ledger has the whole stream: each entry once, in order, without gaps."""

        async def complete() -> bool:
            return not stream.ids or (await self.offset())[:2] >= stream.ids[-1]

        await wait_until_async(complete)
        assert await self.ids() == stream.ids
        assert await self.seqs() == list(range(1, len(stream.ids) + 1))
        assert (await self.offset())[2] == len(stream.ids)


def persisting(settings: Settings) -> AbstractAsyncContextManager[asyncio.Event]:
    """Run a persister in this process; stop it in order at the end, and check that it ends."""
    return running(lambda stop: run_persister(settings, settings.redis_url, settings.database_url, stop))


class PersisterProcess:
    """A ``python -m persister`` that a test can kill; on Linux it ends with the thread that started it."""

    def __init__(self, settings: Settings, log: Path, **more: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("REDEEM_")}
        environ |= {
            "REDEEM_REDIS_URL": settings.redis_url,
            "REDEEM_DATABASE_URL": settings.database_url,
            "REDEEM_PERSIST_BLOCK_MS": "50",
            "REDEEM_STREAM_KEPT_MIN": "0",
            "REDEEM_STREAM_KEPT_S": "0",
            **more,
        }
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "persister"],
                env=environ,
                stdout=output,
                stderr=output,
                preexec_fn=_leash(signal.SIGKILL),  # noqa: PLW1509 - one system call, bound before the fork
            )

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(STOP_TIMEOUT_S)

    def signal_stop(self) -> None:
        self._popen.terminate()

    def terminate(self) -> int:
        self._popen.terminate()
        return self._popen.wait(STOP_TIMEOUT_S)
