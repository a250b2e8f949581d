"""A worker's table of the blocks and allows that are in force."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from engine.guard.addresses import BITS, Network, parse_network

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from engine.store.configuration import CachedBlock

NETWORK = "network"


class BlockTable:
    """Finds the block or the allow of a source. A look-up takes one step for each length of network in use.

    Attributes:
        on_change: called after each change of the table.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = _nothing
        self._places: dict[int, Hashable] = {}  # by the number of the block
        self._blocks: dict[Hashable, dict[int, CachedBlock]] = {}  # by place
        self._lengths: dict[int, Counter[int]] = {version: Counter() for version in BITS}

    def __len__(self) -> int:
        return len(self._places)

    def take(self, block: CachedBlock) -> None:
        """Add a block, or remove it if it was lifted."""
        self._drop(block.id)
        if not (block.lifted or _has_expired(block, _now_ms())):
            place = _place(block)
            if place is not None:
                self._places[block.id] = place
                self._blocks.setdefault(place, {})[block.id] = block
                if isinstance(place, Network):
                    self._lengths[place.version][place.length] += 1
        self.on_change()

    def _drop(self, number: int) -> None:
        place = self._places.pop(number, None)
        if place is None:
            return
        del self._blocks[place][number]
        if not self._blocks[place]:
            del self._blocks[place]
        if isinstance(place, Network):
            lengths = self._lengths[place.version]
            lengths[place.length] -= 1
            if not lengths[place.length]:
                del lengths[place.length]

    def verdict(self, key: str, user: str, address: Network | None, device: str | None) -> CachedBlock | None:
        """Return what is in force for a source: an allow if there is one, else a block, else None.

        ``key`` is the id of the API key; ``user`` may be empty.
        """
        places: list[Hashable] = [("key", key)]
        if user:
            places.append(("user", user))
        if device:
            places.append(("device", device))
        if address is not None:
            places += [
                Network(address.version, length, address.prefix >> (address.length - length))
                for length in self._lengths[address.version]
            ]
        now_ms, found, ended = _now_ms(), None, []
        for place in places:
            for block in self._blocks.get(place, {}).values():
                if _has_expired(block, now_ms):
                    ended.append(block.id)
                elif found is None or block.action == "allow":
                    found = block
        for number in ended:
            self._drop(number)
        if ended:
            self.on_change()
        return found


def _place(block: CachedBlock) -> Hashable | None:
    """Where a block is found; None if this version of the engine cannot read it."""
    return parse_network(block.subject) if block.kind == NETWORK else (block.kind, block.subject)


def _has_expired(block: CachedBlock, now_ms: int) -> bool:
    return block.expires_ms is not None and block.expires_ms <= now_ms


def _now_ms() -> int:
    return int(time.time() * 1000)


def _nothing() -> None:
    """Do nothing: the callback until another is set."""
