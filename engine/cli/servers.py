"""Starts the bundled servers for a command that needs them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine import bundled

if TYPE_CHECKING:
    from engine.processes.process import Child
    from engine.processes.supervisor import Supervisor
    from engine.settings import Settings

SERVERS: Final = 0
"""The stage of the servers: they start first and stop last."""


async def start_servers(supervisor: Supervisor, settings: Settings) -> Settings:
    """Start each server that has no URL in the settings; return the settings with all URLs."""
    servers: list[Child] = []
    timeout_s = settings.start_timeout_s
    redis_url, database_url = settings.redis_url, settings.database_url
    if not redis_url:
        valkey = bundled.Valkey(data_dir=settings.data_dir)
        command = valkey.prepare()
        servers.append(command.child(stage=SERVERS, ready=valkey.ready, ready_timeout_s=timeout_s))
        redis_url = valkey.url
    if not database_url:
        postgres = bundled.Postgres(data_dir=settings.data_dir, os_user=settings.postgres_os_user)
        command = postgres.prepare()
        servers.append(command.child(stage=SERVERS, ready=postgres.ready, ready_timeout_s=timeout_s))
        database_url = postgres.url
    await supervisor.start(servers)
    return replace(settings, redis_url=redis_url, database_url=database_url)
