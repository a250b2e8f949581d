"""The checks of ``redeem doctor``. They change nothing; a server that is down does not stop the others."""

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
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.cli import guard_findings, machine_findings, part_findings
from engine.cli.append_only_file import check_append_only_file
from engine.cli.compiled_findings import check_event_reader, check_lane, check_limits, check_rebuild_records
from engine.cli.connect import server_urls
from engine.codes import mint_keys
from engine.control import mint_key_checks
from engine.control.publishing import missing_in_ledger
from engine.errors import StoreUnavailable
from engine.health import redis_checks
from engine.health.open_files import check_open_files
from engine.health.parts import Offset, oldest_s, read_ledger
from engine.health.redis_checks import Finding, Verdict
from engine.health.redis_memory import used_percent
from engine.queries import queries
from engine.settings import variable
from engine.store import keys
from engine.store.deployment_id import ForeignStore, require_own
from engine.store.stream import read_stream
from persister import migrations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from engine.health.parts import Ledger
    from engine.health.redis_checks import StoreFacts
    from engine.postgres_types import Connection, Row
    from engine.settings import Settings
    from engine.store.stream import StreamFacts

ANSWER_TIMEOUT_S: Final = 3.0
POSTGRESQL_VERSION_MIN: Final = 15
FREE_BYTES_WARNING: Final = 2**30
FREE_BYTES_WRONG: Final = 2**28
MEMORY_WARNING_SHARE: Final = 0.8
SERVERS: Final = 2
LAG_S_WARNING: Final = 30.0
CLOCK_S_WARNING: Final = 1.0
CLOCK_S_WRONG: Final = 60.0
_SQL: Final = queries(__package__, "doctor")
_CONTROL: Final = queries("engine.control", "control")
_UNREACHABLE: Final = (OSError, ValueError, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError)
_NO_ENGINE: Final = "start the engine (`redeem up`), or the server that the setting names"
_HANGS: Final = "read its log; is it stopped, is its disk full, does somebody hold a lock?"
_ACCESS_ERRORS: Final = (  # the server refused us, or the URL is not valid
    ValueError,
    AuthenticationError,
    NoPermissionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


@dataclass(slots=True)
class _Servers:
    """The open connections.

    Attributes:
        unset: the settings of URLs that are empty: these are the bundled servers.
        clocks: by how many seconds each server's clock is ahead of this machine's.
    """

    settings: Settings
    unset: list[str]
    clocks: dict[str, float]
    redis: Redis | None = None
    database: Any = None


async def examine(settings: Settings) -> list[Finding]:
    """Run all checks and return their findings."""
    findings = [*_durability(settings), _disk(settings), check_open_files(settings), check_lane(settings)]
    findings += part_findings.restarts(settings.run_dir)
    findings += machine_findings.supervisors(settings.run_dir)
    findings += [check_limits(), check_event_reader(), check_rebuild_records()]
    try:
        redis_url, database_url = server_urls(settings)
    except StoreUnavailable as fault:
        return [*findings, Finding("servers", Verdict.WRONG, str(fault), _NO_ENGINE)]
    unset = [name for name in ("redis_url", "database_url") if not getattr(settings, name)]
    settings = replace(settings, redis_url=redis_url, database_url=database_url)
    async with contextlib.AsyncExitStack() as stack:
        servers = _Servers(settings, unset, {})
        redis, database = await asyncio.gather(_open_redis(servers, stack), _open_database(servers, stack))
        if (
            not (servers.redis or servers.database or machine_findings.engine_is_there(settings.data_dir))
            and len(unset) == SERVERS
        ):
            says = f"no engine runs on {settings.data_dir}: nothing is redeemed"
            findings.append(Finding("engine", Verdict.WRONG, says, "redeem up"))
        else:
            findings += [*redis, *database]
        if servers.redis is None and "redis_url" in unset:
            findings += check_append_only_file(settings.data_dir)
        findings += await _deployment(servers)
        findings += _clocks(servers.clocks)
    return findings


def _durability(settings: Settings) -> Iterator[Finding]:
    if settings.durability != "disk":
        says = "REDEEM_DURABILITY=memory: Redis may lose acknowledged redemptions, and responses say so"
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
    return Finding("disk", verdict, says, "free some disk space: a server stops when its disk is full")


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
            await redis.ping()  # refused while Redis loads its data, or while a script does not end
            facts = await redis_checks.read_facts(redis)
            servers.clocks["Redis"] = await _ahead_s(lambda: _redis_time(redis))
            scripts = await redis_checks.check_scripts(redis)
    except _UNREACHABLE as error:
        return [_unreachable(servers, "redis", "redis_url", error, "nothing is redeemed")]
    servers.redis = redis
    return [*redis_checks.check(facts, settings.durability), *_redis_health(facts, settings), *scripts]


def _redis_health(facts: StoreFacts, settings: Settings) -> Iterator[Finding]:
    share = used_percent(facts.memory)
    most = settings.redis_memory_percent_max
    if share is None:
        yield Finding("redis memory", Verdict.OK, "no limit (maxmemory) is set")
    elif share >= most:
        says = f"{share:.0f} % of maxmemory is used: new redemptions and holds are refused"
        do = "start the persister if it does not run, or raise maxmemory with CONFIG SET"
        yield Finding("redis memory", Verdict.WRONG, says, do)
    else:
        verdict = Verdict.WARNING if share >= most * MEMORY_WARNING_SHARE else Verdict.OK
        yield Finding("redis memory", verdict, f"{share:.0f} % of maxmemory is used, the limit is {most} %")
    if facts.persistence.get("loading"):
        yield Finding("redis data", Verdict.WRONG, "Redis is still loading its data", "wait")
    if facts.persistence.get("aof_last_write_status", "ok") != "ok":
        says = "the append-only file could not be written"
        yield Finding("redis data", Verdict.WRONG, says, "free some space on its disk, and read its log")
    elif facts.persistence.get("aof_last_bgrewrite_status", "ok") != "ok":
        says = "the append-only file could not be rewritten, and keeps growing"
        yield Finding("redis data", Verdict.WARNING, says, "read the log of Redis, then run BGREWRITEAOF")


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
            fsync, is_read_only, version = await database.fetchrow(_SQL["server"])
            found += await _schema(database)
    except _UNREACHABLE as error:
        says = "workers redeem on without it, and the event streams grow"
        return [_unreachable(servers, "postgresql", "database_url", error, says)]
    servers.database = database
    servers.clocks["PostgreSQL"] = ahead_s
    text = f"version {version.split()[0]}"
    if database.get_server_version().major < POSTGRESQL_VERSION_MIN:
        do = f"use PostgreSQL {POSTGRESQL_VERSION_MIN} or later"
        found.insert(0, Finding("postgresql", Verdict.WRONG, f"{text} is too old", do))
    elif is_read_only:
        says = f"{text} is read-only: the ledger is not written, and the event streams grow"
        do = "let REDEEM_DATABASE_URL name the primary; or make room on its disk"
        found.insert(0, Finding("postgresql", Verdict.WRONG, says, do))
    elif fsync != "on":
        says = f"{text}, fsync = {fsync}: a power failure may lose the ledger"
        found.insert(0, Finding("postgresql", Verdict.WARNING, says, "set fsync = on in postgresql.conf"))
    else:
        found.insert(0, Finding("postgresql", Verdict.OK, text))
    return found


async def _schema(database: Connection) -> list[Finding]:
    try:
        missing = await migrations.pending_migrations(database)
    except migrations.MigrationError as error:
        do = "run the engine version that migrated the database"
        return [Finding("schema", Verdict.WRONG, str(error), do)]
    if missing:
        return [Finding("schema", Verdict.WRONG, f"not migrated: {', '.join(missing)}", "redeem init")]
    return [Finding("schema", Verdict.OK, "migrated")]


# Both together


async def _deployment(servers: _Servers) -> list[Finding]:
    """Compare the settings with the deployment, each shard with its ledger, and look at all processes."""
    settings, database = servers.settings, servers.database
    if database is None:
        return [_mint_keys(settings, [], {}), part_findings.local_workers(settings.run_dir)]
    try:
        deployment = await database.fetchrow(_CONTROL["deployment"])
        in_use = [row["mint_key"] for row in await database.fetch(_SQL["mint_keys"])]
        checks = await mint_key_checks.check_values(database)
    except asyncpg.UndefinedTableError:
        deployment, in_use, checks = None, [], {}
    found = [_mint_keys(settings, in_use, checks)]
    if deployment is None:
        return [*found, Finding("deployment", Verdict.WRONG, "not initialised", "redeem init")]
    shards = deployment["shards"]
    found.append(part_findings.number_of_shards(shards, settings))
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            ledger = await read_ledger(database)
            of_guard = await guard_findings.examine(database, settings, ledger.signs)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):  # an older schema: `schema` names it
        return found
    except _UNREACHABLE as error:
        says = f"PostgreSQL answers, but its tables cannot be read: {_reason(error)}"
        return [*found, Finding("ledger", Verdict.WRONG, says, _HANGS)]
    for shard in range(shards):
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found += [item async for item in _shard(servers, ledger, shard, deployment)]
        except _UNREACHABLE as error:
            setting = "REDEEM_REDIS_URL" if isinstance(error, RedisError) else "REDEEM_DATABASE_URL"
            says = f"cannot be compared: {_reason(error)}"
            found.append(Finding(f"shard {shard}", Verdict.WRONG, says, _access_advice(error, setting)))
    found.append(part_findings.workers(ledger))
    found.append(part_findings.deliverer(ledger))
    return [*found, *part_findings.webhooks(ledger.webhooks), *of_guard]


