"""Fixtures for all tests: the real servers, a database and an empty Redis, and clients.

``servers`` are started once for each pytest process. ``database_url`` is a migrated, initialised and empty
database; ``redis`` is empty at the start of a test.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.control.change import ControlPlane
from engine.database import Database
from engine.settings import Settings
from engine.store import keys
from engine.store.configuration import SCOPES
from persister.front_role import grant_front_role
from persister.ingest.partitions import end_ms, month_of
from persister.migrations import initialise, migrate
from tests.support.backups import Backups
from tests.support.deployment import engine_in_process
from tests.support.hanging import pytest_timeout_set_timer  # noqa: F401 - pytest finds hooks by their names
from tests.support.keyspace import complaints
from tests.support.servers import RUN_TIMEOUT_S, Servers, own_valkey, run_aside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime

    from engine.postgres_types import Pool
    from tests.support.deployment import Merchant
    from tests.support.servers import ValkeyProcess

IN_PROCESSES_OF_THEIR_OWN: Final = tuple(
    Path(__file__).parent / room
    for room in ("system", "cli", "bundled", "processes", "examples", "contract", "loadtest")
)
REPEATING: Final = frozenset(
    (
        *(
            "test_batched_redemptions",
            "test_lifecycle",
            "test_races",
            "test_lanes_alike",
            "test_conservation",
        ),
        *("test_records", "test_record_lists", "test_killed", "test_imports"),
    )
)
MINT_KEYS: Final = "k1:" + "5a" * 32
DATABASE_CONNECTIONS_MAX: Final = 8
MONTH_LEFT_S_MIN: Final = 30

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need servers, and measure coverage only where it is useful.

    Coverage makes a test half as slow again. It sees nothing of tests that start separate processes, and
    nothing new in tests that repeat what other tests do.
    """
    for item in items:
        if "servers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.servers)
        if any(map(item.path.is_relative_to, IN_PROCESSES_OF_THEIR_OWN)) or item.path.stem in REPEATING:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with Servers() as started:
        yield started


@pytest.fixture(scope="session")
def template_database(servers: Servers) -> Callable[[], str]:
    """Creates an empty database with the schema, once a month; no connection to it may stay open.

    The ledger's first table is that of the month in which the schema was created.
    """

    @functools.cache
    def of(month: datetime) -> str:
        name = f"{servers.database_prefix}template_{month:%Y_%m}"

        async def make() -> None:
            await _execute(servers.admin_database_url, f'CREATE DATABASE "{name}"')
            connection = await asyncpg.connect(servers.database_url(name))
            try:
                await migrate(connection)
                await grant_front_role(connection)
            finally:
                await connection.close()

        run_aside(make())
        return name

    return lambda: of(month_of(_now_ms()))


@pytest.fixture
def shards() -> int:
    """Number of shards of the deployment; a test overrides this to get another number."""
    return 1


@pytest.fixture
async def fresh_database_url(
    servers: Servers, template_database: Callable[[], str], shards: int
) -> AsyncIterator[str]:
    """A migrated, initialised and empty database for one test. For tests that alter the database.

    Its ledger begins with this month. If the month is about to end, the fixture waits for the next one.
    """
    left_s = (end_ms(month_of(now_ms := _now_ms())) - now_ms) / 1000
    if left_s < MONTH_LEFT_S_MIN:
        await asyncio.sleep(left_s + 1)
    name = f"{servers.database_prefix}{next(_numbers)}"
    await _clone(servers, template_database(), name)
    url = servers.database_url(name)
    await _initialise(url, shards)
    yield url
    await _execute(servers.admin_database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def common_database_url(servers: Servers, template_database: Callable[[], str]) -> str:
    """The database that the tests of this process use one after another."""
    name = f"{servers.database_prefix}common"
    run_aside(_clone(servers, template_database(), name))
    return servers.database_url(name)


@pytest.fixture
async def database_url(common_database_url: str, shards: int) -> str:
    """A migrated, initialised and empty database without other connections."""
    await _execute(common_database_url, _EMPTY)
    await _initialise(common_database_url, shards)
    return common_database_url


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyProcess]:
    """A Valkey of the module's own, which its tests may stop and misconfigure."""
    with own_valkey() as process:
        yield process


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """URL of the test's own Valkey, if it asks for one, else of the server of this pytest process."""
    own = "valkey" in request.fixturenames
    return str(request.getfixturevalue("valkey").url if own else servers.redis_url)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the empty Redis. At the end, every key in Redis must be one of the engine's."""
    async with Redis.from_url(redis_url) as client:
        await client.flushdb()
        yield client
        found = await complaints(client, idempotency_window_s=keys.IDEMPOTENCY_WINDOW_S)
        assert not found, found


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Any]:
    """An asyncpg pool on this test's database."""
    opened = await asyncpg.create_pool(
        database_url, min_size=0, max_size=DATABASE_CONNECTIONS_MAX, command_timeout=30
    )
    yield opened
    async with asyncio.timeout(RUN_TIMEOUT_S):  # closing waits for connections that a test has not released
        await opened.close()


@pytest.fixture
def backups(servers: Servers, database_url: str) -> Backups:
    return Backups(servers, database_url)


@pytest.fixture
def database(pool: Pool) -> Database:
    return Database(pool, timeout_s=30)


@pytest.fixture
def settings(redis_url: str, database_url: str, shards: int, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        data_dir=tmp_path,
        shards=shards,
        mint_keys=MINT_KEYS,
        stream_kept_min=0,  # a stream that the ledger has is empty
        stream_kept_s=0,
    )


@pytest.fixture
def plane(database: Database, redis: Redis, settings: Settings) -> ControlPlane:
    return ControlPlane(database, redis, settings)


@pytest.fixture
async def merchant(plane: ControlPlane) -> AsyncIterator[Merchant]:
    """A client, with a key that may do everything, of a worker in this process."""
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        yield merchant


# DELETE, not TRUNCATE: a test leaves few rows, and TRUNCATE costs far more.
_EMPTY: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT quote_ident(relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = 'public' AND relkind IN ('r', 'p') AND NOT relispartition
            AND relname <> 'schema_migrations'
        ORDER BY relname IN ('campaigns', 'batches'), relname = 'campaigns'  -- after what refers to them
    LOOP
        EXECUTE 'DELETE FROM ' || name;
    END LOOP;
    FOR name IN SELECT quote_ident(relname) FROM pg_class WHERE relkind = 'S' LOOP
        EXECUTE 'ALTER SEQUENCE ' || name || ' RESTART';
    END LOOP;
END $$
"""


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _clone(servers: Servers, template: str, name: str) -> None:
    statement = f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'
    await _execute(servers.admin_database_url, statement)


async def _initialise(url: str, shards: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await initialise(connection, shards)
    finally:
        await connection.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, command_timeout=RUN_TIMEOUT_S)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
