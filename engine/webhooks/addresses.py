"""Says which addresses a webhook may call: public ones only, so that no webhook reaches internal services.

The lists are those of the IANA registries of special-purpose addresses (RFC 6890), with the multicast and
reserved blocks. They stand here because Python's own lists differ from version to version. No endpoint has
an address for a special purpose, so those that are globally reachable (such as the relays of AS112) are
refused, too.

https://www.iana.org/assignments/iana-ipv4-special-registry
https://www.iana.org/assignments/iana-ipv6-special-registry
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SPECIAL_IPV4: Final = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
    *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4"),  # multicast; reserved, and the broadcast address
)
SPECIAL_IPV6: Final = (  # within 2000::/3; nothing outside of it is a public unicast address
    *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_IPV4_NETWORKS: Final = [ipaddress.IPv4Network(network) for network in SPECIAL_IPV4]
_IPV6_NETWORKS: Final = [ipaddress.IPv6Network(network) for network in SPECIAL_IPV6]
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def is_public(text: str) -> bool:
    """Whether a text is a public address, in the form that sockets return.

    False for private, loopback, link-local (cloud metadata is there), shared, multicast, reserved and tunnel
    addresses, for an IPv6 address that stands for one of these, and for a text that is no address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # without a zone
    except ValueError:
        return False
    address = _embedded_ipv4(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _IPV4_NETWORKS)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _IPV6_NETWORKS)


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address


def is_address(text: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