def _mint_keys(settings: Settings, in_use: list[str], checks: dict[str, bytes]) -> Finding:
    try:
        there = mint_keys.from_settings(settings).by_name
    except (mint_keys.MintKeyError, OSError) as error:
        if not in_use and not settings.mint_keys and not settings.mint_keys_path.exists():
            return Finding("mint keys", Verdict.WARNING, "none yet", "redeem init")
        return Finding("mint keys", Verdict.WRONG, str(error), "restore the mint key file from a backup")
    missing = [name for name in in_use if name not in there]
    if missing:
        says = f"missing: {', '.join(missing)}; their codes cannot be redeemed here, nor signatures verified"
        return Finding("mint keys", Verdict.WRONG, says, "copy them from another machine or from a backup")
    if other := mint_key_checks.other_keys(checks, there):
        do = "restore the mint keys of this deployment from another machine or from a backup"
        return Finding("mint keys", Verdict.WRONG, mint_key_checks.says(other), do)
    return Finding("mint keys", Verdict.OK, f"{', '.join(sorted(there))}")


async def _shard(servers: _Servers, ledger: Ledger, shard: int, deployment: Row) -> AsyncIterator[Finding]:
    """Check one shard. PostgreSQL was read first: if Redis has fewer events after that, Redis lost some."""
    database, redis, name = servers.database, servers.redis, f"shard {shard}"
    lag = 0
    if redis is not None:
        try:
            await require_own(redis, [shard], deployment["id"])
        except ForeignStore as fault:
            do = "correct them; or `redeem rebuild --replace-other-deployment`, which empties this Redis"
            yield Finding(f"{name} deployment", Verdict.WRONG, str(fault), do)
            return
        lag_s = 0.0
        offset = ledger.offsets.get(shard, Offset("0-0", 0, 0))
        facts = await read_stream(redis, shard)
        lag = facts.added - offset.persisted
        if lag > 0:
            lag_s = await oldest_s(redis, shard, offset.entry)
        yield _stream_clock(name, await _redis_time(redis), facts)
        if missing := await missing_in_ledger(redis, database, shard):
            yield _hole(name, missing)
        else:
            yield _ledger(name, lag, lag_s, rebuilding=bool(await redis.exists(keys.rebuilding(shard))))
        there = int(await redis.get(keys.version(shard)) or 0)
        yield _configured(name, there, deployment["control_version"], is_behind=lag < 0)
    yield part_findings.persister(f"{name} persister", ledger.persister(shard), max(0, lag))


