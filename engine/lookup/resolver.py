"""Finds issued codes for typed texts, all texts of one turn of the event loop together.

If a text is not a minted code, it is looked up among the imported codes. There is one such look-up at a time;
texts that arrive meanwhile form the next. Before a code is reported as unknown, the worker's copy of the
configuration is refreshed from Redis, because the code's batch may have been issued a moment ago.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from engine.codes.formats import IMPOSSIBLE_PREFIX, normalise, split, stand_in
from engine.codes.mint_keys import MintKeyError
from engine.errors import ContractViolation, Fault, Overloaded, StoreUnavailable
from engine.lookup.decoder import Decoder
from engine.lookup.imported import ImportedCodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.lookup.decoder import Issued, Reading
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)


class PendingLookup(ABC):
    """A look-up of a typed code. Exactly one of ``found``, ``refused`` and ``failed`` is called, once.

    Attributes:
        normalised: the typed text after ``formats.normalise``.
        readings: the ways to read it, under the prefixes that are known.
        version: version of the configuration that it is first looked up in.
        deadline: by the event loop's clock; after it the caller does not wait any more.
        looked_up_alike: it goes through ``find_alike``.
        minted: of such a one, the minted code that was found, while it also waits for the imported codes.
    """

    __slots__ = ("deadline", "minted", "normalised", "readings", "version")

    normalised: bytes
    readings: list[Reading]
    version: int
    deadline: float
    looked_up_alike: ClassVar[bool] = False
    minted: Issued | None

    @abstractmethod
    def found(self, code: Issued) -> None:
        """Take the issued code."""

    @abstractmethod
    def refused(self, outcome: str) -> None:
        """Take the refusal: ``code_not_found`` or ``code_malformed``."""

    @abstractmethod
    def failed(self, fault: Fault) -> None:
        """Take the fault: the code cannot be looked up now."""

    def still_allowed(self) -> bool:
        """Whether to go on after a configuration change. If not, it has answered itself."""
        return True


class Resolver:
    """Finds the issued codes for all attempts of one worker."""

    def __init__(self, settings: Settings, configuration: ConfigurationCache) -> None:
        self._settings = settings
        self._configuration = configuration
        self._decoder = Decoder(settings, configuration)
        self._imported = ImportedCodes(settings, configuration)
        self._loop = asyncio.get_running_loop()
        self._undecoded: list[PendingLookup] = []
        self._has_alike = False  # one of them came through ``find_alike``
        self._not_minted: list[PendingLookup] = []
        self._unresolved: list[PendingLookup] = []
        self._unknown = 0  # look-ups in ``_confirm`` or before it
        self._looking_up: asyncio.Task[None] | None = None
        self._confirming: asyncio.Task[None] | None = None

    def mint_key_problem(self) -> str:
        """What is wrong with the mint keys of this process now; empty if nothing is."""
        self._decoder.refresh()
        other, missing = self._decoder.other, self._decoder.missing - self._decoder.other
        problems = [f"missing: {', '.join(sorted(missing))}"] if missing else []
        if other:
            problems.append(f"not those of this deployment: {', '.join(sorted(other))}")
        return "; ".join(problems)

    async def close(self) -> None:
        """Wait for the look-ups in flight, then disconnect."""
        if self._looking_up:
            await asyncio.gather(self._looking_up, return_exceptions=True)
        if self._confirming:  # the task above may have started it
            await asyncio.gather(self._confirming, return_exceptions=True)
        await self._imported.close()

    def read(self, typed: str, lookup: PendingLookup) -> bool:
        """Read a typed text into a look-up. False if no issued code can look like this."""
        normalised = normalise(typed, characters_max=self._settings.code_length_max)
        if not normalised:
            return False
        lookup.normalised = normalised
        lookup.readings = split(normalised, self._configuration.prefixes)
        lookup.version = self._configuration.version
        lookup.deadline = self._loop.time() + self._settings.attempt_deadline_ms / 1000
        return len(normalised) >= self._settings.import_code_symbols_min

    def contains_issued(self, texts: Iterable[str | None], *, anywhere: bool = False) -> bool:
        """Whether one of the texts contains a minted code (``Decoder.contains_issued``)."""
        return self._decoder.contains_issued(texts, anywhere=anywhere)

    def shortest_code(self) -> int:
        """An ASCII text with fewer characters contains no minted code (``Decoder.shortest_code``)."""
        return self._decoder.shortest_code()

    def code_of(self, batch: int, serial: int) -> bytes | None:
        """The symbols of a minted code, without prefix; None if imported, or if its mint key is missing."""
        return self._decoder.code_of(batch, serial)

    async def names_imported(self, texts: Sequence[str], batch: int, serial: int) -> bool:
        """Whether one of the texts, or a word of a text, is the imported code of this batch and serial.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        words = {word for text in texts for word in (text, *text.split())}
        codes = [normalise(word, characters_max=self._settings.code_length_max) for word in words]
        found = await self._imported.find(
            [code for code in codes if code], self._decoder.digesters, self._decoder.imported_batches
        )
        return any(
            code is not None and (code.batch.id, code.serial) == (batch, serial) for code in found.codes
        )

    def find(self, lookup: PendingLookup) -> None:
        """Start to find the code that ``read`` has read.

        Decoding needs no other part, so a minted code is never refused here. Codes that were not minted wait
        for Redis in bounds of their own: made-up codes take no place of valid ones.
        """
        self._undecoded.append(lookup)
        if len(self._undecoded) == 1:
            self._loop.call_soon(self._decode)
        elif len(self._undecoded) >= self._settings.queue_max:
            self._decode()

    def find_alike(self, lookup: PendingLookup) -> None:
        """Do as ``find`` does, in a time that does not say whether the code exists or who made it.

        Something is decoded for a text that no format has, too. If there are imported codes, a minted one is
        looked up among them too. A code that is not found is refused without a refresh of the configuration:
        the script call that its caller makes finds out.
        """
        self._has_alike = True
        lookup.minted = None
        lookup.readings = lookup.readings or [stand_in(lookup.normalised)]
        self.find(lookup)

    def looks_like_code(self, text: str) -> bool:
        """Whether a text is written like a code (``Decoder.looks_like_code``)."""
        return self._decoder.looks_like_code(text)

    def _decode(self) -> None:
        """Decode all codes of one turn of the event loop. Codes that were not minted go to the next step."""
        lookups, self._undecoded = self._undecoded, []
        if not lookups:
            return
        has_alike, self._has_alike = self._has_alike, False
        unresolved = self._resolve(lookups, has_alike=has_alike)
        if not unresolved:
            return
        if self._decoder.imported_batches == 0:
            self._leave_to_confirm(unresolved)
            return
        self._not_minted += _admit(unresolved, self._settings.queue_max - len(self._not_minted))
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.create_task(self._look_up_all())

    def _leave_to_confirm(self, unresolved: list[PendingLookup]) -> None:
        others = []
        for lookup in unresolved:
            if lookup.looked_up_alike:
                self._not_found(lookup)
            else:
                others.append(lookup)
        if not others:
            return
        admitted = _admit(others, self._settings.unknown_codes_max - self._unknown)
        if not admitted:
            return
        self._unknown += len(admitted)
        self._unresolved += admitted
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm())

    async def _look_up_all(self) -> None:
        """Look up codes that were not minted. Codes that arrive during a look-up form the next one."""
        while self._not_minted:
            lookups, self._not_minted = self._not_minted, []
            unresolved = await self._look_up(lookups)
            if unresolved:
                self._leave_to_confirm(unresolved)

    async def _look_up(self, lookups: list[PendingLookup]) -> list[PendingLookup]:
        """Look up imported codes and pass them on. Returns the look-ups that found no code."""
        if self._decoder.imported_batches == 0:
            return lookups
        latest = self._loop.time() + self._imported.patience_s
        for lookup in [lookup for lookup in lookups if lookup.deadline <= latest]:
            lookup.failed(Overloaded("the look-up waited too long"))
        lookups = [lookup for lookup in lookups if lookup.deadline > latest]
        try:
            found = await self._imported.find(
                [lookup.normalised for lookup in lookups],
                self._decoder.digesters,
                self._decoder.imported_batches,
            )
        except Exception as error:  # noqa: BLE001 - every look-up gets an answer, after any error
            fault = _fault_of(error)
            for lookup in lookups:
                lookup.failed(fault)
            return []
        codes = [
            lookup.minted if lookup.looked_up_alike and lookup.minted else code
            for lookup, code in zip(lookups, found.codes, strict=True)
        ]
        unresolved = self._send_on(lookups, codes)
        if unresolved and not found.complete:
            for lookup in unresolved:
                lookup.failed(StoreUnavailable("Redis does not have all imported codes yet"))
            return []
        return unresolved

    async def _confirm(self) -> None:
        while self._unresolved:
            unresolved, self._unresolved = self._unresolved, []
            try:
                await self._look_up_again(unresolved)
            finally:
                self._unknown -= len(unresolved)

    async def _look_up_again(self, unresolved: list[PendingLookup]) -> None:
        """Refresh the configuration. If it changed, look the codes up again before they are refused."""
        try:
            async with asyncio.timeout_at(unresolved[0].deadline):
                await self._configuration.confirm()
        except Exception as error:  # noqa: BLE001 - every look-up gets an answer, after any error
            fault = _fault_of(error)
            for lookup in unresolved:
                lookup.failed(fault)
            return
        if self._configuration.version != unresolved[0].version:  # the first has the oldest version
            unresolved = [lookup for lookup in unresolved if lookup.still_allowed()]
            for lookup in unresolved:
                lookup.readings = split(lookup.normalised, self._configuration.prefixes)
            unresolved = await self._look_up(self._resolve(unresolved))
        for lookup in unresolved:
            self._not_found(lookup)

    def _resolve(self, lookups: list[PendingLookup], *, has_alike: bool = False) -> list[PendingLookup]:
        """Decode minted codes and pass them on. Returns the look-ups that found no code."""
        try:
            issued = self._decoder.find([lookup.readings for lookup in lookups])
        except Exception as error:  # noqa: BLE001 - every look-up gets an answer, after any error
            no_keys = isinstance(error, MintKeyError)
            reason = str(error) if no_keys else type(error).__name__
            _log.error("cannot decode codes", extra={"error": reason})
            for lookup in lookups:
                lookup.failed(StoreUnavailable(reason) if no_keys else ContractViolation(reason))
            return []
        if has_alike and self._decoder.imported_batches:
            issued = [_set_aside(lookup, code) for lookup, code in zip(lookups, issued, strict=True)]
        return self._send_on(lookups, issued)

    def _send_on(self, lookups: list[PendingLookup], issued: list[Issued | None]) -> list[PendingLookup]:
        """Pass on the codes that were found. Returns the look-ups without a code."""
        unresolved = []
        for lookup, code in zip(lookups, issued, strict=True):
            if code is None:
                unresolved.append(lookup)
                continue
            try:
                lookup.found(code)
            except Fault as fault:
                lookup.failed(fault)
            except Exception:  # noqa: BLE001 - even after a bug of ours every look-up gets an answer
                _log.exception("an attempt failed after its code was found")
                lookup.failed(ContractViolation("the attempt failed after its code was found"))
        return unresolved

    def _not_found(self, lookup: PendingLookup) -> None:
        """Refuse the look-up. If mint keys are missing here, fail it: the code may belong to one of them."""
        if self._decoder.missing:
            lookup.failed(StoreUnavailable("mint keys are missing"))
        else:
            readings = lookup.readings  # a stand-in is the only one
            is_written_so = bool(readings) and readings[0][2] != IMPOSSIBLE_PREFIX
            could_be = is_written_so or self._decoder.imported_batches
            lookup.refused("code_not_found" if could_be else "code_malformed")


def _set_aside(lookup: PendingLookup, code: Issued | None) -> Issued | None:
    """Keep the minted code of a look-up that must wait for the imported codes all the same."""
    if not lookup.looked_up_alike:
        return code
    lookup.minted = code
    return None


def _admit(lookups: list[PendingLookup], places: int) -> list[PendingLookup]:
    """Return as many look-ups as there are places; the others are refused at once."""
    places = max(0, places)
    for lookup in lookups[places:]:
        lookup.failed(Overloaded("too many unknown codes wait"))
    return lookups[:places]


def _fault_of(error: Exception) -> Fault:
    """The fault for an error during a look-up in Redis."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable("Redis does not answer")
    _log.error("a look-up in Redis failed", extra={"error": type(error).__name__}, exc_info=error)
    return ContractViolation(type(error).__name__)
