"""What a worker knows of the configuration: keys, campaigns, batches and voids, mirrored from Redis.

PostgreSQL is the truth, ``publishing`` writes it through to Redis, and every worker holds a
copy here, so that the redeem path asks nobody. Every script call carries the version of
the copy; a shard that knows a later one refuses the call, and the worker reloads. That is
how a change takes effect with the next redemption.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.codes.formats import normalise_prefix
from engine.errors import ContractViolation, StoreBehind, StoreUnavailable
from engine.store import keys
from engine.store.void_ranges import VoidRanges

if TYPE_CHECKING:
    from redis.asyncio import Redis

SCOPES: Final = ("redeem", "read", "events", "admin")
IMPORTED: Final = "imported"  # the format of a batch whose codes were made elsewhere
CONFIRM_INTERVAL_S: Final = 0.02
REFRESH_TIMEOUT_S: Final = 2.0


class CachedKey(msgspec.Struct, frozen=True):
    """A key of the API. ``digest`` is the SHA-256 of the whole key, in hex; the key itself is nowhere."""

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    revoked: bool


class CachedCampaign(msgspec.Struct, frozen=True):
    """What the front end must know of a campaign; limits and windows are for the script."""

    id: str
    kind: str
    amount: int | None
    currency: str | None
    per_user_limited: bool
    pinned_shard: int | None


NO_CAMPAIGN: Final = CachedCampaign("", "", None, None, per_user_limited=False, pinned_shard=None)
"""Stands for the campaign of an attempt that is about no code."""


class CachedBatch(msgspec.Struct, frozen=True):
    """A batch: serials 0 to ``count - 1`` were issued, in this format, under this mint key.

    Of one with the format ``IMPORTED`` the mint key is what the digests of its codes are keyed with.
    """

    id: int
    campaign: str
    count: int
    format: str
    prefix: str | None
    mint_key: str


class CachedVoid(msgspec.Struct, frozen=True):
    """Serials of a batch that were made void, or good again, at one time."""

    id: int
    batch: int
    first_serial: int
    last_serial: int
    void: bool


def _look_at(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


class Deployment(msgspec.Struct, frozen=True):
    """What is fixed for all processes of a deployment."""

    shards: int


class ConfigurationCache:
    """The copy, and how it is kept current. Reading it never waits."""

    def __init__(self, redis: Redis, *, timeout_s: float = REFRESH_TIMEOUT_S) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()
        self._confirming: asyncio.Task[None] | None = None
        self._confirmed_at = 0.0
        self.store_behind = False  # Redis has lost events: known from ``store_watch``
        self.store_unsafe = ""  # why Redis is not one to redeem on: known from ``store_watch``
        self.memory_short = False  # nothing new is begun: known from ``store_memory``
        self.version = 0
        self.shards = 0
        self.api_keys: dict[str, CachedKey] = {}  # by digest
        self.campaigns: dict[str, CachedCampaign] = {}
        self.batches: dict[int, CachedBatch] = {}
        self.prefixes: frozenset[bytes] = frozenset()  # normalised
        self._voids: dict[int, VoidRanges] = {}  # by batch

    def is_valid(self, api_key: CachedKey) -> bool:
        """Whether a key is still one; it may have been revoked since."""
        known = self.api_keys.get(api_key.digest)
        return known is not None and not known.revoked

    def is_void(self, batch: int, serial: int) -> bool:
        """Whether a code is void with its batch or a range of it; one look-up where the batch has none."""
        ranges = self._voids.get(batch)
        return ranges is not None and serial in ranges

    def take_batch(self, batch: CachedBatch) -> None:
        """Know one more batch."""
        self.batches[batch.id] = batch
        if batch.prefix:
            self.prefixes |= {normalise_prefix(batch.prefix)}

    async def refresh(self) -> None:
        """Take over what has changed since; what it reads is never older than the call.

        Raises:
            StoreUnavailable: Redis does not answer in time, or holds no configuration.
            ContractViolation: it holds one that this version cannot read.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._one_at_a_time:
                await self._refresh()
        except TimeoutError:
            raise StoreUnavailable("Redis does not answer") from None

    async def confirm(self) -> None:
        """``refresh``, at most once in ``CONFIRM_INTERVAL_S``, whoever guesses however much.

        Called before a code or a key is said to be unknown: it may have been made a moment ago.

        Raises:
            StoreUnavailable: as ``refresh``.
        """
        if self._confirming is None:
            self._confirming = asyncio.create_task(self._confirm())
            self._confirming.add_done_callback(_look_at)  # who waited may have given up
        await asyncio.shield(self._confirming)

    async def _confirm(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._confirmed_at + CONFIRM_INTERVAL_S - loop.time()))
        self._confirmed_at = loop.time()
        self._confirming = None  # who comes from here on needs a later reading than this one
        await self.refresh()

    def unpublished(self) -> StoreUnavailable:
        """Why Redis holds no configuration."""
        if self.store_behind:
            return StoreBehind("Redis has lost events that the ledger holds; `redeem rebuild`")
        return StoreUnavailable("Redis holds no configuration")

    async def _refresh(self) -> None:
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(keys.version(0))
                pipe.zrangebyscore(keys.control_changed(), f"({self.version}", "+inf")
                version, changed = await pipe.execute()
            if version is None:
                raise self.unpublished()
            if int(version) == self.version:
                return
            records = await self._redis.hmget(keys.control(), changed) if changed else []
            if None in records:
                raise StoreUnavailable("the configuration is being replaced")
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        try:
            for name, record in zip(changed, records, strict=True):
                self._take(name, record)
        except msgspec.MsgspecError as error:
            raise ContractViolation("the configuration in Redis cannot be read") from error
        self.version = int(version)

    def _take(self, name: Any, record: Any) -> None:  # noqa: ANN401 - bytes, whatever redis-py's stubs say
        kind, _, _ = name.partition(b":")
        if kind == b"deployment":
            self.shards = msgspec.json.decode(record, type=Deployment).shards
        elif kind == b"key":
            api_key = msgspec.json.decode(record, type=CachedKey)
            self.api_keys[api_key.digest] = api_key
        elif kind == b"campaign":
            campaign = msgspec.json.decode(record, type=CachedCampaign)
            self.campaigns[campaign.id] = campaign
        elif kind == b"batch":
            self.take_batch(msgspec.json.decode(record, type=CachedBatch))
        elif kind == b"void":
            # In the order of their versions. Some may come twice, then with all that came after them.
            void = msgspec.json.decode(record, type=CachedVoid)
            ranges = self._voids.setdefault(void.batch, VoidRanges())
            ranges.mark(void.first_serial, void.last_serial, void=void.void)
