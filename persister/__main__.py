"""``python -m persister``: the persister alone, on the servers that the settings name."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final

import orjson
import uvloop

from engine.settings import SettingsError, load, variable
from persister.main import run

EXIT_USAGE: Final = 2
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class _JsonLines(logging.Formatter):
    """One JSON object a line, with what ``extra`` adds: the form of the front end's log."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        line: dict[str, object] = {"at": at, "level": record.levelname.lower(), "from": record.name}
        line["event"] = record.getMessage()
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def main() -> int:
    """Run until SIGTERM or SIGINT; answers the exit status."""
    try:
        settings = load(os.environ)
        for name in ("redis_url", "database_url"):
            if not getattr(settings, name):
                raise SettingsError(f"{variable(name)} must be set")  # noqa: TRY301 - told like any other
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
        logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, settings.redis_url, settings.database_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
