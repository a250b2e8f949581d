"""Addresses and networks, as the guard compares them.

An IPv4 address stands for itself. An IPv6 address stands for its /64, because one customer has all of it
(RFC 6177). An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) is its IPv4 address.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final, NamedTuple

_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 96
BITS: Final = {4: 32, 6: 64}
"""How many bits of an address the guard looks at, by the version of the protocol."""
_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")
_LIKE_A_NETWORK: Final = re.compile(r"[0-9A-Fa-f:./\s]*")


class Network(NamedTuple):
    """A network: the first ``length`` bits of its addresses, as a number."""

    version: int
    length: int
    prefix: int

    def __str__(self) -> str:
        if self.version == 4:  # noqa: PLR2004 - the version
            made: ipaddress.IPv4Network | ipaddress.IPv6Network = ipaddress.IPv4Network(
                (self.prefix << (32 - self.length), self.length)
            )
            return str(made.network_address) if self.length == BITS[4] else str(made)
        return str(ipaddress.IPv6Network((self.prefix << (128 - self.length), self.length)))


def parse_address(text: str) -> Network | None:
    """Return the network that an address stands for; None if the text is no address."""
    try:
        packed = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        pass
    else:
        return Network(4, 32, int.from_bytes(packed))
    try:
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    if packed.startswith(_MAPPED):
        return Network(4, 32, int.from_bytes(packed[12:]))
    return Network(6, 64, int.from_bytes(packed[:8]))


def read_source(text: str) -> Network | str:
    """Return the network that a caller's text stands for; without an address, the text without outer spaces.

    Spaces around an address, a port, brackets and a zone (RFC 4007) are left out.
    """
    network = parse_address(text)
    if network is not None:
        return network
    bare = text.strip()
    return parse_address(without_port(bare).partition("%")[0]) or bare


def without_port(text: str) -> str:
    """Return an address without the brackets and the port that it may have."""
    found = _WITH_PORT.fullmatch(text)
    return text if found is None else found[1] or found[2] or ""


def one_spelling(text: str) -> str:
    """Return one text for all spellings of a source; of an address, of what it stands for."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return str(read_source(text))
    return text  # of an IPv4 address only one spelling is read


def parse_subject(text: str) -> Network | str | None:
    """Return what a block of a network is about: a network, or a text without an address (``unknown``).

    None if it is empty, or looks like a network that was mistyped.
    """
    network = parse_network(text)
    if network is not None:
        return network
    source = read_source(text)
    return None if isinstance(source, str) and _LIKE_A_NETWORK.fullmatch(source) else source


def parse_network(text: str) -> Network | None:
    """Return the network of an address or of CIDR notation; None if the text is neither.

    An IPv6 network that is smaller than a /64 becomes its /64.
    """
    address, slash, length = text.partition("/")
    whole = parse_address(address)
    if whole is None or not slash:
        return whole
    if not (length.isascii() and length.isdigit()):
        return None
    bits = int(length)
    if ":" in address and whole.version == 4:  # noqa: PLR2004 - the version
        bits -= _MAPPED_BITS
        most = 32
    else:
        most = 32 if whole.version == 4 else 128  # noqa: PLR2004 - the version
    if not 0 <= bits <= most:
        return None
    bits = min(bits, whole.length)
    return Network(whole.version, bits, whole.prefix >> (whole.length - bits))
