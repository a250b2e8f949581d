"""``redeem backup`` and ``redeem restore``: what they refuse, and what a refusal leaves as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from engine.cli.postgres_tools import _without_password, with_database
from engine.observability.heartbeats import ProcessRole, Sign, State, beat, read_signs
from tests.support.cli import Cli

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """One that may be replaced."""
    return fresh_database_url


@pytest.fixture
def cli(settings: Settings, redis: Redis) -> Cli:  # noqa: ARG001 - emptied
    return Cli(settings)


async def databases(url: str) -> set[str]:
    """The databases whose names begin as the name of the given one."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, current_database())"
        )
    finally:
        await connection.close()
    return {row["datname"] for row in rows}


async def test_a_backup_replaces_a_file_only_if_told_so(cli: Cli, settings: Settings) -> None:
    await cli.done("backup", "b.dump")
    assert "--force replaces it" in await cli.refused("backup", "b.dump")
    await cli.done("backup", "b.dump", "--force")
    assert (settings.data_dir / "b.dump").read_bytes().startswith(b"PGDMP")


async def test_a_restore_is_not_made_without_a_yes_nor_under_a_running_engine(
    cli: Cli, database_url: str
) -> None:
    await cli.done("backup", "b.dump")
    before = await databases(database_url)
    assert "--yes says yes" in await cli.refused("restore", "b.dump")
    engine = await asyncpg.connect(database_url)
    assert "1 sessions use the database" in await cli.refused("restore", "b.dump", "--yes")
    await engine.close()
    assert await databases(database_url) == before


async def test_a_file_that_is_no_backup_leaves_the_database_as_it_was(
    cli: Cli, database_url: str, settings: Settings
) -> None:
    await cli.done("keys", "create", "--name", "shop", "--scopes", "read")
    before = await databases(database_url)
    (settings.data_dir / "b.dump").write_text("nothing")
    assert "pg_restore failed" in await cli.refused("restore", "b.dump", "--yes")
    assert await databases(database_url) == before
    assert "shop" in await cli.done("keys", "list")


async def test_a_restore_is_in_the_audit_log_and_the_former_database_stays(
    cli: Cli, database_url: str
) -> None:
    await cli.done("backup", "b.dump")
    await cli.done("keys", "create", "--name", "shop", "--scopes", "read")
    before = await databases(database_url)
    await cli.done("restore", "b.dump", "--yes")
    (former,) = await databases(database_url) - before
    assert "shop" not in await cli.done("keys", "list")
    (entry,) = await cli.json("audit-log", "--act", "restore_ledger")
    assert entry["details"]["former"] == former
    server = await asyncpg.connect(database_url)
    await server.execute(f'DROP DATABASE "{former}"')
    await server.close()


async def test_a_restored_database_knows_no_processes_of_before(cli: Cli, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await beat(connection, ProcessRole.WORKER, "before", [Sign(State.ACTIVE)])
    assert len((await read_signs(connection)).beats) == 1
    await connection.close()
    await cli.done("backup", "b.dump")
    before = await databases(database_url)
    await cli.done("restore", "b.dump", "--yes")
    (former,) = await databases(database_url) - before
    connection = await asyncpg.connect(database_url)
    assert (await read_signs(connection)).beats == []
    await connection.execute(f'DROP DATABASE "{former}"')
    await connection.close()


@pytest.mark.parametrize(
    ("url", "plain", "password"),
    [
        ("postgresql://u:p%40@h1:1,h2:2/db?sslmode=require", "u@h1:1,h2:2/db?sslmode=require", "p@"),
        ("postgresql:///db?host=/run&password=pw", "/db?host=%2Frun", "pw"),
        ("postgresql://postgres@/redeem?host=/tmp", "postgres@/redeem?host=%2Ftmp", None),
    ],
)
def test_no_password_is_on_a_command_line(url: str, plain: str, password: str | None) -> None:
    expected = {} if password is None else {"PGPASSWORD": password}
    assert _without_password(url) == (f"postgresql://{plain}", expected)


def test_another_database_of_a_server_without_a_host() -> None:
    assert with_database("postgresql:///db?host=/run", "a b") == "postgresql:///a%20b?host=/run"
