"""Keys derived from the mint keys, for what the engine signs and checks itself.

So every worker and every restart has the same ones, none is stored, and they rotate with the mint keys.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Final

from engine.codes import mint_keys

if TYPE_CHECKING:
    from engine.settings import Settings

_READ_S: Final = 1.0


class DerivedKeys:
    """The keys of one process for one purpose, one for each mint key."""

    def __init__(self, settings: Settings, purpose: bytes) -> None:
        self._settings = settings
        self._purpose = purpose
        self._keys: list[bytes] = []
        self._read_at = float("-inf")

    def all(self) -> list[bytes]:
        """Return the keys, the oldest first. The file of the mint keys is read again after a while.

        The first key signs. All of them are good for checking: the first one may have been removed from one
        worker's file before another's.

        Raises:
            MintKeyError: the mint keys cannot be read.
        """
        now = time.monotonic()
        if now - self._read_at >= _READ_S:
            known = mint_keys.from_settings(self._settings).by_name
            self._keys = [hmac.digest(key, self._purpose, "sha256") for key in known.values()]
            self._read_at = now
        return self._keys
