"""Addresses of simulated customers: each has one of its own, which follows from the run and the name."""

from __future__ import annotations

import ipaddress
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from loadtest.scenarios import Plan

_LOOPBACK: Final = ipaddress.ip_network("127.0.0.0/8")
_PRIVATE: Final = 0xFD << 120
"""RFC 4193, section 3.1: an address of a private network; 56 random bits name network and subnet."""


def is_loopback(url: str) -> bool:
    """Whether a URL has an address of IPv4 loopback, so that clients may come from any other of them."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.")


def address_of(plan: Plan, user: str) -> str:
    """Return the IPv6 address of a user: a /64 that no other has, as good as certainly."""
    digest = blake2b(f"{plan.run} {user}".encode(), digest_size=7).digest()
    return str(ipaddress.IPv6Address(_PRIVATE | int.from_bytes(digest) << 64 | 1))


def loopback_of(plan: Plan, user: str) -> str:
    """Return a loopback address from which a user may connect. Of 1,000 users, two may have the same."""
    digest = blake2b(f"{plan.run} {user}".encode(), digest_size=8).digest()
    return str(_LOOPBACK[2 + int.from_bytes(digest) % (_LOOPBACK.num_addresses - 4)])


def sources_of(plan: Plan, user: str) -> set[tuple[str, str]]:
    """Return what a block of this user, or of where it comes from, would name: kind and subject."""
    network = ipaddress.ip_network(f"{address_of(plan, user)}/64", strict=False)
    return {("user", user), ("network", str(network)), ("network", loopback_of(plan, user))}
