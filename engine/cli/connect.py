"""Connects a command to the servers in the settings, or to the bundled servers of a running engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

import click
import orjson
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url

from engine import settings as all_settings
from engine.control.change import ControlPlane
from engine.database import open_database
from engine.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.control.change import Changed
    from engine.settings import Settings

T = TypeVar("T")
K = TypeVar("K", str, int)

UNPUBLISHED: Final = (
    "Saved, but Redis could not be updated: it takes effect when a running engine reaches Redis again."
)


def load_settings() -> Settings:
    """Load the settings of this command from file and environment.

    Raises:
        SettingsError: a setting is unknown, or its value cannot be used.
    """
    return all_settings.load(os.environ)


def server_urls(settings: Settings) -> tuple[str, str]:
    """Return the URLs of Redis and PostgreSQL. Where no URL is set, it is that of the bundled server.

    Raises:
        StoreUnavailable: the bundled servers cannot run on this machine.
    """
    if settings.redis_url and settings.database_url:
        return settings.redis_url, settings.database_url
    from engine import bundled  # noqa: PLC0415 - only where it is needed
    from engine.processes.process import StartError  # noqa: PLC0415 - only where it is needed

    try:
        valkey = bundled.Valkey(data_dir=settings.data_dir)
        postgres = bundled.Postgres(data_dir=settings.data_dir)
        urls = settings.redis_url or valkey.url, settings.database_url or postgres.url
    except StartError as error:
        raise StoreUnavailable(str(error)) from error
    return urls


def front_database_url(settings: Settings) -> str:
    """Return the URL of PostgreSQL for the front end: the one that is set, or the bundled server's."""
    if settings.database_url:
        return settings.database_url
    from engine import bundled  # noqa: PLC0415 - only where it is needed

    return bundled.Postgres(data_dir=settings.data_dir).front_url


def check_redis_url(settings: Settings) -> None:
    """Check the form of REDEEM_REDIS_URL before other code uses it.

    Raises:
        StoreUnavailable: it is not a Redis URL.
    """
    try:
        parse_url(settings.redis_url)
    except ValueError as error:
        raise StoreUnavailable(f"REDEEM_REDIS_URL: {error}") from error


@contextlib.asynccontextmanager
async def open_plane(settings: Settings) -> AsyncIterator[ControlPlane]:
    """Open the control plane for one command.

    It does not contact Redis: a change is saved in PostgreSQL even while Redis is down.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    redis_url, database_url = server_urls(settings)
    async with plane_on(replace(settings, redis_url=redis_url, database_url=database_url)) as plane:
        try:
            async with plane.database.connection():
                pass
        except StoreUnavailable as error:
            if settings.database_url:
                raise
            from engine.cli.machine_findings import engine_is_there  # noqa: PLC0415 - only where it is needed

            if engine_is_there(settings.data_dir):
                says = f"the bundled PostgreSQL of {settings.data_dir} does not answer; see `redeem doctor`"
            else:
                says = f"no engine runs on {settings.data_dir}; start it with `redeem up`"
            raise StoreUnavailable(says) from error
        yield plane


@contextlib.asynccontextmanager
async def plane_on(settings: Settings) -> AsyncIterator[ControlPlane]:
    """Open the control plane on the servers in the settings, without contacting them.

    Raises:
        StoreUnavailable: REDEEM_REDIS_URL is not a Redis URL.
    """
    timeout_s = settings.database_timeout_s
    check_redis_url(settings)
    redis = Redis.from_url(settings.redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    async with open_database(settings, settings.database_url) as database, contextlib.aclosing(redis):
        yield ControlPlane(database, redis, settings)


def run(action: Callable[[ControlPlane], Awaitable[T]], settings: Settings | None = None) -> T:
    """Run an action of a command on the control plane.

    Raises:
        Exception: whatever the action raises; the command group turns it into one line.
    """

    async def act() -> T:
        async with open_plane(settings or load_settings()) as plane:
            return await action(plane)

    return asyncio.run(act())


def run_change(
    action: Callable[[ControlPlane], Awaitable[Changed[T]]], settings: Settings | None = None
) -> T:
    """``run`` for a change; warns on stderr if the change is saved but not yet in Redis."""
    changed = run(action, settings)
    if not changed.published:
        click.echo(UNPUBLISHED, err=True)
    return changed.value


def echo_json(document: object) -> None:
    """Print one JSON document on one line of stdout."""
    click.echo(orjson.dumps(document))


def read_all(
    page: Callable[[ControlPlane, K | None, int], Awaitable[list[T]]], id_of: Callable[[T], K]
) -> list[T]:
    """Read all pages of a list and return their items. ``page`` takes the id of the last one, and a limit."""

    async def read(plane: ControlPlane) -> list[T]:
        all_items: list[T] = []
        after: K | None = None
        while items := await page(plane, after, plane.settings.page_limit_max):
            all_items += items
            after = id_of(items[-1])
        return all_items

    return run(read)
