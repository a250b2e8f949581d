"""Fixtures for the tests of the load tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Process
from tests.support.load_tests import LoadTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.settings import Settings

HEADER = "x-forwarded-for"  # in which the load generator may say where pages come from


@pytest.fixture
async def load(settings: Settings, redis: Redis, tmp_path: Path) -> AsyncIterator[LoadTests]:  # noqa: ARG001 - emptied
    trusting = replace(settings, trusted_proxies="127.0.0.1/32", client_address_header=HEADER)
    with Process(
        replace(trusting, port=0, workers=1, guard_challenge_rounds=1), "engine.cli", "up"
    ) as process:
        word, _, url = (await asyncio.to_thread(process.line)).partition(" ")
        assert word == "ready"
        yield LoadTests(settings, url, tmp_path)
        await asyncio.to_thread(process.stop)
