"""Encrypts secrets that the engine must be able to use, and that must not be readable in a stolen dump.

The key is derived from a mint key, as the pepper of imported codes is. So it is kept where the mint keys are
kept, outside both databases, and rotates with them: a secret names its mint key.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PURPOSE: Final = b"redeem signing secrets v1"
_NONCE_BYTES: Final = 12  # NIST SP 800-38D, section 8.2.2: random, 96 bits


class SealError(ValueError):
    """A secret was encrypted under another key, or for another place, or was changed."""


def seal(mint_key: bytes, secret: bytes, place: str) -> bytes:
    """Encrypt a secret with AES-256-GCM. ``place`` says where it is stored: elsewhere it does not open."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _cipher(mint_key).encrypt(nonce, secret, place.encode())


def open_sealed(mint_key: bytes, sealed: bytes, place: str) -> bytes:
    """Decrypt a secret.

    Raises:
        SealError: this mint key did not seal it for this place.
    """
    try:
        return _cipher(mint_key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
    except (InvalidTag, ValueError):
        raise SealError("a signing secret does not open with this mint key") from None


def _cipher(mint_key: bytes) -> AESGCM:
    return AESGCM(hmac.digest(mint_key, _PURPOSE, "sha256"))
