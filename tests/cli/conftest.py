from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings


@pytest.fixture
def cli(settings: Settings, redis: Redis) -> Cli:  # noqa: ARG001 - emptied
    return Cli(settings)
