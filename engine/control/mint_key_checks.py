"""Compares the mint keys of this process with those that codes were issued under.

Two keys may have the same name: every deployment's first key is ``k1``. Under another key valid codes do not
decrypt, and a batch exports as other codes. So PostgreSQL has a check value for each key. It is recorded when
a batch is first issued under the key; for older batches by ``redeem init``. Workers get it with the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.codes.mint_keys import check_value
from engine.errors import StoreUnavailable
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "mint_key_checks")
_CONTROL: Final = queries(__package__, "control")


async def check_values(connection: Connection) -> dict[str, bytes]:
    """Return the check value of each key that codes were issued under."""
    return {row["name"]: row["check_value"] for row in await connection.fetch(_SQL["all"])}


def other_keys(checks: Mapping[str, bytes], by_name: Mapping[str, bytes]) -> list[str]:
    """Return the names under which this process has another key than the deployment."""
    return sorted(
        name for name, key in by_name.items() if name in checks and check_value(key) != checks[name]
    )


def says(names: Collection[str]) -> str:
    """Say that other keys have these names."""
    return f"not the keys that codes were issued under, but others of these names: {', '.join(names)}"


async def require_same(
    connection: Connection, by_name: Mapping[str, bytes], names: Collection[str] | None = None
) -> None:
    """Refuse keys that are not the deployment's. ``names``: the keys that are needed; by default all.

    Raises:
        StoreUnavailable: another key has the name of one that codes were issued under.
    """
    checks = await check_values(connection)
    require(checks if names is None else {name: checks[name] for name in names if name in checks}, by_name)


def require(checks: Mapping[str, bytes], by_name: Mapping[str, bytes]) -> None:
    """Refuse keys that do not have these check values.

    Raises:
        StoreUnavailable: as ``require_same``.
    """
    if other := other_keys(checks, by_name):
        raise StoreUnavailable(f"mint keys: {says(other)}; restore those of this deployment")


async def use(connection: Connection, name: str, by_name: Mapping[str, bytes]) -> None:
    """Record the key under which codes are about to be issued, in the transaction that issues them.

    Raises:
        StoreUnavailable: codes were issued under another key of this name.
    """
    await connection.execute(_SQL["insert"], name, check_value(by_name[name]))
    await require_same(connection, by_name, {name})


async def record_older(connection: Connection, by_name: Mapping[str, bytes]) -> None:
    """Check all keys, and record those of batches that an earlier version issued.

    The batches get a new version, so that they are published again, with the check values.

    Raises:
        StoreUnavailable: as ``require_same``.
    """
    unrecorded = [row["mint_key"] for row in await connection.fetch(_SQL["unrecorded"])]
    if names := [name for name in unrecorded if name in by_name]:
        async with connection.transaction():
            deployment = await connection.fetchrow(_CONTROL["next_version"])
            for name in names:
                await connection.execute(_SQL["insert"], name, check_value(by_name[name]))
            await connection.execute(_SQL["publish_again"], names, deployment["control_version"])
    await require_same(connection, by_name)
