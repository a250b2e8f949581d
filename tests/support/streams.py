"""Writes streams as the engine's scripts do, and reads the resulting ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.ledger.stream_tail import decode_entries
from engine.processes.process import _leash
from engine.store import keys
from engine.store.event_lines import EventLine, encode_line
from engine.store.events import FIELDS, METADATA
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
    from engine.store.events import Event


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


def packed(*ids_and_values: tuple[str, Mapping[str, str]], shard: int = 0) -> dict[str, bytes]:
    """Return the fields of one entry, version 2, for events given as stream id and fields of version 1."""
    lines = []
    for stream_id, event in ids_and_values:
        line = EventLine(
            type=event["type"],
            id=f"{shard}-{stream_id}",
            redemption=event["redemption"],
            hold=event["hold"] or None,
            campaign=event["campaign"],
            batch=int(event["batch"]),
            serial=int(event["serial"]),
            last4=event["last4"],
            user=event["user"],
            amount=int(event["amount"]) if event["amount"] else None,
            currency=event["currency"] or None,
            order=event["order"] or None,
            key=event["key"] or None,
            actor=event["actor"],
            at=int(event["at"]),
        )
        lines.append(encode_line(line))
    return {"v": b"2", "events": b"\n".join(lines)}


async def read_events(
    redis: Redis, shard: int = 0, after: str = ""
) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the events of a stream, of entries of both versions: stream ids, and the fields of version 1."""
    entries: Any = await redis.xrange(keys.events(shard), f"({after}" if after else "-")
    return [(event.id.stream_id.encode(), _fields(event)) for event in decode_entries(shard, entries)]


async def count_events(redis: Redis, shard: int = 0) -> int:
    return len(await read_events(redis, shard))


def _fields(event: Event) -> dict[bytes, bytes]:
    given = (event.type, event.redemption, event.hold, event.campaign, event.batch, event.serial, event.last4)
    caused = (event.order, event.key, event.actor, event.at_ms)
    texts = (*given, event.user, event.amount, event.currency, *caused)
    found = {
        name.encode(): b"" if text is None else str(text).encode()
        for name, text in zip(FIELDS[1:], texts, strict=True)
    }
    return found | ({METADATA: event.metadata.encode()} if event.metadata else {})


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

    async def add(self, count: int, *, together: int = 0) -> None:
        """Add events: each as an entry of version 1, or ``together`` as entries of version 2."""
        end = len(self.ids) + count
        for number in range(len(self.ids), end, together or 1):
            if together:
                await self.add_packed(number, min(together, end - number))
            else:
                self.ids.append(await self.add_raw(dict(values(number))))

    async def add_packed(self, first: int, count: int) -> None:
        """Add one entry of version 2, as a script call of ``count`` attempts does."""
        end = max([(int(time.time() * 1000), -1), *self.ids[-1:]])
        ids = [(end[0], end[1] + number) for number in range(1, count + 1)]
        events = [(f"{ms}-{at}", values(number)) for number, (ms, at) in enumerate(ids, start=first)]
        await self.add_raw(packed(*events, shard=self.shard), f"{ids[-1][0]}-{ids[-1][1]}")
        self.ids += ids

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
