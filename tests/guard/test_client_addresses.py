"""The address of a client behind proxies: nobody can say that he is somebody else."""

from __future__ import annotations

import ipaddress
import random

import pytest

from engine.guard.client_addresses import TrustedProxies, client_address

PROXIES = TrustedProxies("10.0.0.0/8, 192.0.2.1, 2001:db8:ffff::/48")
PEER = "10.0.0.1"


def test_only_the_listed_networks_are_trusted() -> None:
    for trusted in ("10.255.0.1", "192.0.2.1", "2001:db8:ffff::1", "::ffff:10.0.0.1"):
        assert PROXIES.trusts(trusted), trusted
    for other in ("11.0.0.1", "192.0.2.2", "2001:db8:fffe::1", "", None, "10.0.0", "a", "10.0.0.1%eth0"):
        assert not PROXIES.trusts(other), other
    assert not TrustedProxies("")
    for wrong in ("10.0.0.0/8,x", "10.0.0.1/8", "10.0.0.0/33"):
        with pytest.raises(ValueError, match=r"\S"):
            TrustedProxies(wrong)


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6", "203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (["203.0.113.7 , ,10.0.0.2,"], "203.0.113.7"),
        (["6.6.6.6,2001:db8::1"], "2001:db8::1"),
        (["6.6.6.6,::ffff:203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        (["6.6.6.6, unknown"], PEER),
        (["6.6.6.6, " + "1" * 10_000], PEER),
        (["203.0.113.7;10.0.0.2"], PEER),
        ([""], PEER),
    ],
)
def test_the_last_address_that_is_not_a_proxy_is_the_client(values: list[str], address: str) -> None:
    assert client_address(PROXIES, PEER, "x-forwarded-for", values) == address


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["for=203.0.113.7"], "203.0.113.7"),
        (['for=6.6.6.6, For="203.0.113.7:4711";proto=https;by=10.0.0.1'], "203.0.113.7"),
        (['for="[2001:db8::1]:4711"', 'proto=http;for="10.0.0.2"'], "2001:db8::1"),
        (['for="6.6.6.6, for=203.0.113.7'], "203.0.113.7"),  # a quote that is never closed hides nothing
        (['for=6.6.6.6;by="a, for=203.0.113.7'], "203.0.113.7"),
        (["for=6.6.6.6, for=_hidden"], PEER),
        (["for=6.6.6.6, for=unknown, for=10.0.0.2"], "10.0.0.2"),
        (["for=6.6.6.6, proto=https"], PEER),
        (["203.0.113.7"], PEER),
        (["for=6.6.6.6,"], PEER),
    ],
)
def test_forwarded_is_read_in_the_same_way(values: list[str], address: str) -> None:
    assert client_address(PROXIES, PEER, "forwarded", values) == address


@pytest.mark.parametrize("seed", range(5))
def test_what_a_client_sends_never_decides(seed: int) -> None:
    """Whatever stands in front, the address that the proxy has seen is the one that counts."""
    chance = random.Random(seed)
    for _ in range(500):
        junk = "".join(chance.choices('0123456789abcdef.:,;="[] for\\', k=chance.randrange(60)))
        seen = str(ipaddress.ip_address(chance.randrange(11 << 24, 100 << 24)))
        behind = ["", ", 10.1.2.3", ", 10.1.2.3, 192.0.2.1"][chance.randrange(3)]
        assert client_address(PROXIES, PEER, "x-forwarded-for", [f"{junk}, {seen}{behind}"]) == seen
        said = f"{junk}, for={seen}{behind.replace(', ', ', for=')}"
        assert client_address(PROXIES, PEER, "forwarded", [said]) == seen
