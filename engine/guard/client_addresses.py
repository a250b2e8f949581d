"""Finds the address of a client behind proxies: in one header, and only what trusted proxies have said.

Proxies add their client's address to the end of the header. So it is read from the end, as long as the one
who said it is a trusted proxy. What stands before that was sent by the client, who can write anything.
"""

from __future__ import annotations

import ipaddress
import re
import time
from typing import TYPE_CHECKING, Final

from engine.guard.addresses import without_port
from engine.observability.metrics import CLIENT_ADDRESS_IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidict import MultiMapping

    from engine.settings import Settings

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

FORWARDED: Final = "forwarded"  # RFC 7239; every other header has bare addresses, separated by commas
_PAIR: Final = re.compile(r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s";,]*)')
_TEXT_LENGTH_MAX: Final = 64
_REMEMBERED_MAX: Final = 1024


class TrustedProxies:
    """The networks of the proxies that are believed."""

    def __init__(self, networks: str) -> None:
        """``networks``: addresses or networks in CIDR notation, separated by commas.

        Raises:
            ValueError: one of them is neither.
        """
        names = [name.strip() for name in networks.split(",") if name.strip()]
        self._networks: Networks = tuple(ipaddress.ip_network(name) for name in names)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, text: str | None) -> bool:
        """Whether the address of a peer is that of a trusted proxy."""
        if text is None or not self._networks:
            return False
        known = self._known.get(text)
        if known is None:
            address = _parsed(text)
            known = address is not None and any(address in network for network in self._networks)
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            self._known[text] = known
        return known


def client_address(proxies: TrustedProxies, peer: str, name: str, values: Sequence[str]) -> str:
    """Return the address of the client, from the values of the header ``name``; the peer is a trusted proxy.

    That is the last one which is not a trusted proxy. If an entry is no address, nobody knows who stands
    before: then it is that of the proxy which has written the entry.
    """
    latest = peer
    for entry in reversed(",".join(values).split(",")):
        text = _forwarded_for(entry) if name == FORWARDED else entry.strip()
        if not text and name != FORWARDED:
            continue  # RFC 9110, section 5.6.1: an empty element of a list is none
        address = _parsed(text)
        if address is None:
            return latest
        latest = str(address)
        if not proxies.trusts(latest):
            return latest
    return latest


def _forwarded_for(entry: str) -> str:
    """Return the parameter ``for`` of an element of Forwarded; empty if it has none or is malformed."""
    found = ""
    for pair in entry.strip().split(";"):
        match = _PAIR.fullmatch(pair.strip())
        if match is None:
            return ""
        if match[1].lower() == "for":
            found = match[2].strip('"')
    return found


def _parsed(text: str) -> Address | None:
    """Parse an address, with or without a port. An IPv4-mapped IPv6 address is its IPv4 address."""
    if len(text) > _TEXT_LENGTH_MAX or "%" in text:  # a zone means something on its own machine only
        return None
    try:
        address = ipaddress.ip_address(without_port(text))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class ClientAddresses:
    """Finds the addresses of the clients of one worker, as its settings say.

    Attributes:
        ignored: how often the header came from a peer that is no trusted proxy.
        ignored_peer: the latest such peer.
        ignored_at: when that was, by the monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings) -> None:
        self.ignored, self.ignored_peer, self.ignored_at = 0, "", float("-inf")
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._name = settings.client_address_header.lower()

    def find(self, peer: str | None, headers: MultiMapping[str]) -> str | None:
        """Return the address of the client; ``peer`` is who has connected, None if unknown."""
        if not self._name or peer is None:
            return peer
        values = headers.getall(self._name, [])
        if not values:
            return peer
        if not self._proxies.trusts(peer):
            CLIENT_ADDRESS_IGNORED.inc()
            self.ignored, self.ignored_peer, self.ignored_at = self.ignored + 1, peer, time.monotonic()
            return peer
        return client_address(self._proxies, peer, self._name, values)
