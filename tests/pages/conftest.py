"""The engine and the browser of the tests of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.store.configuration import SCOPES
from tests.support.browser import chromium
from tests.support.dashboard import Dashboard
from tests.support.deployment import Process, engine_of_processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane


@pytest.fixture
async def dashboard(plane: ControlPlane) -> AsyncIterator[Dashboard]:
    async with engine_of_processes(plane, workers=1, scopes=SCOPES) as merchant:
        with Process(plane.settings, "persister"):
            async with chromium() as browser:
                yield Dashboard(browser, merchant)
