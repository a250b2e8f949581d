"""Logging of every process: JSON lines on stderr, one line per event.

The supervisor adds the field ``process`` to the lines of its children. On a terminal it writes them in a form
for people.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

import orjson


def log_to_stderr(level: str, process: str = "") -> None:
    """Set up logging for this process. ``process``: its name, in each line.

    Raises:
        ValueError: there is no such level.
    """
    handler = logging.StreamHandler(sys.stderr)
    is_for_people = bool(process) and sys.stderr.isatty()
    handler.setFormatter(_ForPeople(process) if is_for_people else _JsonLines(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


class _JsonLines(logging.Formatter):
    """Formats one JSON object per line: time, level, logger, event, and the fields of ``extra``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process: dict[str, object] = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = self._process | {
            "at": _instant(record.created),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class _ForPeople(_JsonLines):
    """Formats a line for a terminal."""

    def __init__(self, process: str) -> None:
        super().__init__("")
        self._name = process

    def format(self, record: logging.LogRecord) -> str:
        return for_people(self._name, super().format(record).encode()).decode()


def with_process(process: str, line: bytes) -> bytes:
    """Return a line of a child's output as JSON with the field ``process``.

    What is no JSON object, for instance a traceback at the start, becomes the ``event`` of one.
    """
    fields = _parsed(line)
    if fields is None:
        fields = {"at": _instant(time.time()), "level": "info", "from": "output"}
        fields["event"] = line.decode(errors="replace")
    return orjson.dumps({"process": process} | fields)


def for_people(process: str, line: bytes) -> bytes:
    """Return a line of a process for a terminal: name, time, level, event, and the other fields."""
    fields = _parsed(line)
    if fields is None:
        return f"{process} | ".encode() + line
    traceback = fields.pop("traceback", None)
    at, level, event = (str(fields.pop(name, "")) for name in ("at", "level", "event"))
    fields.pop("from", None)
    rest = "".join(f" {name}={value}" for name, value in fields.items())
    text = f"{process} | {at[11:19]} {level:7} {event}{rest}"
    return (f"{text}\n{traceback}" if traceback else text).encode()


def _parsed(line: bytes) -> dict[str, object] | None:
    """Return the object in a line of JSON; None if it is something else."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _instant(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"


_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
