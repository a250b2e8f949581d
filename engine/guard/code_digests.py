"""Says whether two codes are the same one, to those who have the mint keys, and nothing else about them.

A digest that anybody can compute would help twice: a guesser could make up codes that share one, which count
as one code, and whoever reads Redis could try short codes by it.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from engine.codes.derived_keys import DerivedKeys
from engine.codes.mint_keys import MintKeyError

if TYPE_CHECKING:
    from engine.settings import Settings

DIGEST_BYTES: Final = 4
_PURPOSE: Final = b"redeem: digests of tried codes, v1"


class CodeDigests:
    """The digests of one worker: the same in every worker that has the same mint keys."""

    def __init__(self, settings: Settings) -> None:
        self._derived = DerivedKeys(settings, _PURPOSE)
        self._key = os.urandom(32)

    def renew(self) -> None:
        """Read the key again. While there are no mint keys, the latest stays, or one of this worker alone."""
        try:
            self._key = self._derived.all()[0]
        except MintKeyError:
            return

    def of(self, code: bytes) -> int:
        """Return 32 bits of BLAKE2b (RFC 7693) of a code, with the key."""
        return int.from_bytes(hashlib.blake2b(code, digest_size=DIGEST_BYTES, key=self._key).digest())
