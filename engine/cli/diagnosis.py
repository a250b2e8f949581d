"""What ``redeem doctor`` looks at. Nothing is changed, and whatever is away does not stop the rest."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from engine.cli.connect import server_urls
from engine.codes import mint_keys
from engine.control.publishing import NO_STREAM
from engine.errors import StoreUnavailable
from engine.health import redis_checks
from engine.health.redis_checks import Finding, Verdict
from engine.health.redis_memory import used_percent
from engine.queries import queries
from engine.store import keys
from persister import migrations
from persister.ownership import SHARD_LOCK_CLASS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from engine.health.redis_checks import StoreFacts
    from engine.postgres_types import Connection
    from engine.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0
POSTGRESQL_VERSION_MIN: Final = 15
FREE_BYTES_WARNING: Final = 2**30
FREE_BYTES_WRONG: Final = 2**28
MEMORY_WARNING_SHARE: Final = 0.8
LAG_S_WARNING: Final = 30.0
CLOCK_S_WARNING: Final = 1.0
CLOCK_S_WRONG: Final = 60.0
_SQL: Final = queries(__package__, "doctor")
_CONTROL: Final = queries("engine.control", "control")
_AWAY: Final = (OSError, ValueError, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError)
_NO_ENGINE: Final = "start the engine (`redeem up`), or the server that the setting names"
_NOT_LET_IN: Final = (  # an answer of a server that is there, or a URL that is none
    ValueError,
    AuthenticationError,
    NoPermissionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


@dataclass(slots=True)
class _Servers:
    """The connections there are, and how far each server's clock is ahead of this machine's, in seconds."""

    settings: Settings
    redis: Redis | None = None
    database: Any = None
    clocks: dict[str, float] | None = None


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything."""
    found = [*_durability(settings), _disk(settings)]
    try:
        redis_url, database_url = server_urls(settings)
    except StoreUnavailable as fault:
        return [*found, Finding("servers", Verdict.WRONG, str(fault), _NO_ENGINE)]
    settings = replace(settings, redis_url=redis_url, database_url=database_url)
    async with contextlib.AsyncExitStack() as stack:
        servers = _Servers(settings, clocks={})
        found += await _open_redis(servers, stack)
        found += await _open_database(servers, stack)
        found += await _of_deployment(servers)
        found += _clocks(servers.clocks or {})
    return found


def _durability(settings: Settings) -> Iterator[Finding]:
    if settings.durability != "disk":
        says = "REDEEM_DURABILITY=memory: Redis may lose what it has acknowledged, and answers say so"
        yield Finding("durability", Verdict.WARNING, says, "unset it once Redis fsyncs every write")


def _disk(settings: Settings) -> Finding:
    place = settings.data_dir.resolve()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    says = f"{usage.free / 2**30:.1f} GiB free for {settings.data_dir}"
    if usage.free >= FREE_BYTES_WARNING:
        return Finding("disk", Verdict.OK, says)
    verdict = Verdict.WARNING if usage.free >= FREE_BYTES_WRONG else Verdict.WRONG
    return Finding("disk", verdict, says, "make room: servers whose disk is full stop")


# Redis


async def _open_redis(servers: _Servers, stack: contextlib.AsyncExitStack) -> list[Finding]:
    settings = servers.settings
    try:
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        stack.push_async_callback(redis.aclose)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            facts = await redis_checks.read_facts(redis)
            servers.clocks = {"Redis": await _ahead_s(lambda: _redis_time(redis))}
            scripts = await redis_checks.check_scripts(redis)
    except _AWAY as error:
        says = f"cannot be reached: {_told(error)}"
        return [Finding("redis", Verdict.WRONG, says, _way_in(error, "REDEEM_REDIS_URL"))]
    servers.redis = redis
    return [*redis_checks.check(facts, settings.durability), *_redis_health(facts, settings), *scripts]


def _redis_health(facts: StoreFacts, settings: Settings) -> Iterator[Finding]:
    share = used_percent(facts.memory)
    most = settings.redis_memory_percent_max
    if share is None:
        yield Finding("redis memory", Verdict.OK, "no limit of its own (maxmemory)")
    elif share >= most:
        says = f"{share:.0f} % of maxmemory are used: new redemptions and holds are refused"
        do = "start the persister if it does not run, or CONFIG SET maxmemory to more"
        yield Finding("redis memory", Verdict.WRONG, says, do)
    else:
        verdict = Verdict.WARNING if share >= most * MEMORY_WARNING_SHARE else Verdict.OK
        yield Finding("redis memory", verdict, f"{share:.0f} % of maxmemory are used, {most} % may be")
    if facts.persistence.get("loading"):
        yield Finding("redis data", Verdict.WRONG, "is still being loaded", "wait")
    if facts.persistence.get("aof_last_write_status", "ok") != "ok":
        says = "the append-only file could not be written"
        yield Finding("redis data", Verdict.WRONG, says, "make room on its disk, and look at its log")
    elif facts.persistence.get("aof_last_bgrewrite_status", "ok") != "ok":
        says = "the append-only file could not be rewritten, and grows"
        yield Finding("redis data", Verdict.WARNING, says, "look at its log, then BGREWRITEAOF")


