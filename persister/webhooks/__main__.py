"""``python -m persister.webhooks``: the deliverer alone, on the database that the settings name."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from engine.observability.logs import log_to_stderr
from engine.settings import SettingsError, load, variable
from persister.__main__ import EXIT_USAGE
from persister.webhooks import retry_schedule
from persister.webhooks.main import run


def main() -> int:
    """Run until SIGTERM or SIGINT; answers the exit status."""
    try:
        settings = load(os.environ)
        retry_schedule.parse(settings.webhook_retry_s)
        if not settings.database_url:
            raise SettingsError(f"{variable('database_url')} must be set")  # noqa: TRY301 - told like any other
        log_to_stderr(settings.log_level)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, settings.database_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
