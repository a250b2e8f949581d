from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import asyncpg
import pytest

from tests.support.servers import RUN_TIMEOUT_S
from tests.support.streams import Ledger, PersisterProcess, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.settings import Settings


class StartPersister(Protocol):
    def __call__(self, **more: str) -> PersisterProcess: ...


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """One that the test may alter."""
    return fresh_database_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Impatient, and with batches so small that a few events make several."""
    return dataclasses.replace(
        settings,
        persist_batch_max=7,
        persist_block_ms=20,
        persist_interval_ms=20,
        persist_backoff_s_max=1,
    )


@pytest.fixture
def stream(redis: Redis) -> Stream:
    return Stream(redis)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    connection = await asyncpg.connect(database_url, command_timeout=RUN_TIMEOUT_S)
    yield Ledger(connection)
    connection.terminate()  # it may have been closed by a restart


@pytest.fixture
def start_persister(settings: Settings, tmp_path: Path) -> Iterator[StartPersister]:
    """Start processes; what is left of them at the end is killed."""
    started: list[PersisterProcess] = []

    def start(**more: str) -> PersisterProcess:
        started.append(PersisterProcess(settings, tmp_path / "persister.log", **more))
        return started[-1]

    yield start
    for process in started:
        if process.running:
            process.kill()
