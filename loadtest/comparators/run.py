"""Runs the rounds: contenders take turns, wrk loads each, and its store must match its responses."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from loadtest import client
from loadtest.benchmarks import testbed
from loadtest.comparators import wrk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engine.control.change import ControlPlane
    from loadtest.comparators.contenders import Bench, Peer
    from loadtest.comparators.stores import Store
    from loadtest.comparators.wrk import WrkOutcome

WARM_UP_S: Final = 1
SETTLE_S_MAX: Final = 30.0
_OK, _REFUSED, _UNAUTHORISED, _CONFLICT = 200, 400, 401, 409


class WrongError(Exception):
    """A contender's response is wrong, or does not match its store."""


class PeerFigures(NamedTuple):
    """Figures of one run.

    Attributes:
        front_us, store_us, client_us: CPU microseconds for one redemption: of the contender's processes, of
            its store, and of wrk.
        front_busy: share of its processor that the contender used.
        others_busy: share of one processor that the store and wrk used together.
    """

    per_second: float
    front_us: float
    store_us: float
    client_us: float
    front_busy: float
    others_busy: float
    p50_ms: float
    p99_ms: float

    @property
    def both_us(self) -> float:
        """Of front end and store together."""
        return self.front_us + self.store_us


Measured = dict[str, dict[str, list[PeerFigures]]]
"""Figures of each round, by load (`PeerLoad.name`) and contender."""