# PostgreSQL


async def _open_database(servers: _Servers, stack: contextlib.AsyncExitStack) -> list[Finding]:
    found = []
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            database = await asyncpg.connect(
                servers.settings.database_url, timeout=ANSWER_TIMEOUT_S, command_timeout=ANSWER_TIMEOUT_S
            )
            stack.callback(database.terminate)
            ahead_s = await _ahead_s(lambda: database.fetchval(_SQL["now"]))
            fsync = await database.fetchval(_SQL["fsync"])
            found += await _schema(database)
    except _AWAY as error:
        says = f"cannot be reached: {_told(error)}; redemptions go on, the streams grow"
        return [Finding("postgresql", Verdict.WRONG, says, _way_in(error, "REDEEM_DATABASE_URL"))]
    servers.database = database
    servers.clocks = (servers.clocks or {}) | {"PostgreSQL": ahead_s}
    version = database.get_server_version()
    text = f"version {version.major}.{version.minor}"
    if version.major < POSTGRESQL_VERSION_MIN:
        do = f"use PostgreSQL {POSTGRESQL_VERSION_MIN} or later"
        found.insert(0, Finding("postgresql", Verdict.WRONG, f"{text} is too old", do))
    elif fsync != "on":
        says = f"{text}, fsync = {fsync}: a power failure may lose the ledger"
        found.insert(0, Finding("postgresql", Verdict.WARNING, says, "fsync = on in postgresql.conf"))
    else:
        found.insert(0, Finding("postgresql", Verdict.OK, text))
    return found


async def _schema(database: Connection) -> list[Finding]:
    try:
        missing = await migrations.pending_migrations(database)
    except migrations.MigrationError as error:
        do = "run the version of the engine that the database was migrated by"
        return [Finding("schema", Verdict.WRONG, str(error), do)]
    if missing:
        return [Finding("schema", Verdict.WRONG, f"not migrated: {', '.join(missing)}", "redeem init")]
    return [Finding("schema", Verdict.OK, "migrated")]


# Both together


async def _of_deployment(servers: _Servers) -> list[Finding]:
    """Settings against the deployment, and each shard against its ledger."""
    settings, database = servers.settings, servers.database
    if database is None:
        return [_mint_keys(settings, [])]
    try:
        deployment = await database.fetchrow(_CONTROL["deployment"])
        in_use = [row["mint_key"] for row in await database.fetch(_SQL["mint_keys"])]
    except asyncpg.UndefinedTableError:
        deployment, in_use = None, []
    found = [_mint_keys(settings, in_use)]
    if deployment is None:
        return [*found, Finding("deployment", Verdict.WRONG, "not initialised", "redeem init")]
    shards = deployment["shards"]
    if shards != settings.shards:
        says = f"it has {shards} shards, REDEEM_SHARDS says {settings.shards}"
        do = f"REDEEM_SHARDS={shards}; or, to change it, stop everything and run `redeem rebuild`"
        found.append(Finding("deployment", Verdict.WRONG, says, do))
    else:
        found.append(Finding("deployment", Verdict.OK, f"shards: {shards}"))
    for shard in range(shards):
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found += [item async for item in _shard(servers, shard, deployment["control_version"])]
        except _AWAY as error:
            setting = "REDEEM_REDIS_URL" if isinstance(error, RedisError) else "REDEEM_DATABASE_URL"
            says = f"cannot be compared: {_told(error)}"
            found.append(Finding(f"shard {shard}", Verdict.WRONG, says, _way_in(error, setting)))
    return found


def _mint_keys(settings: Settings, in_use: list[str]) -> Finding:
    try:
        there = set(mint_keys.from_settings(settings).by_name)
    except (mint_keys.MintKeyError, OSError) as error:
        if not in_use and not settings.mint_keys and not settings.mint_keys_path.exists():
            return Finding("mint keys", Verdict.WARNING, "none yet", "redeem init")
        return Finding("mint keys", Verdict.WRONG, str(error), "bring back the file of the mint keys")
    missing = [name for name in in_use if name not in there]
    if missing:
        says = f"missing: {', '.join(missing)}; their codes cannot be redeemed here"
        return Finding("mint keys", Verdict.WRONG, says, "copy them here from another machine, or a backup")
    return Finding("mint keys", Verdict.OK, f"{', '.join(sorted(there))}")


