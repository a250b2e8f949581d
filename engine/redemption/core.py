"""The core of a worker: takes an attempt and a typed code, and passes the outcome to a callback.

``submit`` starts the look-up of the code. Then the attempt sends itself to its shard. This makes no task and
no future, for the fast lane. ``answer`` does the same and can be awaited, for ordinary handlers.
"""

from __future__ import annotations

import asyncio
import unicodedata
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from engine.api.outcomes import Refused
from engine.codes.formats import all_symbols, normalise
from engine.codes.texts import SHORTEST_CODE
from engine.errors import Fault, Refusal
from engine.lookup.resolver import PendingLookup, Resolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engine.api.outcomes import Outcome
    from engine.guard.guard import Guard
    from engine.lookup.decoder import Issued
    from engine.redemption.attempt import Attempt, OnDone
    from engine.store.dispatcher import Dispatcher, Sendable

    class Answerable(Sendable, Protocol):
        """An attempt whose outcome can be awaited."""

        on_done: OnDone


_REPEATED: Final = "The code must not appear in another field or in the Idempotency-Key."
_IN_METADATA: Final = "A code must not appear in metadata: this deployment keeps it."
_ANOTHER: Final = "A code must not appear in user, order, reason or Idempotency-Key."


class Core:
    """Looks up codes, and runs attempts on them.

    Attributes:
        redis: a client for reads that need no script.
        resolver: finds the codes of its attempts.
    """

    def __init__(self, dispatcher: Dispatcher, redis: Redis, guard: Guard) -> None:
        self.dispatcher = dispatcher
        self.guard = guard
        self.redis = redis
        self.settings = dispatcher.settings
        self.configuration = dispatcher.configuration
        self.resolver = Resolver(dispatcher.settings, dispatcher.configuration)
        self._loop = asyncio.get_running_loop()

    def mint_key_problem(self) -> str:
        """What is wrong with the mint keys of this process; empty if nothing is."""
        return self.resolver.mint_key_problem()

    async def close(self) -> None:
        """Wait for the attempts in flight, then disconnect."""
        await self.resolver.close()
        await self.dispatcher.close()

    def submit(self, attempt: Attempt, code: str) -> None:
        """Run an attempt on a typed code. ``on_done`` is called once: now, or later but by the deadline.

        The caller has checked the fields of the attempt and the scope of its API key.
        """
        if self.guard.watches and (refusal := self.judged(attempt)):
            attempt.finish(refusal.code, refusal)
        elif not self.resolver.read(code, attempt):
            attempt.refused("code_malformed")
        elif detail := self.code_in_texts(
            attempt.normalised, (attempt.user, attempt.order, attempt.key), attempt.metadata
        ):
            attempt.finish("malformed_request", Refused("malformed_request", detail))
        else:
            self.resolver.find(attempt)

    def code_in_texts(self, normalised: bytes, texts: Sequence[str | None], metadata: str) -> str:
        """Return what is wrong if texts of an attempt contain its code or a minted one; else an empty text.

        ``metadata`` is JSON; empty if it is not kept.
        """
        if _repeats_code(normalised, *texts):
            return _REPEATED
        if self.resolver.contains_issued(texts):
            return _ANOTHER
        return _IN_METADATA if metadata and self._keeps_code(normalised, metadata) else ""

    def judged(self, attempt: Attempt) -> Refused | None:
        """Return the guard's refusal of an attempt; None if it may go on, and then it is charged."""
        if not attempt.is_guarded or attempt.api_key is None:
            return None
        return self.guard.judge(
            attempt.api_key,
            attempt.user,
            attempt.client,
            is_check=attempt.is_check,
            user_is_signed=attempt.user_is_signed,
        )

    def _keeps_code(self, normalised: bytes, metadata: str) -> bool:
        """Whether metadata that is to be kept contains this code, or a minted one."""
        texts = [metadata, *strings_in(orjson.loads(metadata))]
        return _repeats_code(normalised, *texts) or self.resolver.contains_issued([metadata], anywhere=True)

    async def answer(self, attempt: Attempt, code: str) -> Outcome:
        """Do the same as ``submit``, and return the outcome."""
        outcome = self.await_outcome(attempt)
        self.submit(attempt, code)
        return await outcome

    async def answer_bound(self, attempt: Answerable, deadline: float | None = None) -> Outcome:
        """Run an attempt that is bound to its code already, and return the outcome."""
        outcome = self.await_outcome(attempt)
        attempt.deadline = self.dispatcher.deadline() if deadline is None else deadline
        try:
            self.dispatcher.send(attempt)
        except Fault as fault:
            attempt.failed(fault)
        return await outcome

    def await_outcome(self, attempt: Attempt | Answerable) -> asyncio.Future[Outcome]:
        """Return a future that gets the outcome of an attempt which the caller runs."""
        done: asyncio.Future[Outcome] = self._loop.create_future()

        def on_done(outcome: Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        attempt.on_done = on_done
        return done

    async def find(self, code: str, *stored: str | None) -> Issued:
        """Find the issued code of a typed text.

        ``stored`` are texts that will be stored, so they must not contain the code.

        Raises:
            Refusal: there is no such code, or one of the texts contains it.
            Fault: the code cannot be looked up now.
        """
        lookup = _Lookup(self._loop.create_future())
        if not self.resolver.read(code, lookup):
            raise Refusal("code_malformed")
        if _repeats_code(lookup.normalised, *stored):
            raise Refusal("malformed_request", _REPEATED)
        self.resolver.find(lookup)
        return await lookup.answered

    def contains_code(self, text: str) -> bool:
        """Whether a text is a minted code, or contains one that is written as it was issued."""
        return self.resolver.contains_issued((text,))

    def looks_like_code(self, text: str) -> bool:
        """Whether a text is written like a code, issued or not: to say so tells a guesser nothing."""
        return self.resolver.looks_like_code(text)

    def refuse_codes(self, *stored: str | None, reason: str | None = None) -> None:
        """Refuse texts to be stored that contain a minted code; in a reason, anywhere.

        Raises:
            Refusal: ``malformed_request``.
        """
        if self.resolver.contains_issued(stored) or self.resolver.contains_issued([reason], anywhere=True):
            raise Refusal("malformed_request", _ANOTHER)

    async def refuse_code_of(self, batch: int, serial: int, *stored: str | None) -> None:
        """Refuse texts to be stored that contain the code of this batch and serial.

        Of an imported code only the digest is known. So it is noticed only if it is a whole text, or a word
        of a text.

        Raises:
            Refusal: ``malformed_request``.
            Fault: the code cannot be looked up now.
        """
        texts = [text for text in stored if text]
        if not texts:
            return
        code = self.resolver.code_of(batch, serial)
        if code is None:
            repeated = await self.resolver.names_imported(texts, batch, serial)
        else:
            repeated = _repeats_code(code, *texts)
        if repeated:
            raise Refusal("malformed_request", _REPEATED)
        self.refuse_codes(*texts)


class _Lookup(PendingLookup):
    """A look-up that ``Core.find`` awaits."""

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


def strings_in(value: object) -> list[str]:
    """Return all strings in a JSON value, names of fields included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *chain.from_iterable(map(strings_in, value.values()))]
    return list(chain.from_iterable(map(strings_in, value))) if isinstance(value, list) else []


def _repeats_code(normalised: bytes, *texts: str | None) -> bool:
    """Whether one of the texts contains the code, in any spelling: no code may be stored (P7).

    With or without a prefix, the last symbols of the typed text are the last symbols of the code. A code
    shorter than every minted code is an imported one. It may be an ordinary word, so only a text that is
    nothing but this word counts.
    """
    ending = normalised[-SHORTEST_CODE:]
    is_word = len(ending) < SHORTEST_CODE
    for text in texts:
        if text is None or (len(text) < len(ending) and text.isascii()):
            continue  # too short; other than ASCII may become longer: a ligature is several letters
        symbols = None if text.isascii() else normalise(text, characters_max=len(text))
        if symbols is None:
            symbols = all_symbols(text if text.isascii() else unicodedata.normalize("NFKC", text))
        if symbols == ending if is_word else ending in symbols:
            return True
    return False
