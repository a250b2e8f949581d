"""``make bench-blocks``: after how long a block is in force in every worker.

One engine with several workers. A connection to each of them asks again and again as the source that is to be
blocked, in turns of ``PAUSE_S``, until it is refused. Measured is the time

* of a block that ops make: from when ``POST /v1/blocks`` was sent;
* of one that the rule ``score`` makes: from the answer to the eighth made-up code, which one worker has seen,

until the last of the workers has refused. The figures go into docs/guard.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil  # type: ignore[import-untyped] # it has no types
import uvloop
from redis.asyncio import Redis

from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from loadtest import client
from loadtest.benchmarks import testbed
from loadtest.responses import take_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.settings import Settings
    from loadtest.benchmarks.testbed import Contender
    from loadtest.responses import WholeResponse

PAUSE_S: Final = 0.005
CODES: Final = 8
"""Different made-up codes at which the rule ``score`` blocks."""
MALFORMED: Final = "?"
"""A worker asks Redis about a code that it does not know, and hears of blocks by it; not about this one."""
PAGE: Final = Path(__file__).parents[2] / "docs" / "guard.md"
_CONNECTIONS_MAX: Final = 1000
_SYMBOLS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_REFUSED: Final = 403
_CREATED: Final = 201
_IN_FORCE_S_MAX: Final = 60.0
_READ_BYTES: Final = 65_536


class Caller:
    """One connection, and so one worker, that calls with one API key."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader, self._writer, self._key = reader, writer, key

    @property
    def port(self) -> int:
        """Its own port."""
        return int(self._writer.get_extra_info("sockname")[1])

    async def post(self, path: str, document: object) -> WholeResponse:
        """Send a request and return its response."""
        self._writer.write(client.request(path, self._key, json.dumps(document).encode()))
        received = b""
        while (response := take_response(received)) is None:
            if not (more := await self._reader.read(_READ_BYTES)):
                raise ConnectionError("the engine hung up")
            received += more
        return response

    async def try_code(self, code: str, user: str) -> WholeResponse:
        """Try a code as a user."""
        return await self.post("/v1/redemptions", {"code": code, "user": user})

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def callers(host: str, port: int, key: str, workers: Sequence[int]) -> list[Caller]:
    """Return a connection to each of these workers, by their pids.

    Raises:
        RuntimeError: one of them accepts none.
    """
    found: dict[int, Caller] = {}
    for number in range(_CONNECTIONS_MAX):
        caller = Caller(*await asyncio.open_connection(host, port), key)
        # After its answer it is accepted. A rule would block one user with so many wrong codes.
        await caller.try_code(made_up(random.Random()), f"nobody-{number}")
        of = next((pid for pid in workers if caller.port in _peers(pid)), None)
        if of is None or of in found:
            caller.close()
        else:
            found[of] = caller
        if len(found) == len(workers):
            return [found[pid] for pid in workers]
    raise RuntimeError("a worker accepts no connection")


def pids_of_workers(process: psutil.Process) -> list[int]:
    """Return the pids of the workers that a process has started, itself or through others."""
    return [one.pid for one in process.children(recursive=True) if "engine.worker" in one.cmdline()]


def _peers(pid: int) -> set[int]:
    """The ports from which a process has connections."""
    return {one.raddr.port for one in psutil.Process(pid).net_connections("tcp") if one.raddr}


def made_up(chance: random.Random) -> str:
    """Return a code that was never issued, but for a chance of one in a quadrillion."""
    return "".join(chance.choices(_SYMBOLS, k=16))


async def block_by_ops(workers: Sequence[Caller], user: str) -> float:
    """Block a user over HTTP. Return after how many seconds every worker refuses it."""
    begun = time.perf_counter()
    response = await workers[0].post("/v1/blocks", {"kind": "user", "subject": user, "reason": "bench"})
    if response.status != _CREATED:
        raise RuntimeError(f"no block was made: {response.body.decode()}")
    return await _until_refused(workers, user, begun)


async def block_by_rule(workers: Sequence[Caller], user: str, chance: random.Random) -> float:
    """Guess as a user, in one worker. Return after how many seconds every worker refuses it."""
    for _ in range(CODES):
        await workers[0].try_code(made_up(chance), user)
    return await _until_refused(workers, user, time.perf_counter())


async def _until_refused(workers: Sequence[Caller], user: str, begun: float) -> float:
    async def refused(worker: Caller) -> float:
        while (await worker.try_code(MALFORMED, user)).status != _REFUSED:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(PAUSE_S)
        return time.perf_counter() - begun

    async with asyncio.timeout(_IN_FORCE_S_MAX):
        return max(await asyncio.gather(*map(refused, workers)))


async def _measure(settings: Settings, engine: Contender, rounds: int) -> dict[str, list[float]]:
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        key = (await api_keys.create(plane, "bench", ["redeem", "admin"])).value.key
        workers = await callers(settings.host, engine.port, key, pids_of_workers(engine.process))
        chance = random.Random(1)
        found: dict[str, list[float]] = {"by ops": [], "by the rule `score`": []}
        by_ops, by_rule = found.values()
        for number in range(rounds):
            await asyncio.sleep(chance.random() * settings.configuration_poll_ms / 1000)
            by_ops.append(await block_by_ops(workers, f"ops-{number}"))
            await asyncio.sleep(chance.random() * settings.configuration_poll_ms / 1000)
            by_rule.append(await block_by_rule(workers, f"rule-{number}", chance))
        return found


def table(found: dict[str, list[float]], made: str) -> str:
    """Return the figures as a table in Markdown, in milliseconds."""
    lines = ["| a block is made | median | 99 of 100 | most |", "|---|---|---|---|"]
    for name, seconds in found.items():
        ordered = sorted(seconds)
        at = (ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1])
        lines.append(f"| {name} | {' | '.join(f'{one * 1000:.0f} ms' for one in at)} |")
    return "\n".join([*lines, "", f"({made}, {time.strftime('%Y-%m-%d', time.gmtime())})"])


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/guard.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, testbed.servers(Path(directory)) as bare:
        settings = replace(bare, workers=options.workers, guard_score_mode="enforce")
        engine = testbed.module(settings, testbed.ENGINE)
        with testbed.running(*engine, on_first=False) as contender:
            found = uvloop.run(_measure(settings, contender, options.rounds))
    made = f"make bench-blocks, {options.workers} workers, {options.rounds} blocks of each kind"
    shown = table(found, made)
    print(shown)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        new = f"<!-- in force -->\n{shown}\n<!-- end -->"
        text = re.sub(r"<!-- in force -->.*?<!-- end -->", lambda _: new, text, flags=re.DOTALL)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
