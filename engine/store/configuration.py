"""The configuration cache: a worker's copy of API keys, campaigns, batches and voids.

PostgreSQL is the source of truth. ``publishing`` writes the configuration to Redis, and every worker copies
it from there, so a redemption needs no extra query. Every script call carries the version of the copy. A
shard with a later version refuses the call, and the worker refreshes its copy. So a change takes effect with
the next redemption.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from redis.exceptions import RedisError

from engine.api.cards import Card  # noqa: TC001 - msgspec reads the annotations
from engine.codes.formats import normalise_prefix
from engine.errors import ContractViolation, Refusal, StoreBehind, StoreUnavailable
from engine.store import keys
from engine.store.void_ranges import VoidRanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio import Redis

SCOPES: Final = ("redeem", "read", "adjust", "events", "admin")
IMPORTED: Final = "imported"  # the format of a batch whose codes were made elsewhere
CONFIRM_INTERVAL_S: Final = 0.02
REFRESH_TIMEOUT_S: Final = 2.0


SIGNING: Final = ("off", "optional", "required")
"""Whether the requests of an API key are signed (``engine.guard.signatures``)."""


class CachedSecret(msgspec.Struct, frozen=True):
    """A secret that signs requests. ``sealed``: encrypted under a mint key (``codes.sealing``), in hex."""

    id: str
    mint_key: str
    sealed: str


class CachedKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key. ``digest`` is the SHA-256 of the whole key, in hex. The key itself is stored nowhere.

    Attributes:
        scopes: empty for a browser key, so a worker that knows no browser keys refuses all its calls.
        campaigns: the key is limited to these campaigns; None: it is not limited.
        origins: of a browser key, the pages that may use it; None: it is a server key.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    revoked: bool
    campaigns: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    signing: str = "off"
    signing_secrets: tuple[CachedSecret, ...] = ()

    def may_use(self, campaign: str) -> bool:
        """Whether this key knows of a campaign. To a limited key, others look as if they did not exist."""
        return self.campaigns is None or campaign in self.campaigns

    def may_undo(self, actor: str) -> bool:
        """Whether this key may undo what ``actor`` did: its own, or with the scope ``adjust`` everything."""
        return actor == self.id or "adjust" in self.scopes


class CachedCampaign(msgspec.Struct, frozen=True):
    """The part of a campaign that the front end needs. Limits and time windows are left to the scripts.

    ``card``: what its customer page shows; None: the page's own look and words.
    """

    id: str
    kind: str
    amount: int | None
    currency: str | None
    per_user_limited: bool
    pinned_shard: int | None
    card: Card | None = None


NO_CAMPAIGN: Final = CachedCampaign("", "", None, None, per_user_limited=False, pinned_shard=None)
"""The campaign of an attempt that is not about a code."""


class CachedBatch(msgspec.Struct, frozen=True):
    """A batch: serials 0 to ``count - 1`` were issued, in this format, under this mint key.

    If the format is ``IMPORTED``, the digests of its codes are keyed with a key derived from the mint key.
    ``key_check`` is the mint key's check value, in hex; empty if it was not recorded yet. ``guessable``: its
    codes were imported, and one guess may well find one (``engine.imports.guessing``).
    """

    id: int
    campaign: str
    count: int
    format: str
    prefix: str | None
    mint_key: str
    key_check: str = ""
    guessable: bool = False


class CachedVoid(msgspec.Struct, frozen=True):
    """One change to a range of serials: made void, or valid again."""

    id: int
    batch: int
    first_serial: int
    last_serial: int
    void: bool


class CachedBlock(msgspec.Struct, frozen=True):
    """A block or an allow of a source (``engine.guard``).

    Attributes:
        subject: the source, as it is compared: a network in CIDR notation or an address, the name of a user
            or of a device, or the id of an API key.
        expires_ms: when it ends, in milliseconds since the epoch; None for never.
        lifted: it has been ended before.
        api_key: the id of the only API key that it is about; None for all.
    """

    id: int
    action: Literal["block", "allow"]
    kind: str
    subject: str
    expires_ms: int | None
    lifted: bool
    api_key: str | None = None


class CachedRule(msgspec.Struct, frozen=True):
    """The mode of a rule of the guard; None for that of the settings."""

    name: str
    mode: str | None


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    """Mark an exception of the task as seen, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


class Deployment(msgspec.Struct, frozen=True):
    """Values that are the same for all processes of a deployment, for ever."""

    shards: int


