"""Decodes symbols to the batch and serial of an issued code, for many codes at once, without Redis (P6).

A code that is not found here was not minted, according to this worker's copy of the configuration. It may be
an imported code: ``imported`` looks those up.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.digests import Digester
from engine.codes.formats import FORMATS, LAST_SYMBOLS, mask, normalise_prefix
from engine.codes.mint_keys import MintKeyError
from engine.codes.texts import Scanner, possible
from engine.store.configuration import IMPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.codes.formats import Format
    from engine.settings import Settings
    from engine.store.configuration import CachedBatch, ConfigurationCache

_log = logging.getLogger(__name__)
# One way to read a typed text: format, symbols, normalised prefix (``formats.split``).
Reading = tuple["Format", bytes, bytes]


_HIDDEN: Final = "••••"
_NONE_SHOWN: Final = "?"
_SHOWN_PART: Final = 3  # an imported code may be short, so at most a third of its symbols is shown


class Issued(msgspec.Struct, frozen=True, gc=False):
    """A code that was issued. ``format`` is None if it was imported."""

    batch: CachedBatch
    serial: int
    format: Format | None
    symbols: bytes

    @property
    def last4(self) -> str:
        """The symbols that may be shown: the last four, or fewer of a short imported code.

        Never empty: an event without it is that of a range of codes.
        """
        shown = min(LAST_SYMBOLS, len(self.symbols) // (1 if self.format else _SHOWN_PART))
        return self.symbols[len(self.symbols) - shown :].decode() or _NONE_SHOWN


class _Minted(NamedTuple):
    """The batches of one format under one mint key, by id; each with its count and its normalised prefix."""

    fmt: Format
    key_name: str
    batches: dict[int, tuple[CachedBatch, int, bytes]]


def _minted(fmt: Format, key_name: str, batches: list[CachedBatch]) -> _Minted:
    return _Minted(
        fmt,
        key_name,
        {
            batch.id: (batch, batch.count, normalise_prefix(batch.prefix) if batch.prefix else b"")
            for batch in batches
        },
    )


def masked(batch: CachedBatch, last4: str) -> str:
    """Mask a code of a batch. The mask of an imported code does not show its length either."""
    if batch.format == IMPORTED:
        return _HIDDEN + last4
    return mask(FORMATS[batch.format], last4)


class Decoder:
    """Decrypts codes under every mint key in use, and looks up the result in the configuration.

    Attributes:
        missing: names of mint keys that batches use and this process does not have.
        other: those of them under whose name this process has another key.
        imported_batches: how many batches are imported.
        digesters: one for each mint key of imported batches, those of the newest batches first.
    """

    def __init__(self, settings: Settings, configuration: ConfigurationCache) -> None:
        self._settings = settings
        self._configuration = configuration
        self._taken_version = -1
        self._in_use: list[_Minted] = []
        self._formats: tuple[Format, ...] = ()
        self._scanner = Scanner((), ())
        self._key_names: frozenset[str] = frozenset()
        self._digesters: dict[str, Digester] = {}
        self.missing: frozenset[str] = frozenset()
        self.other: frozenset[str] = frozenset()
        self.imported_batches = 0
        self.digesters: list[Digester] = []
        self._take_keys()

    def find(self, codes: Sequence[list[Reading]]) -> list[Issued | None]:
        """Find the issued code of each list of readings, or None."""
        self.refresh()
        if len(self._in_use) == 1:  # the usual case: one format and key are in use, each text has one reading
            plain = [readings[0] for readings in codes if len(readings) == 1]
            if len(plain) == len(codes):
                return self._issued(self._in_use[0], plain)
        found: list[Issued | None] = [None] * len(codes)
        for minted in self._in_use:
            candidates = [
                (at, reading)
                for at, readings in enumerate(codes)
                if found[at] is None
                for reading in readings
                if reading[0] is minted.fmt
            ]
            issued = self._issued(minted, [reading for _, reading in candidates])
            for (at, _), code in zip(candidates, issued, strict=True):
                found[at] = code
        return found

    def refresh(self) -> None:
        """Take the configuration, if it is newer or if mint keys are missing: one may have been added."""
        if self._taken_version != self._configuration.version or self.missing:
            self._take_configuration()

    def shortest_code(self) -> int:
        """An ASCII text with fewer characters contains no minted code; 0 while mint keys are missing.

        Valid as long as the configuration has the same version.
        """
        self.refresh()
        return 0 if self.missing else self._scanner.shortest

    def code_of(self, batch: int, serial: int) -> bytes | None:
        """The symbols of a minted code, without prefix; None if imported, or if its mint key is missing."""
        cached = self._configuration.batches.get(batch)
        if cached is None or cached.format == IMPORTED or cached.mint_key not in self._key_names:
            return None
        text = self._codec.code(cached.mint_key, FORMATS[cached.format], "", batch, serial)
        return text.replace("-", "").encode()

    def contains_issued(self, texts: Iterable[str | None], *, anywhere: bool = False) -> bool:
        """Whether one of the texts contains a minted code, with or without its prefix.

        ``anywhere``: look at every part of the texts, not only at what is written like a code.
        """
        self.refresh()
        for text in texts:
            if not text or (len(text) < self._scanner.shortest and text.isascii()):
                continue  # too short; other than ASCII may become longer: a ligature is several letters
            candidates = possible(text, self._formats) if anywhere else self._scanner.likely(text)
            if candidates and self._any_issued(candidates):
                return True
        return False

    def looks_like_code(self, text: str) -> bool:
        """Whether a text has a part that is written like a minted code, whether it was issued or not."""
        self.refresh()
        return bool(self._scanner.likely(text))

    def _any_issued(self, candidates: list[tuple[Format, bytes]]) -> bool:
        for fmt, key_name, batches in self._in_use:
            symbols = [symbols for candidate, symbols in candidates if candidate is fmt]
            for identity in self._codec.decode_many(symbols, fmt, key_name) if symbols else ():
                if identity is not None and (known := batches.get(identity[0])) is not None:
                    _, count, _ = known
                    if identity[1] < count:
                        return True
        return False

    def _issued(self, minted: _Minted, readings: list[Reading]) -> list[Issued | None]:
        """Find the issued code of each reading, or None. One of another format has another length."""
        fmt, key_name, batches = minted
        if not readings:
            return []
        found: list[Issued | None] = []
        identities = self._codec.decode_many([reading[1] for reading in readings], fmt, key_name)
        for (_, symbols, prefix), identity in zip(readings, identities, strict=True):
            issued = None
            if identity is not None and (known := batches.get(identity[0])) is not None:
                batch, count, own_prefix = known
                if identity[1] < count and prefix == own_prefix:
                    issued = Issued(batch, identity[1], fmt, symbols)
            found.append(issued)
        return found

    def _take_configuration(self) -> None:
        """Find out which formats are in use under which mint keys, those of the newest batches first."""
        batches = self._configuration.batches
        if any(batch.mint_key not in self._key_names for batch in batches.values()):
            self._take_rotated_keys()
        self.other = frozenset(
            batch.mint_key
            for batch in batches.values()
            if batch.key_check and self._checks.get(batch.mint_key, batch.key_check) != batch.key_check
        )
        self._key_names = frozenset(self._checks) - self.other
        in_use: defaultdict[tuple[str, str], list[CachedBatch]] = defaultdict(list)
        for _, batch in sorted(batches.items(), reverse=True):
            in_use[batch.format, batch.mint_key].append(batch)
        usable = [(name, key) for name, key in in_use if key in self._key_names]
        self._in_use = [
            _minted(FORMATS[name], key, in_use[name, key]) for name, key in usable if name != IMPORTED
        ]
        self._formats = tuple({minted.fmt: None for minted in self._in_use})
        self._scanner = Scanner(self._formats, self._configuration.prefixes)
        self.imported_batches = sum(batch.format == IMPORTED for batch in batches.values())
        self.digesters = [self._digesters[key] for name, key in usable if name == IMPORTED]
        missing = frozenset(key for _, key in in_use) - self._key_names
        if missing - self.missing:
            _log.error(
                "mint keys are missing: their codes cannot be redeemed here", extra={"keys": sorted(missing)}
            )
        self.missing = missing
        self._taken_version = self._configuration.version

    def _take_rotated_keys(self) -> None:
        try:
            self._take_keys()
        except MintKeyError as error:  # codes of the keys that we have can still be decoded
            _log.error("the mint keys cannot be read again", extra={"error": str(error)})

    def _take_keys(self) -> None:
        by_name = mint_keys.from_settings(self._settings).by_name
        self._checks = {name: mint_keys.check_value(key).hex() for name, key in by_name.items()}
        self._key_names = frozenset(by_name)
        self._codec = Codec(by_name)
        self._digesters = {name: Digester(key) for name, key in by_name.items()}
