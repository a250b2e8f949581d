"""Sends attempts to their shards: owns one Redis link per shard and one batcher per script and shard.

It knows no operation. ``engine.redemption.operations`` gives it the scripts, the function that reserves an
idempotency key, and the function that ends expired holds.
"""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine.errors import Fault, Overloaded
from engine.store.batcher import Batcher, Queued
from engine.store.idempotency import home_shard
from engine.store.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.observability.metrics import Telemetry
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache
    from engine.store.keys import CodeLocation
    from lua.loader import Script


class Operation(NamedTuple):
    """An operation, as the dispatcher sees it.

    Attributes:
        starts_new: it redeems or holds something new, so it is refused while Redis is short of memory.
        batch_max: how many attempts one call of its script may have; None for the setting.
    """

    script: Script
    starts_new: bool = False
    batch_max: int | None = None


class Sendable(Queued, Protocol):
    """An attempt that knows its shard.

    Attributes:
        idempotency_name, fingerprint: of its idempotency record; empty if it has no key.
        key_reserved: its idempotency key is reserved on the key's home shard, or needs no reservation.
    """

    @property
    def script(self) -> Script:
        """The script that decides it."""

    location: CodeLocation
    actor: str
    key: str | None
    idempotency_name: str
    fingerprint: bytes
    key_reserved: bool

    def refused(self, outcome: str, *, replayed: bool = False) -> None:
        """Answer with a refusal."""


class Dispatcher:
    """Sends attempts to their shards. Also gives every attempt of a worker its configuration and counters.

    Attributes:
        reserve_key: makes an attempt that reserves the idempotency key of another attempt on a shard, and
            then sends that other attempt.
        expire_holds: ends the expired holds of a shard.
        note: told of each decided attempt that the guard judges: key, user, client, outcome, typed code.
            None: nobody wants to hear.
    """

    reserve_key: Callable[[Sendable, int], Sendable]
    expire_holds: Callable[[int], Awaitable[None]]

    def __init__(
        self,
        settings: Settings,
        configuration: ConfigurationCache,
        telemetry: Telemetry,
        operations: Sequence[Operation],
        verify: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """``verify`` is awaited with a shard's number before a new connection to it is used."""
        self.settings = settings
        self.configuration = configuration
        self.telemetry = telemetry
        self.note: Callable[[tuple[Any, ...]], None] | None = None
        self._verify = verify
        self._loop = asyncio.get_running_loop()
        self._starts_new = frozenset(
            operation.script.name for operation in operations if operation.starts_new
        )
        self._links: list[Link] = []
        self._batchers: list[dict[str, Batcher]] = []
        for shard in range(configuration.shards):
            self._add_shard(shard, operations)
        self._waiting: defaultdict[int, list[Sendable]] = defaultdict(list)  # for expired holds, by shard
        self._expiring: dict[int, asyncio.Task[None]] = {}

    def _add_shard(self, shard: int, operations: Sequence[Operation]) -> None:
        batchers: dict[str, Batcher] = {}

        def dispatch_all() -> None:
            for batcher in batchers.values():
                batcher.dispatch()

        link = Link(
            self.settings.redis_url,
            tuple(operation.script for operation in operations),
            on_ready=dispatch_all,
            verify=functools.partial(self._verify, shard) if self._verify else None,
        )
        for operation in operations:
            batchers[operation.script.name] = Batcher(
                shard,
                operation.script,
                link,
                batch_max=operation.batch_max or self.settings.batch_max,
                settings=self.settings,
                configuration=self.configuration,
                telemetry=self.telemetry,
            )
        self._links.append(link)
        self._batchers.append(batchers)

    @property
    def ready(self) -> bool:
        """Whether every shard can be called."""
        return all(link.ready for link in self._links)

    def open(self) -> None:
        """Connect to every shard."""
        for link in self._links:
            link.open()

    def reconnect(self) -> None:
        """Cut every connection. Each new connection is verified before it is used."""
        for link in self._links:
            link.abort()

    async def close(self) -> None:
        """Wait for the attempts in flight, then disconnect."""
        await asyncio.gather(*self._expiring.values(), return_exceptions=True)
        batchers = [batcher for of_shard in self._batchers for batcher in of_shard.values()]
        await asyncio.gather(*(batcher.drain() for batcher in batchers))
        await asyncio.gather(*(link.close() for link in self._links))
        await asyncio.gather(*(batcher.close() for batcher in batchers))

    def deadline(self) -> float:
        """By when an attempt that arrives now must have its answer, by the event loop's clock."""
        return self._loop.time() + self.settings.attempt_deadline_ms / 1000

    def queues_of(self, script: Script) -> list[Callable[[Queued], None]]:
        """Return what queues an attempt of a script, by shard: as ``send`` does if nothing forbids it."""
        return [batchers[script.name].add for batchers in self._batchers]

    def send(self, attempt: Sendable) -> None:
        """Hand an attempt to the batcher of its script on its shard.

        An idempotency key has one home shard, for every code. If the code is on another shard, the key is
        first reserved on its home shard. So the engine notices when a key is used again with another code.

        Raises:
            Overloaded, StoreUnavailable: the attempt cannot be queued; nothing was done.
        """
        if self.configuration.memory_short and attempt.script.name in self._starts_new:
            raise Overloaded("Redis is short of memory")
        shards = self.configuration.shards
        if shards > 1 and attempt.idempotency_name and not attempt.key_reserved:
            home = home_shard(attempt.idempotency_name, shards)
            if home != attempt.location.shard:
                attempt = self.reserve_key(attempt, home)
        self._batchers[attempt.location.shard][attempt.script.name].add(attempt)

    def retry_after_expiry(self, attempt: Sendable) -> None:
        """Send an attempt again once the expired holds of its shard have ended."""
        shard = attempt.location.shard
        self._waiting[shard].append(attempt)
        if shard not in self._expiring:
            self._expiring[shard] = asyncio.create_task(self._expire(shard))

    async def _expire(self, shard: int) -> None:
        failure = None
        try:
            await self.expire_holds(shard)
        except Fault as fault:
            failure = fault
        finally:
            del self._expiring[shard]
        for attempt in self._waiting.pop(shard):
            try:
                if failure is not None:
                    raise failure
                self.send(attempt)
            except Fault as fault:
                attempt.failed(fault)
