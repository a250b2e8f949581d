"""The client: wrk, with a script that gives each request a code of its own."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING, Final

import msgspec

from engine.settings import without_settings
from loadtest.comparators.parts import HERE

if TYPE_CHECKING:
    from pathlib import Path

_RESULT: Final = "result "
_TIMEOUT_S: Final = 10
_END_S_MAX: Final = 60.0


class WrkOutcome(msgspec.Struct, frozen=True):
    """What a run of wrk saw.

    Attributes:
        requests: answers, whatever their status.
        refused: those of them with a status past 399.
        broken: connections that could not be made or used, and answers that took too long.
        seconds: how long it ran.
        p50_ms, p99_ms: from request to answer, closed loop.
        client_s: the time it had on a processor.
    """

    requests: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_s: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def parse(output: str) -> WrkOutcome:
    """The result in wrk's output.

    Raises:
        ValueError: there is none, or not one only.
    """
    found = [line for line in output.splitlines() if line.startswith(_RESULT)]
    if len(found) != 1:
        raise ValueError(f"wrk told {len(found)} results")
    return msgspec.json.decode(found[0].removeprefix(_RESULT), type=WrkOutcome)


async def run(
    program: Path, url: str, key: str, codes: Path, *, first: int, connections: int, seconds: int
) -> WrkOutcome:
    """Redeem over so many connections for so long, from the code ``first`` on.

    Raises:
        RuntimeError: wrk failed.
        TimeoutError: it did not end.
    """
    environment = {"BENCH_CODES": str(codes), "BENCH_FIRST": str(first), "BENCH_KEY": key}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        *(str(program), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{_TIMEOUT_S}s"),
        *("-s", str(HERE / "wrk.lua"), url),
        env=without_settings(os.environ) | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + _END_S_MAX):
            output = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"wrk failed: {output.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return msgspec.structs.replace(parse(output), client_s=spent)
