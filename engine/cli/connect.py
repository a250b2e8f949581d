"""How a command finds the servers: the ones that are set, else the bundled ones beside a running engine."""

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

UNPUBLISHED: Final = (
    "Recorded, but Redis could not take it now: it takes effect when a running engine reaches Redis again."
)


def load_settings() -> Settings:
    """The settings of this command, from file and environment.

    Raises:
        SettingsError: one of them is unknown or cannot be used.
    """
    return all_settings.load(os.environ)


def server_urls(settings: Settings) -> tuple[str, str]:
    """The URLs of Redis and PostgreSQL; of the bundled ones where none is set.

    Raises:
        StoreUnavailable: the bundled ones cannot have been started here.
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


def check_redis_url(settings: Settings) -> None:
    """For those who hand the URL on.

    Raises:
        StoreUnavailable: it is none.
    """
    try:
        parse_url(settings.redis_url)
    except ValueError as error:
        raise StoreUnavailable(f"REDEEM_REDIS_URL: {error}") from error


@contextlib.asynccontextmanager
async def open_plane(settings: Settings) -> AsyncIterator[ControlPlane]:
    """The control plane for one command.

    Redis is not asked for here: a change that it cannot take is made all the same.

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
            raise StoreUnavailable(
                f"no engine runs on {settings.data_dir}; start it with `redeem up`"
            ) from error
        yield plane


@contextlib.asynccontextmanager
async def plane_on(settings: Settings) -> AsyncIterator[ControlPlane]:
    """The control plane on the servers that the settings name. Neither is asked for anything yet.

    Raises:
        StoreUnavailable: the URL of Redis is none.
    """
    timeout_s = settings.database_timeout_s
    check_redis_url(settings)
    redis = Redis.from_url(settings.redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    async with open_database(settings, settings.database_url) as database, contextlib.aclosing(redis):
        yield ControlPlane(database, redis, settings)


def run(action: Callable[[ControlPlane], Awaitable[T]], settings: Settings | None = None) -> T:
    """Do something with the control plane, from a command.

    Raises:
        Exception: whatever the action raises; the command group makes one line of it.
    """

    async def act() -> T:
        async with open_plane(settings or load_settings()) as plane:
            return await action(plane)

    return asyncio.run(act())


def run_change(
    action: Callable[[ControlPlane], Awaitable[Changed[T]]], settings: Settings | None = None
) -> T:
    """``run`` for a change; says on stderr when it is made but not published yet."""
    made = run(action, settings)
    if not made.published:
        click.echo(UNPUBLISHED, err=True)
    return made.value


def echo_json(document: object) -> None:
    """One JSON document on one line of stdout."""
    click.echo(orjson.dumps(document))


async def all_pages(page: Callable[[str | None], Awaitable[list[T]]], id_of: Callable[[T], str]) -> list[T]:
    """All items of a list that comes in pages."""
    found: list[T] = []
    after = None
    while items := await page(after):
        found += items
        after = id_of(items[-1])
    return found
