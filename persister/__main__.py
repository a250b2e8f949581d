"""``python -m persister``: the persister alone, on the servers that the settings name."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import uvloop

from engine.observability.logs import log_to_stderr
from engine.settings import SettingsError, load, variable
from persister.main import run

EXIT_USAGE: Final = 2


def main() -> int:
    """Run until SIGTERM or SIGINT; answers the exit status."""
    try:
        settings = load(os.environ)
        for name in ("redis_url", "database_url"):
            if not getattr(settings, name):
                raise SettingsError(f"{variable(name)} must be set")  # noqa: TRY301 - told like any other
        log_to_stderr(settings.log_level)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, settings.redis_url, settings.database_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
