"""``python -m persister``: runs the persister alone, on the servers named in the settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from persister.main import run_persister
from persister.program import run_program

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from engine.settings import Settings


def _persist(settings: Settings) -> Coroutine[Any, Any, None]:
    return run_persister(settings, settings.redis_url, settings.database_url)


if __name__ == "__main__":
    sys.exit(run_program(_persist, "redis_url", "database_url"))