class ConfigurationCache:
    """A worker's copy of the configuration, and how it is kept current. Reading it never waits."""

    def __init__(
        self,
        redis: Redis,
        *,
        timeout_s: float = REFRESH_TIMEOUT_S,
        on_block: Callable[[CachedBlock], None] = lambda _: None,
        on_rule: Callable[[str, str | None], None] = lambda _, __: None,
    ) -> None:
        """``on_block`` gets each block when it is new, and again when it is lifted; ``on_rule`` each mode."""
        self._redis = redis
        self._on_block = on_block
        self._on_rule = on_rule
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()
        self._confirming: asyncio.Task[None] | None = None
        self._confirmed_at = 0.0
        self.store_behind = False  # Redis has lost events; set by ``redis_watch``
        self.store_unsafe = ""  # why Redis must not be used for redemptions; set by ``redis_watch``
        self.memory_short = False  # refuse new redemptions and holds; set by ``redis_memory``
        self.memory_percent: float | None = None  # of its limit, used by Redis; set by ``redis_memory``
        self.version = 0
        self.shards = 0
        self.api_keys: dict[str, CachedKey] = {}  # by digest
        self.browser_keys: set[str] = set()  # by id
        self.campaigns: dict[str, CachedCampaign] = {}
        self.batches: dict[int, CachedBatch] = {}
        self._guessable: set[str] = set()  # campaigns
        self.prefixes: frozenset[bytes] = frozenset()  # normalised
        self._voids: dict[int, VoidRanges] = {}  # by batch

    def is_valid(self, api_key: CachedKey | None) -> bool:
        """Whether a key is still known and not revoked. None is the engine itself, which needs no key."""
        if api_key is None:
            return True
        known = self.api_keys.get(api_key.digest)
        return known is not None and not known.revoked

    def require_campaigns(self, names: Iterable[str], api_key: CachedKey) -> None:
        """Check that a key knows of campaigns with these ids. The copy must be current: see ``confirm``.

        Raises:
            Refusal: ``campaign_not_found``. The detail does not repeat the id: it may be any text.
        """
        if not all(name in self.campaigns and api_key.may_use(name) for name in names):
            raise Refusal("campaign_not_found")

    def is_void(self, batch: int, serial: int) -> bool:
        """Whether a code is void by its batch or by a range. One look-up if the batch has no voids."""
        ranges = self._voids.get(batch)
        return ranges is not None and serial in ranges

    def has_voids(self, batch: int) -> bool:
        """Whether ``is_void`` must be asked about the codes of a batch."""
        return batch in self._voids

    def has_guessable(self, api_key: CachedKey) -> bool:
        """Whether a limited key is for a campaign with codes that can be guessed."""
        return bool(self._guessable) and not self._guessable.isdisjoint(api_key.campaigns or ())

    async def know(self, batches: Iterable[int]) -> None:
        """Refresh if one of the batches is unknown: a worker with a newer configuration used it.

        Raises:
            StoreUnavailable, ContractViolation: as ``refresh``.
        """
        if not self.batches.keys() >= set(batches):
            await self.refresh()

    def take_batch(self, batch: CachedBatch) -> None:
        """Add a batch to the copy."""
        self.batches[batch.id] = batch
        if batch.guessable:
            self._guessable.add(batch.campaign)
        if batch.prefix:
            self.prefixes |= {normalise_prefix(batch.prefix)}

    async def refresh(self) -> None:
        """Read all changes since the copy's version. Changes made before the call are always included.

        Raises:
            StoreUnavailable: Redis does not answer in time, or has no configuration.
            ContractViolation: this version of the engine cannot read the configuration in Redis.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._one_at_a_time:
                await self._refresh()
        except TimeoutError:
            raise StoreUnavailable("Redis does not answer") from None

    async def keep_current(self, interval_s: float) -> None:
        """Refresh whenever shard 0 has a later version, until cancelled. Redis is asked for nothing else.

        Redemptions notice a change by themselves. What the front end decides without Redis, such as a
        block, needs this.
        """
        while True:
            await asyncio.sleep(interval_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    version = await self._redis.get(keys.version(0))
                if version is not None and int(version) != self.version:
                    await self.refresh()
            except (OSError, RedisError, TimeoutError, StoreUnavailable):
                continue  # the copy stays as it is

    async def confirm(self) -> None:
        """Refresh, at most once in ``CONFIRM_INTERVAL_S``, so that guessing cannot load Redis.

        Called before a code or a key is reported as unknown: it may have been made a moment ago.

        Raises:
            StoreUnavailable: as ``refresh``.
        """
        if self._confirming is None:
            self._confirming = asyncio.create_task(self._confirm())
            self._confirming.add_done_callback(_retrieve_exception)  # its caller may have given up
        await asyncio.shield(self._confirming)

    async def _confirm(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._confirmed_at + CONFIRM_INTERVAL_S - loop.time()))
        self._confirmed_at = loop.time()
        self._confirming = None  # later callers need a refresh that starts after their call
        await self.refresh()

    def unpublished(self) -> StoreUnavailable:
        """The fault to raise when Redis has no configuration."""
        if self.store_behind:
            return StoreBehind("Redis has lost events that the ledger has; run `redeem rebuild`")
        return StoreUnavailable("Redis has no configuration")

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
            if api_key.origins is not None:
                self.browser_keys.add(api_key.id)
        elif kind == b"campaign":
            campaign = msgspec.json.decode(record, type=CachedCampaign)
            self.campaigns[campaign.id] = campaign
        elif kind == b"batch":
            self.take_batch(msgspec.json.decode(record, type=CachedBatch))
        elif kind == b"void":
            # Voids come in the order of their versions. If some come again, all later ones come again too.
            void = msgspec.json.decode(record, type=CachedVoid)
            ranges = self._voids.setdefault(void.batch, VoidRanges())
            ranges.mark(void.first_serial, void.last_serial, void=void.void)
        elif kind == b"block":
            self._on_block(msgspec.json.decode(record, type=CachedBlock))
        elif kind == b"rule":
            rule = msgspec.json.decode(record, type=CachedRule)
            self._on_rule(rule.name, rule.mode)
