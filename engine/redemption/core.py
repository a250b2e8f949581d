"""The core of a worker: an attempt comes in, and its answer goes to a callback.

``submit`` has the code found and hands the attempt to the batcher of its script and shard. It makes
no task and no future; ``answer`` is a thin awaitable on top for ordinary handlers.
"""

from __future__ import annotations

import asyncio
import functools
import unicodedata
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.api.bodies import problem
from engine.codes.formats import FORMATS, all_symbols, normalise
from engine.errors import Fault, Overloaded, Refusal
from engine.lookup.resolver import Resolver, Wanted
from engine.redemption.attempt import Claim
from engine.redemption.check import Check
from engine.redemption.combined import Combined
from engine.redemption.correct import Adjustment, Rollback, Voiding
from engine.redemption.cross_shard import SpanStep
from engine.redemption.hold import Confirmation, Hold, Release
from engine.redemption.hold_expiry import sweep
from engine.redemption.redeem import Redemption
from engine.store.batcher import Batcher
from engine.store.idempotency import home_of
from engine.store.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engine.lookup.decoder import Issued
    from engine.observability.metrics import Telemetry
    from engine.redemption.attempt import Attempt
    from engine.settings import Settings
    from engine.store.configuration import Registry

SCRIPTS: Final = tuple(
    kind.script
    for kind in (
        *(Redemption, Combined, SpanStep, Claim),
        *(Hold, Confirmation, Release),
        *(Rollback, Voiding, Adjustment, Check),
    )
)
# What begins something new, and is refused while Redis is short of memory; all else goes on.
_BEGINNINGS: Final = frozenset(kind.script.name for kind in (Redemption, Combined, Hold))
_SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_REPEATED: Final = "The code may stand in no other field."


class Answer(NamedTuple):
    """An answer as HTTP has it; ``retry_after_s`` is 0 where there is no Retry-After."""

    status: int
    body: bytes
    retry_after_s: int = 0


