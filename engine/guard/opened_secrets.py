"""Decrypts the signing secrets of API keys. Each is decrypted once and kept in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.codes import mint_keys
from engine.codes.mint_keys import MintKeyError
from engine.codes.sealing import SealError, open_sealed
from engine.errors import StoreUnavailable

if TYPE_CHECKING:
    from engine.settings import Settings
    from engine.store.configuration import CachedKey, CachedSecret

_REMEMBERED_MAX: Final = 1024


class OpenedSecrets:
    """The signing secrets that one worker has used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[CachedSecret, bytes] = {}

    def of(self, api_key: CachedKey, secret: CachedSecret) -> bytes:
        """Return a secret of an API key.

        Raises:
            StoreUnavailable: it cannot be decrypted here.
        """
        return self._opened.get(secret) or self._open(api_key, secret)

    def _open(self, api_key: CachedKey, secret: CachedSecret) -> bytes:
        try:
            mint_key = mint_keys.from_settings(self._settings).by_name[secret.mint_key]
            opened = open_sealed(mint_key, bytes.fromhex(secret.sealed), place(api_key.id, secret.id))
        except (KeyError, MintKeyError, SealError, OSError) as error:
            raise StoreUnavailable(
                f"the signing secret {secret.id} needs the mint key {secret.mint_key}: {error}"
            ) from error
        if len(self._opened) >= _REMEMBERED_MAX:
            self._opened.clear()
        self._opened[secret] = opened
        return opened


def place(api_key: str, secret: str) -> str:
    """Where a signing secret is stored, for ``sealing``: which one of which API key."""
    return f"{api_key} {secret}"
