"""The engine and the browser of the tests of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.store.configuration import SCOPES
from tests.support.browser import chromium
from tests.support.card_shop import open_shop
from tests.support.dashboard import Dashboard
from tests.support.deployment import Process, engine_of_processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.control.change import ControlPlane
    from tests.support.card_shop import Shop


@pytest.fixture
async def dashboard(plane: ControlPlane) -> AsyncIterator[Dashboard]:
    async with engine_of_processes(plane, workers=1, scopes=SCOPES) as merchant:
        with Process(plane.settings, "persister"):
            async with chromium() as browser:
                yield Dashboard(browser, merchant)


@pytest.fixture
async def shop(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(plane, tmp_path / "engine.log") as shop:
        yield shop
