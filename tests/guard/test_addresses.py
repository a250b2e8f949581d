from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.guard.addresses import one_spelling, parse_address, parse_network, parse_subject, read_source

if TYPE_CHECKING:
    import ipaddress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::FFFF:cb00:7107", "203.0.113.7"),
        ("::1", "::/64"),
    ],
)
def test_an_address_stands_for_its_network(text: str, shown: str) -> None:
    assert str(parse_address(text)) == one_spelling(text) == shown


@pytest.mark.parametrize(
    "text",
    ["", "unknown", "203.0.113", "203.0.113.256", "203.0.113.7:443", "[::1]", "fe80::1%eth0", "1\0", " ::1"],
)
def test_other_texts_are_no_address(text: str) -> None:
    assert parse_address(text) is None
    assert parse_network(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7\u00a0", "203.0.113.7"),
        ("203.0.113.7:443", "203.0.113.7"),
        (" ::ffff:203.0.113.7 ", "203.0.113.7"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_spaces_ports_brackets_and_zones_hide_no_address(text: str, shown: str) -> None:
    assert read_source(text) == parse_network(shown)
    assert one_spelling(text) == str(parse_subject(text)) == shown


@pytest.mark.parametrize("text", ["unknown", " unknown ", "203.0.113.7, 10.0.0.1", "[]", "1.2.3.4:123456"])
def test_a_text_without_an_address_is_a_source_of_its_own(text: str) -> None:
    assert read_source(text) == one_spelling(text) == text.strip()


@pytest.mark.parametrize("text", ["", " ", "203.0.113", "203.0.113.0/33", "203.0.113.007", "::/129", ":::"])
def test_a_mistyped_network_is_no_subject(text: str) -> None:
    assert parse_subject(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("203.0.113.7/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::5/128", "2001:db8::/64"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_is_shown_in_one_spelling(text: str, shown: str) -> None:
    network = parse_network(text)
    assert str(network) == shown
    assert parse_network(shown) == network


@pytest.mark.parametrize(
    "text", ["203.0.113.0/33", "203.0.113.0/", "::/129", "::ffff:1.2.3.4/90", "1.2.3.4/+8"]
)
def test_a_wrong_length_is_no_network(text: str) -> None:
    assert parse_network(text) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_read_as_the_standard_library_reads_it(address: ipaddress.IPv4Address) -> None:
    network = parse_address(str(address))
    assert network is not None
    assert network.prefix == int(address)
    assert one_spelling(str(address)) == str(network)
    assert parse_address(f"::ffff:{address}") == network


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_is_its_first_64_bits(address: ipaddress.IPv6Address) -> None:
    network = parse_address(str(address))
    assert network is not None
    if address.ipv4_mapped is None:
        assert (network.version, network.prefix) == (6, int(address) >> 64)
