"""The states of many codes as BITFIELD stores them: two bits a code, the first in a byte's highest bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_states(states: NDArray[np.uint8]) -> bytes:
    """Return the string of a segment of codes."""
    padded = np.zeros(-(-len(states) // 4) * 4, np.uint8)
    padded[: len(states)] = states
    first, second, third, fourth = padded.reshape(-1, 4).T
    return bytes((first << 6 | second << 4 | third << 2 | fourth).tobytes())


def unpack_states(value: bytes) -> NDArray[np.uint8]:
    """Return the states in a string: four for each byte."""
    content = np.frombuffer(value, np.uint8)
    return np.stack([content >> 6, content >> 4 & 3, content >> 2 & 3, content & 3], axis=1).reshape(-1)