class Core:
    """What a worker knows, and for each shard a link, and a batcher for each script on it.

    ``verify`` is awaited with a shard's number before a new connection to it is used.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        redis: Redis,
        telemetry: Telemetry,
        verify: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.redis = redis
        self.telemetry = telemetry
        self._verify = verify
        self._resolver = Resolver(settings, registry)
        self._loop = asyncio.get_running_loop()
        self._links: list[Link] = []
        self._batchers: list[dict[str, Batcher]] = []
        for shard in range(registry.shards):
            self._add_shard(shard)
        self._waiting: defaultdict[int, list[Attempt | Combined]] = defaultdict(list)  # for a sweep, by shard
        self._sweeps: dict[int, asyncio.Task[None]] = {}

    def _add_shard(self, shard: int) -> None:
        batchers: dict[str, Batcher] = {}

        def dispatch_all() -> None:
            for batcher in batchers.values():
                batcher.dispatch()

        link = Link(
            self.settings.redis_url,
            SCRIPTS,
            on_ready=dispatch_all,
            verify=functools.partial(self._verify, shard) if self._verify else None,
        )
        for script in SCRIPTS:
            batchers[script.name] = Batcher(
                shard,
                script,
                link,
                batch_max=1 if script is Combined.script else self.settings.batch_max,
                settings=self.settings,
                registry=self.registry,
                telemetry=self.telemetry,
            )
        self._links.append(link)
        self._batchers.append(batchers)

    @property
    def ready(self) -> bool:
        """Whether every shard can be called."""
        return all(link.ready for link in self._links)

    @property
    def missing_mint_keys(self) -> frozenset[str]:
        """Names of mint keys that codes were issued under, and that this process was not given."""
        return self._resolver.missing_mint_keys

    def open(self) -> None:
        """Connect to every shard."""
        for link in self._links:
            link.open()

    def reconnect(self) -> None:
        """Give up every connection; each is verified anew before it is used again."""
        for link in self._links:
            link.abort()

    async def close(self) -> None:
        """Answer what is under way, then disconnect."""
        await self._resolver.close()
        await asyncio.gather(*self._sweeps.values(), return_exceptions=True)
        batchers = [batcher for of_shard in self._batchers for batcher in of_shard.values()]
        await asyncio.gather(*(batcher.drain() for batcher in batchers))
        await asyncio.gather(*(link.close() for link in self._links))
        await asyncio.gather(*(batcher.close() for batcher in batchers))

    async def answer(self, attempt: Attempt | Combined, code: str | None = None) -> Answer:
        """``submit`` where there is a code, else ``send``; awaited."""
        answered: asyncio.Future[Answer] = self._loop.create_future()

        def on_done(status: int, body: bytes, retry_after_s: int) -> None:
            if not answered.done():
                answered.set_result(Answer(status, body, retry_after_s))

        attempt.on_done = on_done
        if isinstance(attempt, Combined):
            attempt.start()
        elif code is not None:
            self.submit(attempt, code)
        else:
            attempt.deadline = self.deadline()
            try:
                self.send(attempt)
            except Fault as fault:
                attempt.failed(fault)
        return await answered

    async def find(self, code: str, *kept: str | None) -> Issued:
        """The code that was typed; ``kept`` are texts that come to rest, and so must not contain it.

        Raises:
            Refusal: it is none, or stands in one of the texts.
            Fault: nobody can tell.
        """
        lookup = _Lookup(self._loop.create_future())
        if not self._resolver.read(code, lookup):
            raise Refusal("code_malformed")
        if _repeats_code(lookup.normalised, *kept):
            raise Refusal("malformed_request", _REPEATED)
        self._resolver.find(lookup)
        return await lookup.answered

    async def refuse_code_of(self, batch: int, serial: int, *kept: str | None) -> None:
        """Refuse texts that come to rest and contain a code that was not typed, but is known.

        An imported code is known by its digest only: it is found where it is the text, or a word of it.

        Raises:
            Refusal: ``malformed_request``.
            Fault: nobody can tell.
        """
        texts = [text for text in kept if text]
        if not texts:
            return
        code = self._resolver.code_of(batch, serial)
        if code is None:
            repeated = await self._resolver.names_imported(texts, batch, serial)
        else:
            repeated = _repeats_code(code, *texts)
        if repeated:
            raise Refusal("malformed_request", _REPEATED)

    def deadline(self) -> float:
        """When an attempt that comes now must have its answer."""
        return self._loop.time() + self.settings.attempt_deadline_ms / 1000

    def submit(self, attempt: Attempt, code: str) -> None:
        """Do it to the code that was typed; ``attempt.on_done`` is called once, now or by its deadline.

        The fields of the attempt have been checked, and its API key may do this.
        """
        if not self._resolver.read(code, attempt):
            attempt.refused("code_malformed")
        elif _repeats_code(attempt.normalised, *attempt.texts()):
            attempt.finish("malformed_request", *problem("malformed_request", _REPEATED))
        else:
            try:
                self._resolver.find(attempt)
            except Fault as fault:
                attempt.failed(fault)

    def send(self, attempt: Attempt | Combined) -> None:
        """Hand an attempt that knows its place to the batcher of its script there.

        Raises:
            Overloaded, StoreUnavailable: it cannot be taken.
        """
        if self.registry.memory_short and attempt.script.name in _BEGINNINGS:
            raise Overloaded("Redis is short of memory")
        shards = self.registry.shards
        if shards > 1 and attempt.receipt_name and not attempt.claimed:
            home = home_of(attempt.receipt_name, shards)
            if home != attempt.place.shard:
                claim = Claim(attempt, home)
                self._batchers[home][claim.script.name].add(claim)
                return
        self._batchers[attempt.place.shard][attempt.script.name].add(attempt)

    def send_when_swept(self, attempt: Attempt | Combined) -> None:
        """Send it again once the holds of its shard that have expired are given back."""
        shard = attempt.place.shard
        self._waiting[shard].append(attempt)
        if shard not in self._sweeps:
            self._sweeps[shard] = asyncio.create_task(self._sweep(shard))

    async def _sweep(self, shard: int) -> None:
        failure = None
        try:
            await sweep(self, shard)
        except Fault as fault:
            failure = fault
        finally:
            del self._sweeps[shard]
        for attempt in self._waiting.pop(shard):
            try:
                if failure is not None:
                    raise failure
                self.send(attempt)
            except Fault as fault:
                attempt.failed(fault)


class _Lookup(Wanted):
    """Somebody who waits for the code that was typed."""

    __slots__ = ("answered",)

    def __init__(self, answered: asyncio.Future[Issued]) -> None:
        self.answered = answered

    def found(self, code: Issued) -> None:
        if not self.answered.done():
            self.answered.set_result(code)

    def refused(self, outcome: str) -> None:
        self._raise(Refusal(outcome))

    def failed(self, fault: Fault) -> None:
        self._raise(fault)

    def _raise(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


def _repeats_code(normalised: bytes, *texts: str | None) -> bool:
    """Whether a field that is kept contains the code, however written: none may come to rest (P7).

    However the typed text is read, its last symbols are the code's. A code shorter than any minted one
    was imported, perhaps as a word that everybody shares: of that, a field must not be all there is.
    """
    ending = normalised[-_SHORTEST_CODE:]
    is_word = len(ending) < _SHORTEST_CODE
    for text in texts:
        if text is None or (len(text) < len(ending) and text.isascii()):
            continue  # only of plain text the length says that it is too short: a ligature is several letters
        flat = None if text.isascii() else normalise(text, characters_max=len(text))
        if flat is None:
            flat = all_symbols(text if text.isascii() else unicodedata.normalize("NFKC", text))
        if flat == ending if is_word else ending in flat:
            return True
    return False
