"""From what was typed to the code that was issued, for all that is asked in one turn of the event loop.

What was not minted is looked up among the imported codes, if there are any. A code that cannot
be found is called unknown only after the worker's copy of the configuration was compared with
Redis: its batch may have been issued a moment ago.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from engine.codes.formats import normalise, split
from engine.codes.mint_keys import MintKeyError
from engine.errors import ContractViolation, Fault, Overloaded, StoreUnavailable
from engine.lookup.decoder import Decoder
from engine.lookup.imported import ImportedCodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.lookup.decoder import Issued, Reading
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)


class PendingLookup(ABC):
    """A lookup of a code that was typed. One of ``found``, ``refused`` and ``failed`` is called, once.

    Attributes:
        normalised: what was typed, as ``formats.normalise`` has it.
        readings: the ways to read it under the prefixes known when it came.
        version: of the configuration that it is looked up in at first.
        deadline: of the event loop's clock; past it nobody waits any more.
    """

    __slots__ = ("deadline", "normalised", "readings", "version")

    normalised: bytes
    readings: list[Reading]
    version: int
    deadline: float

    @abstractmethod
    def found(self, code: Issued) -> None:
        """This is it."""

    @abstractmethod
    def refused(self, outcome: str) -> None:
        """It is none: ``code_not_found`` or ``code_malformed``."""

    @abstractmethod
    def failed(self, fault: Fault) -> None:
        """Nobody can tell, for this reason."""

    def still_allowed(self) -> bool:
        """Whether to go on after a change of configuration; False: it has answered itself."""
        return True


class Resolver:
    """Finds codes for one worker."""

    def __init__(self, settings: Settings, configuration: ConfigurationCache) -> None:
        self._settings = settings
        self._configuration = configuration
        self._decoder = Decoder(settings, configuration)
        self._imported = ImportedCodes(settings, configuration)
        self._loop = asyncio.get_running_loop()
        self._undecoded: list[PendingLookup] = []
        self._not_minted: list[PendingLookup] = []
        self._unresolved: list[PendingLookup] = []
        self._looking_up: asyncio.Task[None] | None = None
        self._confirming: asyncio.Task[None] | None = None

    @property
    def missing_mint_keys(self) -> frozenset[str]:
        """Names of mint keys that codes were issued under, and that this process was not given."""
        return self._decoder.missing

    async def close(self) -> None:
        """Answer whoever still waits."""
        if self._looking_up:
            await asyncio.gather(self._looking_up, return_exceptions=True)
        if self._confirming:  # perhaps only since the other has ended
            await asyncio.gather(self._confirming, return_exceptions=True)
        await self._imported.close()

    def read(self, typed: str, lookup: PendingLookup) -> bool:
        """Take what was typed; False where it cannot be a code, whatever was issued."""
        normalised = normalise(typed, characters_max=self._settings.code_length_max)
        if not normalised:
            return False
        lookup.normalised = normalised
        lookup.readings = split(normalised, self._configuration.prefixes)
        lookup.version = self._configuration.version
        lookup.deadline = self._loop.time() + self._settings.attempt_deadline_ms / 1000
        return len(normalised) >= self._settings.import_code_symbols_min

    def code_of(self, batch: int, serial: int) -> bytes | None:
        """A minted code, normalised; None for an imported one, which is known by its digest only."""
        return self._decoder.code_of(batch, serial)

    async def names_imported(self, texts: Sequence[str], batch: int, serial: int) -> bool:
        """Whether one of the texts, or a word in it, is that imported code.

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
        """Find the code that ``read`` took.

        Raises:
            Overloaded: as many wait as may.
        """
        waiting = len(self._undecoded) + len(self._not_minted) + len(self._unresolved)
        if waiting >= self._settings.queue_max:
            raise Overloaded(f"{self._settings.queue_max} codes wait to be looked up")
        self._undecoded.append(lookup)
        if len(self._undecoded) == 1:
            self._loop.call_soon(self._decode)

    def _decode(self) -> None:
        """Decode all codes that came in one turn of the event loop, and send them on."""
        lookups, self._undecoded = self._undecoded, []
        unresolved = self._resolve(lookups)
        if not unresolved:
            return
        if self._decoder.imported_batches == 0:
            self._leave_to_confirm(unresolved)
            return
        self._not_minted += unresolved
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.create_task(self._look_up_all())

    def _leave_to_confirm(self, unresolved: list[PendingLookup]) -> None:
        self._unresolved += unresolved
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm())

    async def _look_up_all(self) -> None:
        """Look up what was not minted; all that comes during one look-up is in the next."""
        while self._not_minted:
            lookups, self._not_minted = self._not_minted, []
            unresolved = await self._look_up(lookups)
            if unresolved:
                self._leave_to_confirm(unresolved)

    async def _look_up(self, lookups: list[PendingLookup]) -> list[PendingLookup]:
        """Send on all that are imported codes; those that are none come back."""
        if self._decoder.imported_batches == 0:
            return lookups
        latest = self._loop.time() + self._imported.patience_s
        for lookup in [lookup for lookup in lookups if lookup.deadline <= latest]:
            lookup.failed(Overloaded("waited too long"))
        lookups = [lookup for lookup in lookups if lookup.deadline > latest]
        try:
            found = await self._imported.find(
                [lookup.normalised for lookup in lookups],
                self._decoder.digesters,
                self._decoder.imported_batches,
            )
        except Exception as error:  # noqa: BLE001 - everybody gets an answer, whatever it is
            fault = _fault_of(error)
            for lookup in lookups:
                lookup.failed(fault)
            return []
        unresolved = self._send_on(lookups, found.codes)
        if unresolved and not found.complete:
            for lookup in unresolved:
                lookup.failed(StoreUnavailable("Redis does not have all imported codes yet"))
            return []
        return unresolved

    async def _confirm(self) -> None:
        """Before a code is called unknown: is what we know of batches and keys still current?"""
        while self._unresolved:
            unresolved, self._unresolved = self._unresolved, []
            try:
                async with asyncio.timeout_at(unresolved[0].deadline):
                    await self._configuration.confirm()
            except Exception as error:  # noqa: BLE001 - everybody gets an answer, whatever it is
                fault = _fault_of(error)
                for lookup in unresolved:
                    lookup.failed(fault)
                continue
            if self._configuration.version != unresolved[0].version:  # of all, the first saw the oldest
                unresolved = [lookup for lookup in unresolved if lookup.still_allowed()]
                for lookup in unresolved:
                    lookup.readings = split(lookup.normalised, self._configuration.prefixes)
                unresolved = await self._look_up(self._resolve(unresolved))
            for lookup in unresolved:
                self._not_found(lookup)

    def _resolve(self, lookups: list[PendingLookup]) -> list[PendingLookup]:
        """Send on all whose code was issued; the others come back."""
        try:
            issued = self._decoder.find([lookup.readings for lookup in lookups])
        except Exception as error:  # noqa: BLE001 - everybody gets an answer, whatever it is
            away = isinstance(error, MintKeyError)
            reason = str(error) if away else type(error).__name__
            _log.error("codes cannot be decoded", extra={"error": reason})
            for lookup in lookups:
                lookup.failed(StoreUnavailable(reason) if away else ContractViolation(reason))
            return []
        return self._send_on(lookups, issued)

    def _send_on(self, lookups: list[PendingLookup], issued: list[Issued | None]) -> list[PendingLookup]:
        """Tell all whose code was found; the others come back."""
        unresolved = []
        for lookup, code in zip(lookups, issued, strict=True):
            if code is None:
                unresolved.append(lookup)
                continue
            try:
                lookup.found(code)
            except Fault as fault:
                lookup.failed(fault)
            except Exception:  # noqa: BLE001 - a bug of ours must not leave it, or those behind it, unanswered
                _log.exception("a code that was found could not be sent on")
                lookup.failed(ContractViolation("the code could not be sent on"))
        return unresolved

    def _not_found(self, lookup: PendingLookup) -> None:
        """No code that was issued; or one that cannot be read here for want of its key."""
        if self.missing_mint_keys:
            lookup.failed(StoreUnavailable("mint keys are missing"))
        else:
            could_be = lookup.readings or self._decoder.imported_batches
            lookup.refused("code_not_found" if could_be else "code_malformed")


def _fault_of(error: Exception) -> Fault:
    """What to say of an error while Redis was asked."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable("Redis cannot be asked")
    _log.error("Redis could not be asked", extra={"error": type(error).__name__}, exc_info=error)
    return ContractViolation(type(error).__name__)
