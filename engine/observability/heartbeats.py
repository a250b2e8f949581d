"""Signs of life of the processes, in PostgreSQL: each writes its own, others read them.

A process that is stopped or hangs cannot say so. It stops beating, and after ``SILENT_S`` others see that.
A persister and a deliverer also hold an advisory lock while they work.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "heartbeats")

BEAT_S: Final = 1.0
SILENT_S: Final = 4.0
"""Without a sign of life for this long, a process counts as stopped or hanging."""
SHARD_LOCK_CLASS: Final = 0x5245444D
"""First half of the lock on a shard's ledger ("REDM"). The second half is the shard."""
GUARD_SHARING: Final = "guard sharing"
CLIENT_ADDRESSES: Final = "client addresses"
WEBHOOKS_LOCK: Final = (0x52454457, 0)
"""One process delivers webhooks ("REDW")."""


class ProcessRole(enum.StrEnum):
    """A kind of process."""

    WORKER = "worker"
    PERSISTER = "persister"
    DELIVERER = "deliverer"


class State(enum.StrEnum):
    """What a process says of itself."""

    ACTIVE = "active"
    STANDBY = "standby"
    FAILING = "failing"


class Sign(NamedTuple):
    """A sign of life.

    Attributes:
        trouble: why it fails.
        stalled_s: for how long the work has not gone on.
        notes: what does not work as it should although the process works, by the name of the check.
    """

    state: State
    trouble: str = ""
    shard: int = 0
    stalled_s: float = 0.0
    notes: Mapping[str, str] = MappingProxyType({})


class Beat(NamedTuple):
    """A sign of life as others read it. ``age_s``: how long ago the work last went on."""

    part: str
    shard: int
    instance: str
    pid: int
    state: str
    trouble: str
    age_s: float
    notes: Mapping[str, str]

    @property
    def is_fresh(self) -> bool:
        """Whether the process works."""
        return self.age_s < SILENT_S


class Lock(NamedTuple):
    """An advisory lock that a session holds."""

    key: tuple[int, int]
    application: str
    address: str


class Signs(NamedTuple):
    """All signs of life at one time."""

    beats: list[Beat]
    locks: list[Lock]

    def of(self, part: ProcessRole, shard: int = 0) -> list[Beat]:
        """Return the beats of a part, the freshest first."""
        return [beat for beat in self.beats if (beat.part, beat.shard) == (part, shard)]

    def holder(self, key: tuple[int, int]) -> Lock | None:
        """Return the lock with this key; None if nobody holds it."""
        return next((lock for lock in self.locks if lock.key == key), None)


def instance_name(name: str = "") -> str:
    """Return the name of this process: its machine, and its pid or another name."""
    return f"{socket.gethostname()}/{name or os.getpid()}"


async def touch_file(file: Path | None) -> None:
    """Touch a file once a second: a supervisor on this machine replaces a process that no longer does."""
    while True:
        await asyncio.sleep(BEAT_S)
        if file:
            os.utime(file)


async def beat(connection: Connection, part: ProcessRole, instance: str, signs: Sequence[Sign]) -> None:
    """Write the signs of life of this process."""
    await connection.execute(
        _SQL["beat"],
        part.value,
        instance,
        os.getpid(),
        [sign.shard for sign in signs],
        [sign.state.value for sign in signs],
        [sign.trouble for sign in signs],
        [sign.stalled_s for sign in signs],
        [orjson.dumps(dict(sign.notes)).decode() for sign in signs],
    )


async def sign_off(connection: Connection, part: ProcessRole, instance: str) -> None:
    """Remove the signs of life of a process that ends in order."""
    await connection.execute(_SQL["sign_off"], part.value, instance)


async def read_signs(connection: Connection) -> Signs:
    """Read all signs of life."""
    locks = await connection.fetch(_SQL["locks"], [SHARD_LOCK_CLASS, WEBHOOKS_LOCK[0]])
    beats = await connection.fetch(_SQL["beats"])
    return Signs(
        [Beat(**dict(row) | {"notes": orjson.loads(row["notes"])}) for row in beats],
        [Lock((row["class"], row["number"]), row["application_name"], row["address"]) for row in locks],
    )
