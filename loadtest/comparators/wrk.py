"""Runs the client wrk with a script that gives each request its own code."""

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
    """Result of a run of wrk.

    Attributes:
        requests: responses of any status.
        refused: responses with a status of 400 or more.
        broken: connections that failed, and responses that took too long.
        seconds: duration of the run.
        p50_ms, p99_ms: from request to response, closed loop.
        client_s: CPU seconds of wrk.
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
        """Responses a second."""
        return self.requests / self.seconds


def parse(output: str) -> WrkOutcome:
    """Parse the result in wrk's output.

    Raises:
        ValueError: there is not exactly one result.
    """
    found = [line for line in output.splitlines() if line.startswith(_RESULT)]
    if len(found) != 1:
        raise ValueError(f"wrk printed {len(found)} results, not one")
    return msgspec.json.decode(found[0].removeprefix(_RESULT), type=WrkOutcome)


async def run(
    program: Path, url: str, key: str, codes: Path, *, first: int, connections: int, seconds: int
) -> WrkOutcome:
    """Redeem for ``seconds`` over ``connections`` connections, from the code with the number ``first`` on.

    Raises:
        RuntimeError: wrk failed.
        TimeoutError: wrk did not end.
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
