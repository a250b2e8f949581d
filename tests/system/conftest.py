from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.servers import ValkeyProcess, directory_of_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def own_directory() -> Iterator[Path]:
    """Of a server's data, which is in ``data``."""
    with directory_of_servers("data") as path:
        yield path


@pytest.fixture
def valkey(own_directory: Path) -> Iterator[ValkeyProcess]:
    """A Valkey of the test's own."""
    process = ValkeyProcess(own_directory / "data")
    process.start()
    yield process
    process.stop()
