"""``python -m persister``: the persister alone, on the servers that the settings name."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvloop

from engine.settings import SettingsError, load, variable
from persister.main import run

EXIT_USAGE = 2


def main() -> int:
    """Run until SIGTERM or SIGINT; answers the exit status."""
    try:
        settings = load(os.environ)
        for name in ("redis_url", "database_url"):
            if not getattr(settings, name):
                raise SettingsError(f"{variable(name)} must be set")  # noqa: TRY301 - told like any other
        logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, settings.redis_url, settings.database_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
