"""AES in the OpenSSL that Python's own ``hashlib`` uses, as addresses that compiled code calls.

``cryptography`` takes a fifth of a microsecond to get from Python to OpenSSL. FF1 makes ten calls of AES for
the codes of one turn of the event loop, however few, so that is most of their price. Compiled code calls
OpenSSL itself. Where Python has no such library that can be called, there is no ``DirectAes``, and
``cryptography`` is called.
"""

from __future__ import annotations

import importlib
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_KIND_OF_KEY: Final = {16: "EVP_aes_128_ecb", 24: "EVP_aes_192_ecb", 32: "EVP_aes_256_ecb"}
_TRIED: Final = bytes(range(32))  # two blocks


class DirectAes:
    """AES under one key: the addresses of a cipher context and of ``EVP_EncryptUpdate``.

    The context is freed, and its key wiped, when the object goes. Two threads must not use it at once.

    Raises:
        ImportError, OSError, AttributeError: there is no OpenSSL that can be called.
    """

    def __init__(self, key: bytes) -> None:
        import ctypes  # noqa: PLC0415 - a Python may be without it

        library = ctypes.CDLL(importlib.import_module("_hashlib").__file__)
        address = ctypes.c_void_p
        kind = library[_KIND_OF_KEY[len(key)]]
        make, free = library.EVP_CIPHER_CTX_new, library.EVP_CIPHER_CTX_free
        begin, update = library.EVP_EncryptInit_ex, library.EVP_EncryptUpdate
        kind.restype = make.restype = address
        begin.argtypes = [address, address, address, ctypes.c_char_p, ctypes.c_char_p]
        free.argtypes, free.restype = [address], None
        written = ctypes.POINTER(ctypes.c_int)
        update.argtypes = [address, ctypes.c_char_p, written, ctypes.c_char_p, ctypes.c_int]
        self.context: Final[int] = make() or 0
        weakref.finalize(self, free, self.context).atexit = False
        self.update: Final[int] = ctypes.cast(update, address).value or 0
        self._update: Final = update
        if not self.context or begin(self.context, kind(), None, key, None) != 1:
            raise OSError("OpenSSL refuses the key")

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks."""
        import ctypes  # noqa: PLC0415 - a Python may be without it

        output, written = ctypes.create_string_buffer(len(blocks)), ctypes.c_int()
        if self._update(self.context, output, ctypes.byref(written), blocks, len(blocks)) != 1:
            raise OSError("OpenSSL does not encrypt")
        return output.raw[: written.value]


def direct_aes(key: bytes, update: Callable[[bytes], bytes]) -> DirectAes | None:
    """Return AES under this key, if it can be called here and encrypts as ``update`` does."""
    try:
        made = DirectAes(key)
        return made if made.encrypt(_TRIED) == update(_TRIED) else None
    except (OSError, AttributeError, ImportError):
        return None
