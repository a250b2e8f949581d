"""Migrates a database to this code's schema, and inserts the first rows of a new deployment.

Migrations are the files ``sql/migrations/NNNN_name.sql``, numbered from 1 without gaps. Each is
applied in one transaction with its row in ``schema_migrations``, so it must not contain COMMIT, nor
statements that PostgreSQL refuses in a transaction (CREATE INDEX CONCURRENTLY).
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from importlib.resources.abc import Traversable

    from engine.postgres_types import Connection

logger = logging.getLogger(__name__)
_DEPLOYMENT: Final = queries("persister", "deployment")
_SQL: Final = queries(__package__, "migrations")

MIGRATION_LOCK: Final = 0x52454445_454D0001  # "REDEEM", 1; other users of the database must not take it
_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql", re.ASCII)


class MigrationError(Exception):
    """Code and database do not match; the message says how."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. ``name``: the file's, without ``.sql``. ``checksum``: its SHA-256, hex."""

    number: int
    name: str
    checksum: str
    sql: str


def migrations_directory() -> Traversable:
    """Where the migrations are, in a source tree or an installed package."""
    return resources.files("persister").joinpath("sql", "migrations")


async def migrate(connection: Connection, migrations: Traversable | None = None) -> list[str]:
    """Apply the missing migrations and return their names in order.

    Waits while another process migrates the same database, and does not repeat its migrations.

    Raises:
        MigrationError: an applied migration was changed or is missing here, a later one was applied
            before a missing one, or the files are not numbered 1, 2, 3 …
    """
    known = load_migrations(migrations or migrations_directory())
    async with _lock(connection):
        await connection.execute(_SQL["create_table"])
        applied = await connection.fetch(_SQL["applied"])
        pending = _pending(known, [(row["number"], row["name"], row["checksum"]) for row in applied])
        for migration in pending:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(_SQL["record"], migration.number, migration.name, migration.checksum)
            logger.info("migration applied", extra={"migration": migration.name})
    return [migration.name for migration in pending]


async def pending_migrations(connection: Connection) -> list[str]:
    """The names of the migrations that ``migrate`` would apply. Changes nothing.

    Raises:
        MigrationError: as ``migrate``.
    """
    known = load_migrations(migrations_directory())
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return [migration.name for migration in known]
    applied = await connection.fetch(_SQL["applied"])
    missing = _pending(known, [(row["number"], row["name"], row["checksum"]) for row in applied])
    return [migration.name for migration in missing]


async def initialise(connection: Connection, shards: int) -> None:
    """Store the number of shards and insert each shard's first offset. May be repeated.

    Raises:
        MigrationError: the deployment has another number of shards.
    """
    async with connection.transaction():
        await connection.execute(_DEPLOYMENT["insert"], shards)
        stored = await connection.fetchval(_DEPLOYMENT["shards"])
        if stored != shards:
            raise MigrationError(
                f"this deployment has {stored} shards, not {shards}; `redeem rebuild` changes that"
            )
        await connection.execute(_DEPLOYMENT["insert_offsets"], shards)


def load_migrations(migrations: Traversable) -> list[Migration]:
    """The migrations of a directory, in order.

    Raises:
        MigrationError: a file's name is not ``NNNN_name.sql``, or the numbers are not 1, 2, 3 …
    """
    found: list[Migration] = []
    for file in sorted(migrations.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{file.name} is not named NNNN_name.sql")
        content = file.read_bytes()
        found.append(
            Migration(
                number=int(match[1]),
                name=file.name.removesuffix(".sql"),
                checksum=hashlib.sha256(content).hexdigest(),
                sql=content.decode(),
            )
        )
        if found[-1].number != len(found):
            raise MigrationError(f"migrations are numbered without gaps: {file.name} is number {len(found)}")
    return found


def _pending(known: list[Migration], applied: list[tuple[int, str, str]]) -> list[Migration]:
    by_number = {migration.number: migration for migration in known}
    for number, name, checksum in applied:
        migration = by_number.get(number)
        if migration is None and number > len(known):
            raise MigrationError(f"the database is newer than this code: it has migration {name}")
        if migration is None or migration.name != name:
            raise MigrationError(f"migration {name} was applied, and is missing here")
        if migration.checksum != checksum:
            raise MigrationError(f"migration {name} was changed after it was applied")
    done = {number for number, _, _ in applied}
    pending = [migration for migration in known if migration.number not in done]
    if done and pending and pending[0].number < max(done):
        raise MigrationError(f"migration {pending[0].name} is out of order: later ones were applied")
    return pending


@asynccontextmanager
async def _lock(connection: Connection) -> AsyncIterator[None]:
    await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)
