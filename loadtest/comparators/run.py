"""Runs the rounds: contenders take turns, wrk loads each, and its store must match its responses."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

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
_OK, _UNAUTHORISED, _CONFLICT = 200, 401, 409


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


Measured = dict[int, dict[str, list[PeerFigures]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Duration, connections and number of rounds."""

    rounds: int
    seconds: int
    connections: tuple[int, ...]

    def codes(self, peer: Peer) -> int:
        """Return how many codes a contender needs for its turn."""
        return int(peer.codes_per_s * (WARM_UP_S + (self.seconds + 0.5) * len(self.connections)))


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

    async def load(self, connections: int, seconds: int) -> PeerFigures:
        """Load the contender and return its figures.

        Raises:
            WrongError: a response was not a success, or the store has a different number of redemptions.
        """
        before, front, store = await self._redeemed(), self.contender.seconds(), self._store_s()
        outcome = await wrk.run(
            self.program,
            f"http://{self.bench.settings.host}:{self.contender.port}/v1/redemptions",
            self.bench.key,
            self.bench.directory / "codes",
            first=self.used,
            connections=connections,
            seconds=seconds,
        )
        after = await self._redeemed()
        front, store = self.contender.seconds() - front, self._store_s() - store
        done = None if before is None or after is None else after - before
        if self.used + outcome.requests + connections >= len(self.codes):
            raise WrongError(f"{self.peer.name} ran out of its {len(self.codes)} codes")
        self.used += outcome.requests + connections + 1
        check(self.peer.name, outcome, done, connections)
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
        measured: Measured = {number: defaultdict(list) for number in self.options.connections}
        order = list(self.peers)
        for number in range(self.options.rounds):
            shift = number % len(order)
            for peer in order[shift:] + order[:shift]:
                for connections, one in (await self._turn(peer)).items():
                    measured[connections][peer.name].append(one)
                    print(
                        f"round {number + 1}: {peer.name:22} {connections:4} connections "
                        f"{one.per_second:8,.0f} /s  {one.front_us:6.1f} + {one.store_us:5.1f} µs  "
                        f"busy {one.front_busy:4.0%} and {one.others_busy:4.0%}",
                        file=sys.stderr,
                    )
        return measured

    async def _turn(self, peer: Peer) -> dict[int, PeerFigures]:
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
                await turn.load(max(how.connections), WARM_UP_S)
                found = {number: await turn.load(number, how.seconds) for number in how.connections}
            await store.clear()
            return found
        finally:
            path.unlink(missing_ok=True)