def _hole(name: str, missing: int) -> Finding:
    says = f"the ledger has lost {missing} stream entries that Redis had: redemptions are refused"
    return Finding(f"{name} ledger", Verdict.WRONG, says, "redeem recover")


def _ledger(name: str, lag: int, lag_s: float, *, rebuilding: bool) -> Finding:
    name = f"{name} ledger"
    if rebuilding:
        says = "a rebuild is running or was interrupted: redemptions are refused"
        return Finding(name, Verdict.WRONG, says, "wait for `redeem rebuild`, or run it again")
    if lag < 0:
        says = f"Redis has lost {-lag} stream entries that the ledger holds: redemptions are refused"
        return Finding(name, Verdict.WRONG, says, "redeem rebuild")
    says = f"{lag} events are not in the ledger yet"
    if lag_s > LAG_S_WARNING:
        do = "read the persister's log, and check whether PostgreSQL is slow"
        return Finding(name, Verdict.WARNING, f"{says}; the oldest is {lag_s:.0f} s old", do)
    return Finding(name, Verdict.OK, says if lag else "all events are in the ledger")


def _configured(name: str, version: int, target: int, *, is_behind: bool) -> Finding:
    """Compare the configuration of a shard. ``is_behind``: it has lost events, so init is refused."""
    name = f"{name} configuration"
    if version == target:
        return Finding(name, Verdict.OK, f"version {version}")
    if version > target:
        says = f"PostgreSQL has version {target}, Redis {version}: PostgreSQL has lost changes"
        do = "redeem init; a running engine restores them from Redis by itself"
        return Finding(name, Verdict.WRONG, says, do)
    do = "redeem rebuild" if is_behind else "redeem init; a running engine repairs this by itself"
    if not version:
        return Finding(name, Verdict.WRONG, "Redis has no configuration: redemptions are refused", do)
    return Finding(name, Verdict.WARNING, f"Redis has version {version}, PostgreSQL {target}", do)


