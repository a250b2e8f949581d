"""Log of the responses that the clients of a run saw: one file per process, one JSON object a line.

The files contain no codes: a code is named by its batch and serial.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NO_ANSWER: Final = 0
"""Status of a request without a response: the engine may have done it, or not."""

_PATTERN: Final = "answers-{}.ndjson"
_BUFFER_BYTES: Final = 1 << 18


class LoggedAnswer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request and its response.

    Attributes:
        op: the operation: redeem, hold, confirm, release, rollback, check; guess for a made-up code,
            mistype for one that an honest customer got wrong.
        key: its Idempotency-Key.
        status: the HTTP status, or NO_ANSWER.
        problem: the problem code of a refusal or fault.
        id: the id of the redemption or hold in the response.
        about: the id of the hold or redemption that the request names, if any.
        at: when the request was due, in seconds since the epoch.
        ms: milliseconds from then to the response.
        last: this is the last request of the attempt; false if the client tried again.
        expected: the scenario expects this response.
    """

    op: str
    status: int
    at: float
    ms: float
    key: str = ""
    problem: str = ""
    id: str = ""
    about: str = ""
    batch: int = -1
    serial: int = -1
    user: str = ""
    replayed: bool = False
    last: bool = True
    expected: bool = True


class _End(msgspec.Struct, kw_only=True):
    """The last line of a process that ended in order."""

    answers: int
    unsent: int


_ANSWER: Final = msgspec.json.Decoder(LoggedAnswer)
_END: Final = msgspec.json.Decoder(_End)
_END_BEGINS: Final = b'{"answers":'


class Writer:
    """Writes the file of one process.

    Attributes:
        unsent: attempts that were due but never sent, because the load ended first.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / _PATTERN.format(os.getpid())).open("ab", buffering=_BUFFER_BYTES)
        self._encode = msgspec.json.Encoder().encode
        self._answers = 0
        self.unsent = 0

    def write(self, answer: LoggedAnswer) -> None:
        """Append a response to the file."""
        self._file.write(self._encode(answer) + b"\n")
        self._answers += 1

    def close(self) -> None:
        """Write the last line. Without it, a reader knows that responses are missing."""
        if not self._file.closed:
            self._file.write(self._encode(_End(answers=self._answers, unsent=self.unsent)) + b"\n")
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AnswerLog:
    """Reads all responses of a run, or those of some of its processes.

    Attributes:
        unsent: sum of ``Writer.unsent`` over all processes; valid after a full iteration.
        broken: files whose process did not end in order, so that responses are missing.
    """

    def __init__(self, directory: Path, pids: Iterable[int] | None = None) -> None:
        self.files = (
            sorted(directory.glob(_PATTERN.format("*")))
            if pids is None
            else [directory / _PATTERN.format(pid) for pid in pids]
        )
        self.unsent = 0
        self.broken: list[str] = []

    def __iter__(self) -> Iterator[LoggedAnswer]:
        self.unsent, self.broken = 0, []
        for path in self.files:
            ended, answers = False, 0
            with path.open("rb") as lines:
                for line in lines:
                    if line.startswith(_END_BEGINS):
                        end = _END.decode(line)
                        ended = end.answers == answers
                        self.unsent += end.unsent
                    elif line.endswith(b"\n"):
                        answers += 1
                        yield _ANSWER.decode(line)
            if not ended:
                self.broken.append(path.name)
