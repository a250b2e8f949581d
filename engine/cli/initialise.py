"""Creates what a deployment needs before it runs: tables, mint key, and the configuration in Redis."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import asyncpg

from engine.cli.connect import plane_on
from engine.codes import mint_keys
from engine.control import mint_key_checks, publishing
from engine.control.configuration_recovery import recover_configuration
from engine.errors import Refusal, StoreUnavailable
from persister import migrations
from persister.front_role import grant_front_role

if TYPE_CHECKING:
    from engine.settings import Settings

_log = logging.getLogger(__name__)


async def initialise(settings: Settings) -> None:
    """Prepare PostgreSQL, the mint keys and Redis, so that workers can start; safe to repeat.

    Raises:
        Refusal: the mint keys of some batches are missing here.
        StoreUnavailable: other keys have their names, or a server cannot be used.
        MigrationError: this version cannot use the database.
    """
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=settings.database_timeout_s)
    except (OSError, ValueError, asyncpg.PostgresError) as error:
        raise StoreUnavailable(f"PostgreSQL cannot be reached: {error}") from error
    try:
        await migrations.migrate(connection)
        await migrations.initialise(connection, settings.shards)
        await grant_front_role(connection)
        in_use = {row["mint_key"] for row in await connection.fetch("SELECT DISTINCT mint_key FROM batches")}
        _check_mint_keys(settings, in_use)
        await mint_key_checks.record_older(connection, mint_keys.from_settings(settings).by_name)
    finally:
        await connection.close()
    async with plane_on(settings) as plane:
        await recover_configuration(plane)
        await publishing.publish(plane.redis, plane.database)


def _check_mint_keys(settings: Settings, in_use: set[str]) -> None:
    """Create the first mint key, unless batches exist; refuse if the mint key of a batch is missing."""
    if not settings.mint_keys and not settings.mint_keys_path.exists() and not in_use:
        mint_keys.create_file(settings.mint_keys_path)
        _log.info("mint key created", extra={"path": str(settings.mint_keys_path)})
    missing = in_use - set(mint_keys.from_settings(settings).by_name)
    if missing:
        raise Refusal(
            "malformed_request",
            f"the mint keys {sorted(missing)} are missing; codes in circulation need them",
        )
