"""From symbols to the batch and serial they were issued as, for many codes at once.

What this cannot find was never minted, as far as this worker's copy of the configuration
knows; Redis is not asked (P6). It may be an imported code, which ``imported`` looks up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.digests import Digester
from engine.codes.formats import FORMATS, LAST_SYMBOLS, mask, normalise_prefix
from engine.codes.mint_keys import MintKeyError
from engine.store.configuration import IMPORTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.codes.formats import Format
    from engine.settings import Settings
    from engine.store.configuration import CachedBatch, ConfigurationCache

_log = logging.getLogger(__name__)
# One way to read what was typed: format, symbols, normalised prefix (``formats.split``).
Reading = tuple["Format", bytes, bytes]


_HIDDEN: Final = "••••"
_SHOWN_PART: Final = 3  # of an imported code, which may be short, at most a third of the symbols is shown


class Issued(msgspec.Struct, frozen=True):
    """A code that was issued; ``format`` is None where it was imported."""

    batch: CachedBatch
    serial: int
    format: Format | None
    symbols: bytes

    @property
    def last4(self) -> str:
        """The symbols that may be shown: the last four, of a short code fewer."""
        shown = min(LAST_SYMBOLS, len(self.symbols) // (1 if self.format else _SHOWN_PART))
        return self.symbols[len(self.symbols) - shown :].decode()


def masked(batch: CachedBatch, last4: str) -> str:
    """A code of a batch as it is shown; of an imported one not even its length."""
    if batch.format == IMPORTED:
        return _HIDDEN + last4
    return mask(FORMATS[batch.format], last4)


class Decoder:
    """Decrypts under every mint key in use, and looks the result up in the configuration.

    Attributes:
        missing: names of mint keys that codes were issued under, and that are not here.
        imported_batches: how many batches are imported.
        digesters: one for each mint key that they use, those of the newest batches first.
    """

    def __init__(self, settings: Settings, configuration: ConfigurationCache) -> None:
        self._settings = settings
        self._configuration = configuration
        self._seen_version = -1
        self._in_use: list[tuple[Format, str]] = []
        self.missing: frozenset[str] = frozenset()
        self.imported_batches = 0
        self.digesters: list[Digester] = []
        self._take_keys()

    def find(self, codes: Sequence[list[Reading]]) -> list[Issued | None]:
        """The issued code of each list of readings, or None."""
        if self._seen_version != self._configuration.version or self.missing:  # they may be there by now
            self._take_configuration()
        found: list[Issued | None] = [None] * len(codes)
        for fmt, key_name in self._in_use:
            here = [
                (at, reading)
                for at, readings in enumerate(codes)
                if found[at] is None
                for reading in readings
                if reading[0] is fmt
            ]
            if here:
                identities = self._codec.decode_many([reading[1] for _, reading in here], fmt, key_name)
                for (at, reading), identity in zip(here, identities, strict=True):
                    if identity is not None:
                        found[at] = self._issued(identity, key_name, reading)
        return found

    def code_of(self, batch: int, serial: int) -> bytes | None:
        """The symbols of a minted code, no prefix; None where it was imported, or its key is not here."""
        known = self._configuration.batches.get(batch)
        if known is None or known.format == IMPORTED or known.mint_key not in self._key_names:
            return None
        text = self._codec.code(known.mint_key, FORMATS[known.format], "", batch, serial)
        return text.replace("-", "").encode()

    def _issued(self, identity: tuple[int, int], key_name: str, reading: Reading) -> Issued | None:
        fmt, symbols, prefix = reading
        batch = self._configuration.batches.get(identity[0])
        if (
            batch is None
            or identity[1] >= batch.count
            or batch.format != fmt.name
            or batch.mint_key != key_name
            or prefix != (normalise_prefix(batch.prefix) if batch.prefix else b"")
        ):
            return None
        return Issued(batch, identity[1], fmt, symbols)

    def _take_configuration(self) -> None:
        """Which formats are in use under which keys, those of the newest batches first."""
        batches = self._configuration.batches
        if any(batch.mint_key not in self._key_names for batch in batches.values()):
            self._take_rotated_keys()
        in_use = {
            (batches[number].format, batches[number].mint_key): None
            for number in sorted(batches, reverse=True)
        }
        here = [(name, key) for name, key in in_use if key in self._key_names]
        self._in_use = [(FORMATS[name], key) for name, key in here if name != IMPORTED]
        self.imported_batches = sum(batch.format == IMPORTED for batch in batches.values())
        self.digesters = [self._digesters[key] for name, key in here if name == IMPORTED]
        missing = frozenset(key for _, key in in_use) - self._key_names
        if missing - self.missing:
            _log.error(
                "mint keys are missing: their codes cannot be redeemed here", extra={"keys": sorted(missing)}
            )
        self.missing = missing
        self._seen_version = self._configuration.version

    def _take_rotated_keys(self) -> None:
        try:
            self._take_keys()
        except MintKeyError as error:  # the codes of those we have are good all the same
            _log.error("the mint keys cannot be read again", extra={"error": str(error)})

    def _take_keys(self) -> None:
        by_name = mint_keys.from_settings(self._settings).by_name
        self._key_names = frozenset(by_name)
        self._codec = Codec(by_name)
        self._digesters = {name: Digester(key) for name, key in by_name.items()}
