from collections.abc import Callable, Sequence

from cryptography.utils import Buffer

from engine.codes.direct_aes import DirectAes

class Decryptor:
    def __init__(
        self,
        aes: DirectAes | None,
        update_into: Callable[[Buffer, Buffer], int],
        rounds: Sequence[tuple[int, int]],
        sum_bytes: int,
        is_binary: bool,
    ) -> None: ...
    def decrypt_many(self, numbers: Sequence[int]) -> list[int]: ...
    def decode_many(
        self, codes: Sequence[bytes], values: bytes, radix: int, length: int, check: int
    ) -> list[tuple[int, int] | None]: ...