def _stream_clock(name: str, now_s: float, facts: StreamFacts) -> Finding:
    newest_s = int(facts.last.partition(b"-")[0]) / 1000
    ahead_s = newest_s - now_s
    if ahead_s > CLOCK_S_WARNING:
        says = f"the newest event is {ahead_s:.0f} s in the future: the clock of Redis went back"
        do = "correct the clock; nothing is lost: until then, new ids continue from the newest"
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
        do = "synchronise all machines (NTP); campaigns start and end by the clock of Redis"
        yield Finding("clocks", verdict, says, do)


async def _ahead_s(ask: Callable[[], Awaitable[float]]) -> float:
    """Return by how many seconds a clock is ahead of ours, taken at the middle of the round trip."""
    before = time.time()
    there = await ask()
    return there - (before + time.time()) / 2


async def _redis_time(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1e6


def _access_advice(error: Exception, setting: str) -> str:
    """Return what to do about a server. redis-py may hide an access error in the cause."""
    if isinstance(error, _ACCESS_ERRORS) or isinstance(error.__cause__, _ACCESS_ERRORS):
        return f"correct address, user and password in {setting}"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return _HANGS
    if isinstance(error, BusyLoadingError):
        return "wait until it has loaded its data"
    if isinstance(error, ResponseError):
        return f"end the script that runs on it: FUNCTION KILL. {error}"
    return _NO_ENGINE


def _unreachable(servers: _Servers, check: str, setting: str, error: Exception, consequence: str) -> Finding:
    """Return the finding about a server without a connection. Perhaps its setting is missing."""
    name = variable(setting)
    if setting in servers.unset:
        data_dir = servers.settings.data_dir
        if found := machine_findings.bundled_server(data_dir, check, _reason(error), consequence):
            return found
        says = f"{name} is not set, and no engine runs on {servers.settings.data_dir}"
        return Finding(check, Verdict.WRONG, says, f"set {name}, or start the engine (`redeem up`)")
    says = f"cannot be reached: {_reason(error)}; {consequence}"
    return Finding(check, Verdict.WRONG, says, _access_advice(error, name))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return f"no answer in {ANSWER_TIMEOUT_S:g} s"
    return str(error).partition("\n")[0]
