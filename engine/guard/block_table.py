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
            place = self._places[block.id] = _place(block)
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

    def verdict(
        self, key: str, user: str, network: Network | str | None, device: str | None
    ) -> CachedBlock | None:
        """Return what is in force for a source: an allow if there is one, else a block, else None.

        ``key`` is the id of the API key; ``user`` may be empty. ``network`` is a text if it has no address.
        """
        now_ms, found, ended = _now_ms(), None, []
        for place in self._places_of(key, user, network, device):
            for block in self._blocks.get(place, {}).values():
                if _has_expired(block, now_ms):
                    ended.append(block.id)
                elif block.api_key is not None and block.api_key != key:
                    continue
                elif found is None or block.action == "allow":
                    found = block
        for number in ended:
            self._drop(number)
        if ended:
            self.on_change()
        return found

    def _places_of(
        self, key: str, user: str, network: Network | str | None, device: str | None
    ) -> list[Hashable]:
        places: list[Hashable] = [("key", key)]
        if user:
            places.append(("user", user))
        if device:
            places.append(("device", device))
        if network is not None:
            places += self._networks_of(network)
        return places

    def _networks_of(self, network: Network | str) -> list[Hashable]:
        if isinstance(network, str):
            return [(NETWORK, network)]
        return [
            Network(network.version, length, network.prefix >> (network.length - length))
            for length in self._lengths[network.version]
        ]


def _place(block: CachedBlock) -> Hashable:
    """Where a block is found."""
    network = parse_network(block.subject) if block.kind == NETWORK else None
    return network or (block.kind, block.subject)


def _has_expired(block: CachedBlock, now_ms: int) -> bool:
    return block.expires_ms is not None and block.expires_ms <= now_ms


def _now_ms() -> int:
    return int(time.time() * 1000)


def _nothing() -> None:
    """Do nothing: the callback until another is set."""
