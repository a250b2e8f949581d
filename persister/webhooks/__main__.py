"""``python -m persister.webhooks``: runs the deliverer alone, on the database named in the settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from persister.program import run_program
from persister.webhooks.main import run_deliverer
from persister.webhooks.retry_schedule import parse_retry_schedule

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from engine.settings import Settings


def _deliver(settings: Settings) -> Coroutine[Any, Any, None]:
    parse_retry_schedule(settings.webhook_retry_s)  # a wrong setting ends the program before it starts
    return run_deliverer(settings, settings.database_url)


if __name__ == "__main__":
    sys.exit(run_program(_deliver, "database_url"))