async def _shard(servers: _Servers, shard: int, version: int) -> AsyncIterator[Finding]:
    """PostgreSQL is asked first: it cannot have more events than Redis, asked after it, was ever given."""
    database, redis, name = servers.database, servers.redis, f"shard {shard}"
    owner = await database.fetchrow(_SQL["owner"], SHARD_LOCK_CLASS, shard)
    persisted = int(await database.fetchval(_CONTROL["persisted"], shard))
    offset = await database.fetchrow(_CONTROL["ledger_offset"], shard)
    lag = 0
    if redis is not None:
        lag_s = 0.0
        try:
            stream: dict[str, Any] = await redis.xinfo_stream(keys.events(shard))
            lag = int(stream["entries-added"]) - persisted
            if lag > 0 and offset is not None:
                lag_s = await _oldest_s(redis, shard, f"{offset['stream_ms']}-{offset['stream_seq']}")
            yield _stream_clock(name, await _redis_time(redis), stream)
        except ResponseError as error:
            if NO_STREAM not in str(error):
                raise
            lag = -persisted
        yield _ledger(name, lag, lag_s, rebuilding=bool(await redis.exists(keys.rebuilding(shard))))
        yield _configured(name, int(await redis.get(keys.version(shard)) or 0), version)
    if owner is not None:
        says = f"{owner['application_name'] or 'it'} writes the ledger, from {owner['address']}"
        yield Finding(f"{name} persister", Verdict.OK, says)
    else:
        verdict = Verdict.WRONG if lag > 0 else Verdict.WARNING
        says = "nobody writes the ledger"
        yield Finding(f"{name} persister", verdict, says, "redeem persist (`redeem up` runs one)")


def _ledger(name: str, lag: int, lag_s: float, *, rebuilding: bool) -> Finding:
    name = f"{name} ledger"
    if rebuilding:
        says = "is being rebuilt, or that was interrupted: nothing is redeemed"
        return Finding(name, Verdict.WRONG, says, "wait for `redeem rebuild`, or run it again")
    if lag < 0:
        says = f"Redis has lost {-lag} events that the ledger holds: nothing is redeemed"
        return Finding(name, Verdict.WRONG, says, "redeem rebuild")
    says = f"{lag} events are not in the ledger yet"
    if lag_s > LAG_S_WARNING:
        do = "look at the log of the persister, and whether PostgreSQL is slow"
        return Finding(name, Verdict.WARNING, f"{says}, the oldest for {lag_s:.0f} s", do)
    return Finding(name, Verdict.OK, says if lag else "all events are in the ledger")


def _configured(name: str, version: int, target: int) -> Finding:
    name = f"{name} configuration"
    if version == target:
        return Finding(name, Verdict.OK, f"version {version}")
    if version > target:
        says = f"PostgreSQL has version {target}, Redis {version}: PostgreSQL has lost changes"
        return Finding(name, Verdict.WRONG, says, "bring back the newest backup of PostgreSQL")
    do = "redeem init; a running engine does it by itself"
    if not version:
        return Finding(name, Verdict.WRONG, "Redis has none: nothing is redeemed", do)
    return Finding(name, Verdict.WARNING, f"Redis has version {version}, PostgreSQL {target}", do)


def _stream_clock(name: str, now_s: float, stream: dict[str, Any]) -> Finding:
    newest = stream["last-generated-id"]
    newest_s = int(newest.partition(b"-" if isinstance(newest, bytes) else "-")[0]) / 1000
    ahead_s = newest_s - now_s
    if ahead_s > CLOCK_S_WARNING:
        says = f"the newest event is {ahead_s:.0f} s in the future: the clock of Redis went back"
        do = "correct the clock; until then ids go on from the newest, and nothing is lost"
        return Finding(f"{name} clock", Verdict.WARNING, says, do)
    return Finding(f"{name} clock", Verdict.OK, "no event is in the future")


def _clocks(ahead_s: dict[str, float]) -> Iterator[Finding]:
    if not ahead_s:
        return
    says = "against this machine: " + ", ".join(f"{name} {by:+.3f} s" for name, by in ahead_s.items())
    spread = max(0.0, *ahead_s.values()) - min(0.0, *ahead_s.values())
    if spread <= CLOCK_S_WARNING:
        yield Finding("clocks", Verdict.OK, says)
    else:
        verdict = Verdict.WARNING if spread <= CLOCK_S_WRONG else Verdict.WRONG
        do = "let all machines follow one clock (NTP); campaigns go by that of Redis"
        yield Finding("clocks", verdict, says, do)


async def _ahead_s(ask: Callable[[], Awaitable[float]]) -> float:
    """How far a clock is ahead of ours, its reading taken for the middle of the round trip."""
    before = time.time()
    there = await ask()
    return there - (before + time.time()) / 2


async def _redis_time(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1e6


async def _oldest_s(redis: Redis, shard: int, offset: str) -> float:
    """For how long the oldest entry behind an offset has been there."""
    entries: Any = await redis.xrange(keys.events(shard), min=f"({offset}", count=1)
    if not entries:
        return 0.0
    milliseconds = int(bytes(entries[0][0]).partition(b"-")[0])
    return await _redis_time(redis) - milliseconds / 1000


def _way_in(error: Exception, setting: str) -> str:
    """What to do about a server that cannot be used; redis-py may hide why it is not let in in the cause."""
    if isinstance(error, _NOT_LET_IN) or isinstance(error.__cause__, _NOT_LET_IN):
        return f"correct address, user and password in {setting}"
    return _NO_ENGINE


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0] or f"no answer in {ANSWER_TIMEOUT_S:g} s"