class PeerLoad(NamedTuple):
    """A load: wrk over so many connections; with ``per_second``, a constant rate over them (open loop)."""

    connections: int
    per_second: int = 0

    @property
    def name(self) -> str:
        """Heading of its table."""
        if self.per_second:
            return f"{self.per_second:,} a second"
        return f"{self.connections} connections"

    def codes(self, peer: Peer, seconds: float) -> int:
        """Return how many codes a contender needs."""
        return int((self.per_second or peer.codes_per_s) * seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Number of rounds, duration of each load, and the loads."""

    rounds: int
    seconds: int
    loads: tuple[PeerLoad, ...]

    @property
    def warm_up(self) -> PeerLoad:
        """The load before those that are measured."""
        return PeerLoad(max(load.connections for load in self.loads))

    def codes(self, peer: Peer) -> int:
        """Return how many codes a contender needs for its turn."""
        loads = sum(load.codes(peer, self.seconds + 0.5) for load in self.loads)
        return loads + self.warm_up.codes(peer, WARM_UP_S)


@dataclass(slots=True)
class Turn:
    """A running contender, and the codes that it has not been asked for."""

    bench: Bench
    peer: Peer
    store: Store
    program: Path
    codes: Sequence[str]
    contender: testbed.Contender
    used: int = 0

    async def load(self, load: PeerLoad, seconds: int) -> PeerFigures:
        """Load the contender and return its figures.

        Raises:
            WrongError: a response was not a success, or the store has a different number of redemptions.
        """
        before, front, store = await self._redeemed(), self.contender.seconds(), self._store_s()
        outcome = await (self._at_rate(load, seconds) if load.per_second else self._wrk(load, seconds))
        after = await self._redeemed()
        front, store = self.contender.seconds() - front, self._store_s() - store
        done = None if before is None or after is None else after - before
        if self.used + outcome.requests + load.connections >= len(self.codes):
            raise WrongError(f"{self.peer.name} ran out of its {len(self.codes)} codes")
        self.used += outcome.requests + load.connections + 1
        check(self.peer.name, outcome, done, load.connections)
        count = done or outcome.requests
        return PeerFigures(
            per_second=outcome.per_second,
            front_us=front / count * 1e6,
            store_us=store / count * 1e6,
            client_us=outcome.client_s / count * 1e6,
            front_busy=front / outcome.seconds,
            others_busy=(store + outcome.client_s) / outcome.seconds,
            p50_ms=outcome.p50_ms,
            p99_ms=outcome.p99_ms,
        )

    async def _wrk(self, load: PeerLoad, seconds: int) -> WrkOutcome:
        return await wrk.run(
            self.program,
            f"http://{self.bench.settings.host}:{self.contender.port}/v1/redemptions",
            self.bench.key,
            self.bench.directory / "codes",
            first=self.used,
            connections=load.connections,
            seconds=seconds,
        )

    async def _at_rate(self, load: PeerLoad, seconds: int) -> WrkOutcome:
        """Wrk has no open loop. This client's latencies count from the time when a request was due."""
        codes = self.codes[self.used : self.used + load.per_second * seconds]
        requests = [client.redemption(self.bench.key, code, number) for number, code in enumerate(codes)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        seen = await client.run_at(
            *(self.bench.settings.host, self.contender.port, requests),
            connections=load.connections,
            per_second=load.per_second,
        )
        after = resource.getrusage(resource.RUSAGE_SELF)
        return wrk.WrkOutcome(
            requests=seen.statuses.total(),
            refused=sum(count for status, count in seen.statuses.items() if status >= _REFUSED),
            broken=0,  # a lost connection ends the run
            seconds=seen.seconds,
            p50_ms=seen.percentile_ms(0.5),
            p99_ms=seen.percentile_ms(0.99),
            client_s=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        )

    async def probe(self) -> None:
        """Redeem a code, redeem it again, and use a wrong key; check the three responses.

        Raises:
            WrongError: a response is wrong.
        """
        code, self.used = self.codes[self.used], self.used + 1
        checks = [(self.bench.key, _OK)]
        if self.peer.store != "nothing":
            checks.append((self.bench.key, _CONFLICT))
            if self.peer.store != "engine's keys":  # the baseline checks no key
                checks.append((self.bench.key + "x", _UNAUTHORISED))
        for key, expected in checks:
            status, body = await asyncio.to_thread(self._ask, code, key)
            if status != expected:
                raise WrongError(f"{self.peer.name} answered {status} for {expected}: {body[:300]!r}")
            if status == _OK and json.loads(body)["status"] != "redeemed":
                raise WrongError(f"{self.peer.name} does not say what it did: {body[:300]!r}")

    def _ask(self, code: str, key: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self.bench.settings.host, self.contender.port, timeout=SETTLE_S_MAX
        )
        try:
            body = json.dumps({"code": code, "user": "user-0000000"})
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/redemptions", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _store_s(self) -> float:
        return testbed.processor_seconds(self.store.pid) if self.store.pid else 0.0

    async def _redeemed(self) -> int | None:
        """Return the number of redemptions in the store, after it has stopped changing."""
        found = await self.store.redeemed()
        async with asyncio.timeout(SETTLE_S_MAX):
            while True:
                await asyncio.sleep(0.1)
                again = await self.store.redeemed()
                if again == found:
                    return found
                found = again


def check(name: str, outcome: WrkOutcome, done: int | None, connections: int) -> None:
    """Compare the responses that wrk saw with the redemptions in the store.

    The store may have one more redemption for each connection: wrk does not see the responses of requests
    that are under way when it ends.

    Raises:
        WrongError: they differ by more, or a response was not a success.
    """
    if outcome.refused or outcome.broken:
        raise WrongError(
            f"{name}: of {outcome.requests} answers {outcome.refused} were refusals, "
            f"and {outcome.broken} connections broke"
        )
    if done is not None and not outcome.requests <= done <= outcome.requests + connections:
        raise WrongError(
            f"{name} answered {outcome.requests} times that it redeemed, and its store has {done}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Everything that takes part in the rounds.

    Attributes:
        peers: the contenders, each with its part.
        program: the path of wrk.
    """

    plane: ControlPlane
    bench: Bench
    peers: Mapping[Peer, Path]
    stores: Mapping[str, Store]
    program: Path
    options: Options

    async def measure(self) -> Measured:
        """Run all rounds; each begins with a different contender.

        Raises:
            WrongError: a contender's responses are wrong.
        """
        measured: Measured = {load.name: defaultdict(list) for load in self.options.loads}
        order = list(self.peers)
        for number in range(self.options.rounds):
            shift = number % len(order)
            for peer in order[shift:] + order[:shift]:
                for load, one in (await self._turn(peer)).items():
                    measured[load.name][peer.name].append(one)
                    print(
                        f"round {number + 1}: {peer.name:22} {load.name:16} "
                        f"{one.per_second:8,.0f} /s  {one.front_us:6.1f} + {one.store_us:5.1f} µs  "
                        f"busy {one.front_busy:4.0%} and {one.others_busy:4.0%}  "
                        f"p50 {one.p50_ms:.1f} p99 {one.p99_ms:.1f} ms",
                        file=sys.stderr,
                    )
        return measured

    async def _turn(self, peer: Peer) -> dict[PeerLoad, PeerFigures]:
        store, how = self.stores[peer.store], self.options
        codes = await testbed.mint(self.plane, how.codes(peer))
        path = self.bench.directory / "codes"
        try:
            path.touch(mode=0o600)
            path.write_text("".join(code + "\n" for code in codes))
            await store.prepare(codes, peer.appendfsync)
            with testbed.running(*peer.start(self.bench, self.peers[peer])) as contender:
                turn = Turn(self.bench, peer, store, self.program, codes, contender)
                await turn.probe()
                await turn.load(how.warm_up, WARM_UP_S)
                found = {load: await turn.load(load, how.seconds) for load in how.loads}
            await store.clear()
            return found
        finally:
            path.unlink(missing_ok=True)
