"""Webhooks go to public addresses only, unless a setting says otherwise, and to who can prove its name."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.ledger.feed import BEGINNING
from engine.webhooks import changes, endpoints
from engine.webhooks.addresses import is_public
from engine.webhooks.changes import NewWebhook
from persister.webhooks.endpoint import Endpoint
from persister.webhooks.messages import WebhookMessage
from persister.webhooks.sender import open_sender
from tests.support.deployment import Process
from tests.support.endpoints import Events, Receiver
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.streams import Ledger

MESSAGE = WebhookMessage("0-1-0", ("0-1-0",), b"{}", BEGINNING, BEGINNING)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1"),
        *("2001:0:0:0:0:0:80ff:fffe", "::127.0.0.1", "localhost", "", "127.1", "2130706433"),
    ],
)
def test_an_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


SPECIAL: Final = (
    # IANA IPv4 special-purpose address registry
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32"),
    *("192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
    *("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32"),
    # IANA IPv6 special-purpose address registry, without those that stand for IPv4 addresses
    *("::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32"),
    *("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48"),
    *("2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48"),
    *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    # multicast, and the site-local addresses of old
    *("224.0.0.0/4", "ff00::/8", "fec0::/10"),
)


@pytest.mark.parametrize("network", SPECIAL)
def test_an_address_for_a_special_purpose_is_not_public(network: str) -> None:
    of = ipaddress.ip_network(network)
    for address in (of[0], of[-1], of[of.num_addresses // 2]):
        assert not is_public(str(address))
        if isinstance(address, ipaddress.IPv4Address):
            assert not is_public(f"::ffff:{address}")
            assert not is_public(str(ipaddress.IPv6Address("64:ff9b::") + int(address)))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"),
        *("9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"),
        *("191.255.255.255", "192.0.1.0", "192.0.3.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
        *("2001:200::1", "2001:db7:ffff::1", "2001:db9::1", "2003::1", "2620:4f:7fff::1", "3ffe::1"),
    ],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def endpoint(url: str) -> Endpoint:
    return Endpoint("wh_1", url, None, None, None, 1, ("whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",))


@contextlib.asynccontextmanager
async def listening(host: str) -> AsyncIterator[tuple[int, list[object]]]:
    """A port, and who has connected to it."""
    connected: list[object] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(note, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], connected


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_nobody_makes_us_call_ourselves(settings: Settings, name: str) -> None:
    async with listening("127.0.0.1") as (port, connected):
        async with open_sender(settings) as sender:
            result = await sender.send(endpoint(f"https://{name}:{port}/"), MESSAGE)
        assert "is not a public address" in (result.error or "")
        assert result.status is None
        assert not connected
        async with open_sender(replace(settings, webhooks_allow_private=True)) as sender:
            await sender.send(endpoint(f"https://{name}:{port}/"), MESSAGE)
        assert connected  # it was there to be called


@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
async def test_an_address_in_disguise_is_no_way_in_either(settings: Settings, name: str) -> None:
    async with listening("127.0.0.1") as (port, connected), open_sender(settings) as sender:
        result = await sender.send(endpoint(f"https://{name}:{port}/"), MESSAGE)
        assert result.error
        assert not connected


class Rebound(AbstractResolver):
    """Says that every name is at one public address and at ours."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in ("127.0.0.1",)
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_name_is_judged_by_where_it_leads_when_it_is_connected_to(settings: Settings) -> None:
    async with listening("127.0.0.1") as (port, connected), open_sender(settings) as sender:
        connector: Any = sender._session.connector
        connector._resolver = Rebound()
        result = await sender.send(endpoint(f"https://example.com:{port}/"), MESSAGE)
        assert "127.0.0.1 is not a public address" in (result.error or "")
        assert not connected


async def test_without_the_setting_http_is_refused(settings: Settings) -> None:
    async with listening("127.0.0.1") as (port, connected), open_sender(settings) as sender:
        result = await sender.send(endpoint(f"http://127.0.0.1:{port}/"), MESSAGE)
        assert "does not begin with https://" in (result.error or "")
        assert not connected


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 2\r\n\r\n", b"HTTP/1.1 500 " + b"x" * 100_000 + b"\r\n\r\n"]
)
async def test_what_is_no_answer_is_a_failure(settings: Settings, answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, open_sender(replace(settings, webhooks_allow_private=True)) as sender:
        port = server.sockets[0].getsockname()[1]
        result = await sender.send(endpoint(f"http://127.0.0.1:{port}/"), MESSAGE)
    assert result.status is None
    assert result.error
    assert len(result.error) <= 300


async def test_an_endless_head_is_not_read_to_its_end(settings: Settings) -> None:
    """Informational responses (RFC 9110, section 15.2) would fill the memory until the time is over."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" * 100)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    patient = replace(settings, webhooks_allow_private=True, webhook_timeout_s=100)
    async with server, open_sender(patient) as sender:
        port = server.sockets[0].getsockname()[1]
        result = await sender.send(endpoint(f"http://127.0.0.1:{port}/"), MESSAGE)
    assert (result.status, result.error) == (None, "ClientPayloadError: the response is too large")


def certificate(directory: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = directory / "cert.pem", directory / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


@pytest.mark.parametrize("trusted", [True, False])
async def test_over_https_the_certificate_must_be_good(
    plane: ControlPlane,
    settings: Settings,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trusted: bool,
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/", receiver.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    settings = replace(settings, webhooks_allow_private=True, webhook_retry_s="1000", webhook_poll_ms=10)
    try:
        new = NewWebhook(url=f"https://127.0.0.1:{runner.addresses[0][1]}/", after="beginning")
        allowing = replace(plane, settings=settings)
        made = (await changes.create(allowing, new, actor="test")).value
        await Events(ledger.connection).add(1)

        async def attempts() -> list[endpoints.DeliveryAttempt]:
            return await endpoints.attempts(plane, made.webhook.id, message=None, after=None, limit=10)

        with Process(settings, "persister.webhooks"):
            [attempt] = await wait_until_async(attempts)
    finally:
        await runner.cleanup()
    assert (attempt.status == 200) is trusted
    assert trusted or "certificate" in (attempt.error or "").lower()
    assert len(receiver.calls) == trusted
