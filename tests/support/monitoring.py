"""Reads metrics and log records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY

from engine.health.parts import Liveness, read_lag, read_ledger
from engine.store.stream import read_stream

if TYPE_CHECKING:
    import pytest
    from redis.asyncio import Redis

    from engine.health.parts import StreamLag
    from engine.postgres_types import Connection
    from tests.support.deployment import Merchant

NOWHERE: Final = "postgresql://127.0.0.1:1/none"
"""A URL on which no PostgreSQL listens."""


async def metrics(merchant: Merchant) -> dict[str, float]:
    """Return all samples by name and labels."""
    async with merchant.session.get(merchant.url + "/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (await response.text()).splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def persister_metric(name: str) -> float | None:
    """Return a metric of shard 0 of a persister in this process."""
    return REGISTRY.get_sample_value(name, {"shard": "0"})


async def ledger_lag(redis: Redis, connection: Connection, shard: int = 0) -> StreamLag:
    """Return how far a shard's ledger is behind, as workers measure it."""
    stream = await read_stream(redis, shard)
    ledger = await read_ledger(connection)
    return await read_lag(redis, shard, stream, ledger.offsets[shard], is_new=True)


async def persister_works(connection: Connection, shard: int = 0) -> bool:
    """Return whether a persister owns the shard and shows signs of life."""
    return (await read_ledger(connection)).persister(shard).liveness is Liveness.ACTIVE


def logged(caplog: pytest.LogCaptureFixture, event: str) -> int:
    """Return how often an event was logged."""
    return sum(record.getMessage() == event for record in caplog.records)
