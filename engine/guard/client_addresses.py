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
    from collections.abc import Iterator, Sequence

    from multidict import MultiMapping

    from engine.settings import Settings

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

FORWARDED: Final = "forwarded"  # RFC 7239; every other header has bare addresses, separated by commas
# Forwarded, read backwards: a pair with its value in front of its name, or what stands between pairs. A
# quote is part of a quoted string if an odd number of backslashes escapes it.
_ESCAPED: Final = r"\\(?:\\\\)*(?!\\)"
_QUOTED: Final = rf'"(?!{_ESCAPED})(?:[^"]|"(?={_ESCAPED}))*"'
_PIECE: Final = re.compile(rf"""({_QUOTED}|[^\s",;=]*)=([!#$%&'*+.^_`|~0-9A-Za-z-]+)|[\s,;]""")
_HIDDEN_PORT: Final = re.compile(r":_[0-9A-Za-z._-]+$")  # RFC 7239, section 6.3
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
    header = ",".join(values)
    for text in _forwarded_for(header) if name == FORWARDED else _listed(header):
        address = _parsed(text)
        if address is None:
            return latest
        latest = str(address)
        if not proxies.trusts(latest):
            return latest
    return latest


def _listed(header: str) -> Iterator[str]:
    """The elements from the last to the first. An empty one is none (RFC 9110, section 5.6.1)."""
    return filter(None, map(str.strip, reversed(header.split(","))))


def _forwarded_for(header: str) -> Iterator[str]:
    """The parameters ``for`` of the elements of Forwarded (RFC 7239), from the last to the first.

    It is empty for an element that has none. The first malformed element is the last, because nobody knows
    where it begins. So a quote that the client opens hides nothing of what a proxy adds.
    """
    backwards, at = header[::-1], 0
    found: str | None = None
    while at < len(backwards):
        piece = _PIECE.match(backwards, at)
        is_for = piece is not None and piece[2] is not None and piece[2].lower() == "rof"
        if piece is None or (is_for and found is not None):
            yield ""  # malformed: also if ``for`` is there twice
            return
        at = piece.end()
        if piece[0] == ",":
            yield found or ""
            found = None
        elif is_for:
            found = _node(piece[1][::-1])
    yield found or ""


def _node(value: str) -> str:
    """The address in a parameter, a token or a quoted string, without a port that the proxy hides."""
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return _HIDDEN_PORT.sub("", value)


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
