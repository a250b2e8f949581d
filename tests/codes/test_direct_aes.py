"""AES that compiled code calls is the AES of cryptography, or it is not used."""

from __future__ import annotations

import _ctypes
import sys
from random import Random
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from engine.codes.direct_aes import DirectAes, direct_aes

RANDOM = Random(1)


@pytest.fixture
def openssl() -> None:
    """On Linux, Python calls OpenSSL through a library; elsewhere it may have it built in."""
    try:
        DirectAes(bytes(32))
    except (OSError, AttributeError):
        if sys.platform == "linux":
            raise
        pytest.skip("this Python has no OpenSSL that can be called")


@pytest.mark.usefixtures("openssl")
@pytest.mark.parametrize("key_bytes", [16, 24, 32])
def test_it_encrypts_as_cryptography_does(key_bytes: int) -> None:
    key = RANDOM.randbytes(key_bytes)
    expected = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the blocks that FF1 uses
    made = direct_aes(key, expected.update)
    assert made is not None
    for blocks in (1, 2, 5, 256):
        data = RANDOM.randbytes(16 * blocks)
        assert made.encrypt(data) == expected.update(data)


def test_an_openssl_that_encrypts_otherwise_is_not_used() -> None:
    assert direct_aes(bytes(32), lambda blocks: bytes(len(blocks))) is None


@pytest.mark.parametrize(
    "module", [None, SimpleNamespace(), _ctypes], ids=["missing", "built in", "without it"]
)
def test_a_python_without_an_openssl_that_can_be_called_has_none(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "_hashlib", module)
    assert direct_aes(bytes(32), bytes) is None
