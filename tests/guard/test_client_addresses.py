"""The address of a client behind proxies: nobody can say that he is somebody else."""

from __future__ import annotations

import ipaddress
import random
import re

import pytest

from engine.guard.client_addresses import TrustedProxies, client_address

PROXIES = TrustedProxies("10.0.0.0/8, 192.0.2.1, 2001:db8:ffff::/48")
PEER = "10.0.0.1"
SYMBOLS = ',;= x"\\'


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
        (['for=6.6.6.6, by=_a;FOR="203.0.113.7:_b.c-d";'], "203.0.113.7"),  # empty pairs and hidden ports
        (['for=6.6.6.6, for="[2001:db8::1]:_b"'], "2001:db8::1"),
        (['for=6.6.6.6, ;for="[2001:db8::1]"; by="[::1]"'], "2001:db8::1"),
        (["for=6.6.6.6, for=2001:db8::1"], "2001:db8::1"),  # without the brackets that it should have
        ([r'for=6.6.6.6, for="203.0.113.7";note="a, for=9.9.9.9; \", for=8.8.8.8"'], "203.0.113.7"),
        ([r'for=6.6.6.6, note="\\";for="\203.0.113.\7"'], "203.0.113.7"),
        (['for="6.6.6.6\\', "for=203.0.113.7"], "203.0.113.7"),  # an escape before the comma
        ([r'for="6.6.6.6\", for="203.0.113.7"'], "203.0.113.7"),
        (['for="6.6.6.6, for="203.0.113.7"'], "203.0.113.7"),
        (["for=6.6.6.6, for=203.0.113.7;for=9.9.9.9"], PEER),
        (["for=6.6.6.6, for=203.0.113.7;for="], PEER),
        (["for=6.6.6.6, for=;for=203.0.113.7"], PEER),
        (["for=6.6.6.6, for=203.0.113.7 9.9.9.9"], PEER),
        (['for=6.6.6.6, for="203.0.113.7"9'], PEER),
        (["for=6.6.6.6, for = 203.0.113.7"], PEER),
        (['for=6.6.6.6, for="203.0.113.7'], PEER),
        (['for=6.6.6.6, for="2001:db8::1%eth0"'], PEER),
        (["for=6.6.6.6, for=203.0.113.007"], PEER),
        (["for=6.6.6.6, for=203.0.113.7:"], PEER),
        (["for=6.6.6.6, for="], PEER),
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


@pytest.mark.parametrize("seed", range(5))
def test_forwarded_of_proxies_is_read_as_the_standard_says(seed: int) -> None:
    """With unknown parameters, in quoted strings with every symbol, and behind what a client sent."""
    chance = random.Random(seed)

    def quoted(symbols: str) -> str:
        text = "".join(chance.choices(symbols, k=chance.randrange(9)))
        return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'

    for _ in range(500):
        seen = str(ipaddress.ip_address(chance.randrange(11 << 24, 100 << 24)))
        proxies = chance.choices(["10.1.2.3", "192.0.2.1", "[2001:db8:ffff::1]"], k=chance.randrange(3))
        said = []
        for node in (seen, *proxies):
            port = chance.choice(["", ":443", ":_x"])
            plain = not port and not node.startswith("[") and chance.random() < 0.5
            pairs = [f"for={node}" if plain else f'For="{node}{port}"']
            pairs += [f"{name}={quoted(SYMBOLS)}" for name in chance.sample(["secret", "by", "x-y"], 2)]
            chance.shuffle(pairs)
            said.append(chance.choice([";", " ; "]).join(pairs))
        junk = "".join(chance.choices('1,;="\\ for', k=chance.randrange(20)))
        header = ",".join([junk, *said])
        assert client_address(PROXIES, PEER, "forwarded", [header]) == seen, header


def test_a_long_header_is_read_in_one_pass() -> None:
    """Each symbol is looked at a few times at most, also where the quotes and escapes never end."""
    for junk in ('",', "\\", '"\\', "a=", ";,", ' ;"', '\\"'):
        for behind in ("", "for=10.0.0.2"):
            client_address(PROXIES, PEER, "forwarded", [junk * 100_000 + "," + behind])
