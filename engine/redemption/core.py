"""The core of a worker: an attempt comes in, and its outcome goes to a callback.

``submit`` has the code looked up, then the attempt sends itself to its shard. It makes no task and no
future; ``answer`` is a thin awaitable on top for ordinary handlers.
"""

from __future__ import annotations

import asyncio
import unicodedata
from typing import TYPE_CHECKING, Final, Protocol

from engine.api.outcomes import Refused
from engine.codes.formats import FORMATS, all_symbols, normalise
from engine.errors import Fault, Refusal
from engine.lookup.resolver import PendingLookup, Resolver

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.api.outcomes import Outcome
    from engine.lookup.decoder import Issued
    from engine.redemption.attempt import Attempt, OnDone
    from engine.store.dispatcher import Dispatcher, Sendable

    class Answerable(Sendable, Protocol):
        """An attempt whose outcome can be awaited."""

        on_done: OnDone


_SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_REPEATED: Final = "The code may stand in no other field."


class Core:
    """Looks codes up, and answers attempts on them.

    Attributes:
        redis: for reads that need no script.
    """

    def __init__(self, dispatcher: Dispatcher, redis: Redis) -> None:
        self.dispatcher = dispatcher
        self.redis = redis
        self.settings = dispatcher.settings
        self.configuration = dispatcher.configuration
        self._resolver = Resolver(dispatcher.settings, dispatcher.configuration)
        self._loop = asyncio.get_running_loop()

    @property
    def missing_mint_keys(self) -> frozenset[str]:
        """Names of mint keys that codes were issued under, and that this process was not given."""
        return self._resolver.missing_mint_keys

    async def close(self) -> None:
        """Answer what is under way, then disconnect."""
        await self._resolver.close()
        await self.dispatcher.close()

    def submit(self, attempt: Attempt, code: str) -> None:
        """Make an attempt on the code that was typed; ``on_done`` is called once, now or by its deadline.

        The fields of the attempt have been checked, and its API key may do this.
        """
        if not self._resolver.read(code, attempt):
            attempt.refused("code_malformed")
        elif _repeats_code(attempt.normalised, attempt.user, attempt.order, attempt.key):
            attempt.finish("malformed_request", Refused("malformed_request", _REPEATED))
        else:
            try:
                self._resolver.find(attempt)
            except Fault as fault:
                attempt.failed(fault)

    async def answer(self, attempt: Attempt, code: str) -> Outcome:
        """``submit``, awaited."""
        outcome = self._await_outcome(attempt)
        self.submit(attempt, code)
        return await outcome

    async def answer_bound(self, attempt: Answerable, deadline: float | None = None) -> Outcome:
        """Make an attempt that knows its code already, and await its outcome."""
        outcome = self._await_outcome(attempt)
        attempt.deadline = self.dispatcher.deadline() if deadline is None else deadline
        try:
            self.dispatcher.send(attempt)
        except Fault as fault:
            attempt.failed(fault)
        return await outcome

    def _await_outcome(self, attempt: Attempt | Answerable) -> asyncio.Future[Outcome]:
        done: asyncio.Future[Outcome] = self._loop.create_future()

        def on_done(outcome: Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        attempt.on_done = on_done
        return done

    async def find(self, code: str, *stored: str | None) -> Issued:
        """The code that was typed; ``stored`` are texts that are kept, and so must not contain it.

        Raises:
            Refusal: there is no such code, or one of the texts contains it.
            Fault: nobody can tell.
        """
        lookup = _Lookup(self._loop.create_future())
        if not self._resolver.read(code, lookup):
            raise Refusal("code_malformed")
        if _repeats_code(lookup.normalised, *stored):
            raise Refusal("malformed_request", _REPEATED)
        self._resolver.find(lookup)
        return await lookup.answered

    async def refuse_code_of(self, batch: int, serial: int, *stored: str | None) -> None:
        """Refuse texts that are kept and contain a code that was not typed, but is known.

        An imported code is known by its digest only: it is found where it is the text, or a word of it.

        Raises:
            Refusal: ``malformed_request``.
            Fault: nobody can tell.
        """
        texts = [text for text in stored if text]
        if not texts:
            return
        code = self._resolver.code_of(batch, serial)
        if code is None:
            repeated = await self._resolver.names_imported(texts, batch, serial)
        else:
            repeated = _repeats_code(code, *texts)
        if repeated:
            raise Refusal("malformed_request", _REPEATED)


class _Lookup(PendingLookup):
    """A lookup that somebody awaits."""

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
