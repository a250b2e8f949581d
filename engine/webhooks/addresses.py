"""Says which addresses a webhook may call: public ones only, so that no webhook reaches internal services."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def is_public(text: str) -> bool:
    """Whether a text is a public address, in the form that sockets return.

    False for private, loopback, link-local (cloud metadata is there), shared, multicast and reserved
    addresses, for an IPv6 address that stands for one of these, and for a text that is no address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # without a zone
    except ValueError:
        return False
    address = _embedded_ipv4(address)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


def is_address(text: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
