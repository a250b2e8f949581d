"""Migrations: every database gets all of them, in order, once."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import asyncpg
import pytest

from persister.migrations import MigrationError, initialise, load_migrations, migrate, migrations_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from engine.postgres_types import Connection
    from tests.support.servers import Servers


_numbers = itertools.count(1)

CATALOGUE = """
    SELECT 'column' AS kind, c.relname || '.' || a.attname AS name,
           format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' '
           || coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS definition
      FROM pg_attribute AS a
      JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'S', 'v')
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    ORDER BY 1, 2
"""


@pytest.fixture
async def empty_database_url(servers: Servers) -> AsyncIterator[str]:
    """A database without a schema."""
    name = f"{servers.database_prefix}bare_{next(_numbers)}"
    admin = await asyncpg.connect(servers.admin_database_url)
    await admin.execute(f'CREATE DATABASE "{name}"')
    yield servers.database_url(name)
    await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.close()


@pytest.fixture
async def bare(empty_database_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(empty_database_url)
    yield connection
    await connection.close()


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE first (id integer)")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE second (id integer); CREATE INDEX ON second (id)")
    return tmp_path


async def catalogue(connection: Connection) -> list[tuple[str, ...]]:
    return [tuple(row) for row in await connection.fetch(CATALOGUE)]


async def test_several_migrators_at_once_apply_the_schema_once(empty_database_url: str) -> None:
    async def one() -> list[str]:
        connection = await asyncpg.connect(empty_database_url)
        try:
            return await migrate(connection)
        finally:
            await connection.close()

    applied = await asyncio.gather(*(one() for _ in range(4)))
    names = [migration.name for migration in load_migrations(migrations_directory())]
    assert sorted(applied, key=len) == [[], [], [], names]


async def test_a_database_grown_step_by_step_is_like_a_fresh_one(
    servers: Servers, template_database: Callable[[], str], bare: Connection, tmp_path: Path
) -> None:
    for file in sorted(migrations_directory().iterdir(), key=lambda file: file.name):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        assert await migrate(bare, tmp_path) == [file.name.removesuffix(".sql")]
    grown = await catalogue(bare)
    name = f"{servers.database_prefix}fresh_{next(_numbers)}"
    admin = await asyncpg.connect(servers.admin_database_url)
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_database()}"')
    fresh = await asyncpg.connect(servers.database_url(name))
    assert await catalogue(fresh) == grown
    assert ("column", "ledger.seq", "bigint true ") in grown
    await fresh.close()
    await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.close()


async def test_a_ledger_that_has_rows_becomes_one_by_months(bare: Connection, tmp_path: Path) -> None:
    for file in migrations_directory().iterdir():
        if file.name < "0008":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    await migrate(bare, tmp_path)
    await bare.execute(
        "INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial,"
        " last4, user_id, actor, at_ms)"
        " SELECT 0, n * 86400000::bigint, 0, n, 'redeemed', '0-' || n, 'cmp_1', 1, n, 'JK4M', 'ann', 'k', 1"
        " FROM generate_series(1, 30000) AS n"  # up to the year 2052
    )
    await migrate(bare)
    assert [row["name"] for row in await bare.fetch("SELECT name FROM ledger_months")] == ["ledger_2052_02"]
    assert await bare.fetchval("SELECT count(*) FROM ledger") == 30000
    assert (
        await bare.fetchval("SELECT count(*) FROM redemptions WHERE user_id = 'ann' AND user_id <> ''")
        == 30000
    )
    again = "INSERT INTO ledger SELECT * FROM ledger WHERE seq = 4711"
    with pytest.raises(asyncpg.UniqueViolationError):
        await bare.execute(again)


async def test_a_migration_that_fails_leaves_nothing_of_itself(bare: Connection, steps: Path) -> None:
    (steps / "0003_third.sql").write_text("CREATE TABLE third (id integer); SELECT 1/0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(bare, steps)
    assert await bare.fetchval("SELECT to_regclass('third')") is None
    (steps / "0003_third.sql").write_text("CREATE TABLE third (id integer)")
    assert await migrate(bare, steps) == ["0003_third"]


async def test_a_changed_migration_is_refused(bare: Connection, steps: Path) -> None:
    await migrate(bare, steps)
    (steps / "0001_first.sql").write_text("CREATE TABLE first (id bigint)")
    with pytest.raises(MigrationError, match="0001_first was changed"):
        await migrate(bare, steps)


async def test_a_migration_is_not_applied_after_a_later_one(bare: Connection, steps: Path) -> None:
    await migrate(bare, steps)
    await bare.execute("DELETE FROM schema_migrations WHERE number = 1")
    with pytest.raises(MigrationError, match="0001_first is out of order"):
        await migrate(bare, steps)


async def test_an_applied_migration_that_is_missing_is_refused(bare: Connection, steps: Path) -> None:
    await migrate(bare, steps)
    (steps / "0001_first.sql").rename(steps / "0001_other.sql")
    with pytest.raises(MigrationError, match="0001_first was applied, and is missing here"):
        await migrate(bare, steps)


async def test_old_code_refuses_a_newer_database(bare: Connection, steps: Path) -> None:
    await migrate(bare, steps)
    (steps / "0002_second.sql").unlink()
    with pytest.raises(MigrationError, match="newer than this code: it has migration 0002_second"):
        await migrate(bare, steps)


@pytest.mark.parametrize("name", ["0004_gap.sql", "0002_again.sql", "3_short.sql", "0003-dash.sql"])
async def test_a_file_out_of_the_numbering_is_refused(bare: Connection, steps: Path, name: str) -> None:
    (steps / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match=r"number|named"):
        await migrate(bare, steps)
    assert await bare.fetchval("SELECT to_regclass('first')") is None


async def test_the_number_of_shards_never_changes(bare: Connection) -> None:
    await migrate(bare)
    await initialise(bare, 2)
    await bare.execute("UPDATE ledger_offsets SET seq = 5 WHERE shard = 1")
    await initialise(bare, 2)
    rows = await bare.fetch("SELECT shard, seq FROM ledger_offsets ORDER BY shard")
    assert [tuple(row) for row in rows] == [(0, 0), (1, 5)]
    with pytest.raises(MigrationError, match="has 2 shards"):
        await initialise(bare, 3)
    assert await bare.fetchval("SELECT count(*) FROM ledger_offsets") == 2
