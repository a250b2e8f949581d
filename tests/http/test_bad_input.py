"""What is not a redemption, over real sockets: refused from the table, never echoed, never logged."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.api.problems import PROBLEMS
from engine.control import api_keys
from engine.http import redemptions
from engine.processes.reservations import reserve_port
from engine.store import keys
from tests.support.deployment import Merchant, Process, engine_in_process, issue
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings

ANSWER_TIMEOUT_S: Final = 30.0
BLANK: Final = b"\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of the problem; the name of the status of anything else."""
        document = json.loads(self.body)
        return str(document.get("code") if self.status != 200 else document["status"])


class Raw:
    """A client that sends whatever it is told."""

    def __init__(self, merchant: Merchant) -> None:
        self.merchant = merchant
        self._address = urlsplit(merchant.url)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._address.hostname, self._address.port)

    def request(
        self, body: bytes, *headers: str, line: str = "POST /v1/redemptions HTTP/1.1", bare: bool = False
    ) -> bytes:
        """A request that is in order, but for what is said; ``bare`` leaves out all about the body."""
        head = [line, "Host: localhost", f"Authorization: Bearer {self.merchant.key}"]
        if not bare:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join((*head, *headers)).encode("utf-8", "surrogateescape") + BLANK + body

    async def send(self, data: bytes, *, then_close: bool = False) -> Answer | None:
        """The answer to these bytes; None where the connection is closed without one."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                try:
                    writer.write(data)
                    if then_close:
                        writer.write_eof()
                    return await read_answer(reader)
                except ConnectionError:
                    return None
        finally:
            writer.transport.abort()

    async def post(self, body: bytes, *headers: str) -> Answer:
        answer = await self.send(self.request(body, *headers))
        assert answer is not None
        return answer


async def read_answer(reader: asyncio.StreamReader) -> Answer | None:
    try:
        head = (await reader.readuntil(BLANK)).decode()
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return None
    status_line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(status_line.split()[1]), headers, body)


def check(answer: Answer | None, *hidden: str) -> None:
    """A problem from the table, that shows nothing of what was sent; or no answer at all."""
    if answer is None:
        return
    assert answer.status != 500
    if answer.status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        document = json.loads(answer.body)
        assert PROBLEMS[document["code"]][0] == document["status"] == answer.status
        assert set(document) - {"replayed"} == {"type", "title", "status", "detail", "code"}
    check_hidden(answer.body.decode() + str(answer.headers), *hidden)


def check_hidden(text: str, *hidden: str) -> None:
    assert "Traceback" not in text
    flat = re.sub(r"[^0-9a-z]", "", text.lower())
    for secret in hidden:
        assert secret.replace("-", "").lower()[:-4] not in flat


async def check_untouched(redis: Redis, merchant: Merchant, code: str) -> None:
    """Nothing was redeemed, and the code can still be."""
    assert await redis.xlen(keys.events(0)) == 0
    status, body = await merchant.redeem(code)
    assert (status, body["status"]) == (200, "redeemed")


# bodies


def wrong_bodies(code: str) -> dict[str, tuple[bytes, str]]:
    """By name: a body, and the code of its refusal."""
    good: dict[str, Any] = {"code": code, "user": "ann"}

    def with_(**fields: object) -> bytes:
        return json.dumps(good | fields).encode()

    def number(text: str) -> bytes:
        return f'{{"code": "{code}", "user": "ann", "amount": {text}}}'.encode()

    malformed = {
        "nothing": b"",
        "no JSON": f"code={code}&user=ann".encode(),
        "cut off": with_()[:-1],
        "something behind it": with_() + b" x",
        "two documents": with_() * 2,
        "a string": json.dumps(code).encode(),
        "a list": json.dumps([good]).encode(),
        "null": b"null",
        "UTF-16": json.dumps(good).encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + with_(),
        "not UTF-8": b'{"code": "%s\xff", "user": "ann"}' % code.encode(),
        "not UTF-8 in a member's name": b'{"code": "%s", "user": "ann", "\xff": 1}' % code.encode(),
        "no user": json.dumps({"code": code}).encode(),
        "no code": json.dumps({"user": code}).encode(),
        "a field too many": with_(colour="red"),
        "a field named like the code": with_(**{code: code}),
        "a code that is a number": with_(code=1),
        "a code that is null": with_(code=None),
        "a code in a list": with_(code=[code]),
        "a user that is a number": with_(user=7),
        "an empty user": with_(user=""),
        "a long user": with_(user="x" * 129),
        "a user of the code": with_(user=code),
        "NUL in the user": with_(user="a\0b"),
        "a lone surrogate in the user": with_(user="\ud800"),
        "a new line in the user": with_(user="a\nb"),
        "text that turns direction": with_(user="a\u202eb"),
        "an empty order": with_(order=""),
        "a long order": with_(order="x" * 129),
        "NUL in the order": with_(order="\0"),
        "a lone surrogate in the order": with_(order="\udfff"),
        "a client that is a list": with_(client=[]),
        "a client that is the code": with_(client=code),
        "a client with a field too many": with_(client={code: code}),
        "an address that is a number": with_(client={"ip": 1}),
        "a long address": with_(client={"ip": "1" * 257}),
        "an empty device": with_(client={"device": ""}),
        "NUL in the device": with_(client={"device": "\0"}),
        "metadata that is a list": with_(metadata=[]),
        "metadata that is too large": with_(metadata={"a": "x" * 4096}),
        "metadata that is too wide": with_(metadata={str(n): 0 for n in range(1000)}),
        "metadata with a lone surrogate": with_(metadata={"a": "\ud800"}),
        "metadata that is too deep": with_(metadata={"a": nested(500)}),
        "nesting without end": b"[" * 16_000,
        "objects without end": b'{"a":' * 3_000,
        "an amount in a string": number('"1"'),
        "an amount with a fraction": number("1.5"),
        "an amount that is true": number("true"),
        "an amount in a list": number("[1]"),
        "not a number": number("NaN"),
        "infinity": number("1e400"),
        "a number of 5,000 digits": number("9" * 5000),
        "an amount with a leading zero": number("007"),
    }
    amounts = {
        "a negative amount": number("-1"),
        "2^53": number(str(2**53)),
        "2^63": number(str(2**63)),
        "-2^63": number(str(-(2**63))),
    }
    codes = {
        "an empty code": with_(code=""),
        "NUL in the code": with_(code=code + "\0"),
        "a long code": with_(code=code * 100),
        "the code in a sentence": with_(code=f"my code is {code}!"),
    }
    return {
        name: (body, refusal)
        for refusal, bodies in (
            ("malformed_request", malformed),
            ("invalid_amount", amounts),
            ("code_malformed", codes),
        )
        for name, body in bodies.items()
    }


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


async def test_every_wrong_body_is_refused_without_a_word_of_it(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1, amount=100, currency="EUR")
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        for name, (body, refusal) in wrong_bodies(code).items():
            answer = await raw.post(body)
            check(answer, code)
            assert answer.code == refusal, name
        await check_untouched(redis, merchant, code)
    check_hidden(caplog.text, code)


async def test_metadata_of_any_depth_is_answered_and_holds_nobody_up(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 40)
    async with engine_in_process(plane) as merchant:
        for depth, code in zip(range(235, 270), codes, strict=False):
            metadata = {"a": nested(depth)}
            (status, body), (other, _) = await asyncio.gather(
                merchant.redeem(code, key=f"k-{depth}", metadata=metadata),
                merchant.redeem("0000-0000-0000-0000"),
            )
            assert (status, other) in {(200, 404), (400, 404)}, depth
            assert status == 200 or body["code"] == "malformed_request"
            again = await merchant.redeem(code, key=f"k-{depth}", metadata=metadata)
            assert again[0] == status


async def test_large_bodies_are_refused_by_length_or_as_they_come(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    large = {
        "300 thousand keys": json.dumps({"code": code, "user": "a"} | {str(n): 0 for n in range(300_000)}),
        "three megabytes of code": json.dumps({"code": code * 150_000, "user": "ann"}),
        "metadata of 300 thousand keys": json.dumps(
            {"code": code, "user": "ann", "metadata": {str(n): 0 for n in range(300_000)}}
        ),
        "nesting": "[" * 2_000_000,
    }
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        for text in large.values():
            answer = await raw.send(raw.request(text.encode()))
            check(answer, code)
            assert answer is None or answer.code == "body_too_large"  # it need not read what it refuses
        head = raw.request(b"", "Content-Type: application/json", "Content-Length: 99999999999", bare=True)
        answer = await raw.send(head)
        check(answer, code)
        assert answer is not None
        assert answer.code == "body_too_large"
    async with engine_in_process(plane, body_bytes_max=2**25) as merchant:
        raw = Raw(merchant)
        for name, text in large.items():
            answer = await raw.post(text.encode())
            check(answer, code)
            assert answer.code == ("code_malformed" if "code" in name else "malformed_request"), name
        await check_untouched(redis, merchant, code)
    check_hidden(caplog.text, code)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


CHUNKED: Final = ("Content-Type: application/json", "Transfer-Encoding: chunked")


async def test_chunked_bodies_are_taken_while_they_are_small(plane: ControlPlane, redis: Redis) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, body_bytes_max=1000) as merchant:
        raw = Raw(merchant)
        body = json.dumps({"code": code, "user": "ann"}).encode()
        pieces = [bytes([byte]) for byte in body]
        answer = await raw.send(raw.request(chunked(*pieces), *CHUNKED, bare=True))
        assert answer is not None
        assert answer.status == 200
        body = json.dumps({"code": other, "user": "ann"}).encode()
        answer = await raw.send(raw.request(chunked(body, b" " * 1000), *CHUNKED, bare=True))
        check(answer, other)
        assert answer is not None
        assert answer.code == "body_too_large"
        endless = raw.request(b"%x\r\n%s" % (2**30, body + b" " * 2000), *CHUNKED, bare=True)
        answer = await raw.send(endless)
        check(answer, other)
        assert answer is not None
        assert answer.code == "body_too_large"
    assert await redis.xlen(keys.events(0)) == 1


# HTTP


async def test_wrong_headers_are_refused(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    body = json.dumps({"code": code, "user": "ann"}).encode()
    cases: dict[str, tuple[tuple[str, ...], str]] = {
        "a key twice": (("Idempotency-Key: a", "Idempotency-Key: b"), "malformed_request"),
        "the same key twice": (("Idempotency-Key: a", "idempotency-key: a"), "malformed_request"),
        "an empty key": (("Idempotency-Key: ",), "malformed_request"),
        "a long key": (("Idempotency-Key: " + "k" * 256,), "malformed_request"),
        "a key that is not ASCII": (("Idempotency-Key: ключ",), "malformed_request"),
        "a key of odd bytes": (("Idempotency-Key: \udcff\udcfe",), "malformed_request"),
        "a key that is the code": ((f"Idempotency-Key: {code}",), "malformed_request"),
        "gzip": (("Content-Encoding: gzip",), "unsupported_media_type"),
        "an encoding named like the code": ((f"Content-Encoding: {code}",), "unsupported_media_type"),
    }
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        for name, (headers, refusal) in cases.items():
            answer = await raw.post(body, *headers)
            check(answer, code)
            assert answer.code == refusal, name
        answer = await raw.post(gzip.compress(body), "Content-Encoding: gzip")
        assert answer.code == "unsupported_media_type"
        answer = await raw.post(gzip.compress(body))
        check(answer, code)
        assert answer.code == "malformed_request"
        for kind in (
            "",
            f"Content-Type: {code}",
            "Content-Type: text/json",
            "Content-Type: application/jsonx",
        ):
            lines = [f"Content-Length: {len(body)}", *([kind] if kind else [])]
            untyped = await raw.send(raw.request(body, *lines, bare=True))
            check(untyped, code)
            assert untyped is not None
            assert untyped.code == "unsupported_media_type", kind
        await check_untouched(redis, merchant, code)
    check_hidden(caplog.text, code)


def malformed_http(raw: Raw, code: str) -> dict[str, bytes]:
    body = json.dumps({"code": code, "user": "ann"}).encode()
    request = raw.request
    typed = "Content-Type: application/json"
    wrong_chunk = b"%s\r\n%s\r\n0\r\n\r\n" % (code.encode(), body)
    return {
        "no HTTP": code.encode() + BLANK,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + code.encode() * 40,
        "NULs": b"\0" * 100 + BLANK,
        "new lines": b"\n" * 10_000 + BLANK,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a version of its own": request(body, line="POST /v1/redemptions HTTP/9.9"),
        "no version": request(body, line="POST /v1/redemptions"),
        "no target": request(body, line="POST HTTP/1.1"),
        "a method named like the code": request(body, line=f"{code} /v1/redemptions HTTP/1.1"),
        "a method in lower case": request(body, line="post /v1/redemptions HTTP/1.1"),
        "a target with a space": request(body, line=f"POST /v1/redemptions {code} HTTP/1.1"),
        "a target with NUL": request(body, line=f"POST /\0{code} HTTP/1.1"),
        "a target that is not ASCII": request(body, line=f"POST /é{code} HTTP/1.1"),
        "a target of odd escapes": request(body, line=f"GET /%zz%00%ff{code} HTTP/1.1"),
        "a host that is none": request(body, line=f"GET http://[::1/{code} HTTP/1.1"),
        "a port that is none": request(body, line=f"GET http://localhost:999999/{code} HTTP/1.1"),
        "another scheme": request(body, line=f"GET javascript:{code} HTTP/1.1"),
        "a target of slashes": request(body, line=f"GET ///{code}//.. HTTP/1.1"),
        "a long target": request(body, line=f"POST /{code * 1000} HTTP/1.1"),
        "CONNECT": request(body, line="CONNECT localhost:80 HTTP/1.1"),
        "OPTIONS": request(body, line="OPTIONS * HTTP/1.1"),
        "TRACE": request(body, f"X-Code: {code}", line="TRACE /v1/redemptions HTTP/1.1"),
        "an upgrade": request(
            body,
            "Connection: Upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Key: {code}",
            line="GET / HTTP/1.1",
        ),
        "an upgrade to HTTP/2": request(
            body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", line="PUT /v1/redemptions HTTP/1.1"
        ),
        "an expectation": request(body, f"Expect: {code}"),
        "an expectation that is no text": request(body, f"Expect: \udc80{code}"),
        "a header without a colon": request(body, code),
        "a header without a name": request(body, f": {code}"),
        "a space before the colon": request(body, f"Order : {code}"),
        "a folded header": request(body, "X-Folded: a", f" {code}"),
        "NUL in a header": request(body, f"X-Code: \0{code}"),
        "a carriage return in a header": request(body, f"X-Code: \r{code}"),
        "a long header": request(body, f"X-Code: {code * 1000}"),
        "a long header name": request(body, f"{code * 1000}: x"),
        "many headers": request(body, *(f"X-{n}: {code}" for n in range(1000))),
        "two lengths": request(body, "Content-Length: 5"),
        "a length and chunks": request(body, "Transfer-Encoding: chunked"),
        "a negative length": request(body, typed, "Content-Length: -1", bare=True),
        "a length that is no number": request(body, typed, f"Content-Length: {code}", bare=True),
        "a length with a sign": request(body, typed, f"Content-Length: +{len(body)}", bare=True),
        "a length past 64 bits": request(body, typed, f"Content-Length: {10**30}", bare=True),
        "an unknown transfer coding": request(body, typed, f"Transfer-Encoding: {code}", bare=True),
        "a chunk of no length": request(wrong_chunk, *CHUNKED, bare=True),
        "a chunk past its length": request(b"1\r\n" + body + BLANK, *CHUNKED, bare=True),
        "a chunk of negative length": request(b"-1\r\n" + body + BLANK, *CHUNKED, bare=True),
        "a chunk extension": request(b"1;" + code.encode() * 1000 + b"\r\n", *CHUNKED, bare=True),
        "trailers without end": request(
            b"0\r\n" + b"X-Code: %s\r\n" % code.encode() * 1000, *CHUNKED, bare=True
        ),
    }


async def test_what_is_not_http_is_refused_or_hung_up_on(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, request_timeout_s=1) as merchant:
        raw = Raw(merchant)
        unanswered = set()
        for name, data in malformed_http(raw, code).items():
            answer = await raw.send(data)
            check(answer, code)
            if answer is None:
                unanswered.add(name)
            else:
                assert 400 <= answer.status < 500, name
            check(await raw.send(data, then_close=True), code)
        assert unanswered == {"new lines"}  # more could follow: cut off in the end
        await check_untouched(redis, merchant, code)
    check_hidden(caplog.text, code)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_code_in_a_path_is_not_echoed(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        for line in (
            f"GET /v1/redemptions/{code} HTTP/1.1",
            f"GET /v1/redemptions?user={code}&{code}={code} HTTP/1.1",
            f"GET /v1/redemptions?user=ann&after={code} HTTP/1.1",
            f"GET /v1/redemptions?user=ann&limit={code} HTTP/1.1",
            f"GET /{code} HTTP/1.1",
            f"PUT /v1/redemptions#{code} HTTP/1.1",
            f"GET /v1/redemptions/{code}/.. HTTP/1.1",
        ):
            answer = await raw.send(raw.request(b"", line=line))
            check(answer, code)
            assert answer is not None
            assert 400 <= answer.status < 500
    check_hidden(caplog.text, code)


async def test_a_body_that_ends_too_soon_does_nothing(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    body = json.dumps({"code": code, "user": "ann"}).encode()
    # What can never come any more is not waited for.
    async with engine_in_process(plane, request_timeout_s=3600) as merchant:
        raw = Raw(merchant)
        whole = raw.request(body)
        for length in (1, 40, len(whole) - len(body), len(whole) - 10, len(whole) - 1):
            check(await raw.send(whole[:length], then_close=True), code)
            reader, writer = await raw.connect()
            writer.write(whole[:length])
            await writer.drain()
            writer.transport.abort()
            del reader
        short = raw.request(chunked(body)[:-5], *CHUNKED, bare=True)
        check(await raw.send(short, then_close=True), code)
        reader, writer = await raw.connect()
        writer.write(whole[:-10])
        await merchant.redeem("0000-0000-0000-0000")  # by now, the other's body is waited for
        writer.write_eof()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            assert await reader.read() == b""
        writer.transport.abort()
        await check_untouched(redis, merchant, code)
    check_hidden(caplog.text, code)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_who_sends_too_slowly_is_cut_off(plane: ControlPlane, redis: Redis) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, request_timeout_s=1) as merchant:
        raw = Raw(merchant)
        whole = raw.request(json.dumps({"code": code, "user": "ann"}).encode())
        assert await raw.send(b"") is None
        assert await raw.send(whole[:25]) is None
        assert await raw.send(whole[: whole.index(BLANK) + 2]) is None
        answer = await raw.send(whole[:-5])
        check(answer, code)
        assert answer is not None
        assert answer.code == "malformed_request"
        await check_slow_second_request(raw, other)
        await check_untouched_but_one(redis)


async def check_slow_second_request(raw: Raw, code: str) -> None:
    """A connection that was in order before is cut off as well."""
    reader, writer = await raw.connect()
    writer.write(raw.request(json.dumps({"code": code, "user": "ann"}).encode()))
    first = await read_answer(reader)
    assert first is not None
    assert first.status == 200
    writer.write(b"POST /v1/red")
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        assert await reader.read() == b""
    writer.transport.abort()


async def check_untouched_but_one(redis: Redis) -> None:
    assert await redis.xlen(keys.events(0)) == 1


async def test_connections_past_the_limit_are_told_so(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, connections_max=3, retry_after_s=9) as merchant:
        await merchant.session.connector.close()  # type: ignore[union-attr] # the one that saw it ready
        raw = Raw(merchant)
        body = json.dumps({"code": code, "user": "ann"}).encode()

        async def counted() -> bool:
            answer = await raw.send(raw.request(b"", line="GET /healthz HTTP/1.1"))
            return answer is not None and answer.status == 200

        await wait_until_async(counted)
        held = [await raw.connect() for _ in range(3)]
        for _, writer in held:
            writer.write(raw.request(b"", line="GET /healthz HTTP/1.1"))
        answers = [await read_answer(reader) for reader, _ in held]
        assert [answer.status for answer in answers if answer] == [200, 200, 200]
        refused = await raw.send(raw.request(body))
        check(refused, code)
        assert refused is not None
        assert (refused.code, refused.headers["retry-after"]) == ("overloaded", "9")
        held.pop()[1].transport.abort()

        async def taken() -> bool:
            answer = await raw.send(raw.request(body))
            return answer is not None and answer.code in {"redeemed", "already_redeemed"}

        await wait_until_async(taken)
        for _, writer in held:
            writer.transport.abort()


async def test_a_bug_of_ours_shows_nothing_of_the_request_either(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)

    def fail(body: bytes, _: Settings) -> None:
        raise RuntimeError(body)

    async with engine_in_process(plane) as merchant:
        monkeypatch.setattr(redemptions, "parse_redeem_request", fail)
        answer = await Raw(merchant).post(json.dumps({"code": code, "user": "ann"}).encode())
    assert (answer.status, answer.code) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    check_hidden(answer.body.decode(), code)
    check_hidden(caplog.text.replace("Traceback", ""), code)
    assert "RuntimeError" in caplog.text  # but where it was is told


# a real worker: what it writes


class LoggedWorker(Process):
    """A real worker whose stderr goes to a file."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._file = directory / "worker.log"
        self._ready = directory / "ready"
        super().__init__(settings, "engine.worker", str(self._ready), log=self._file)

    @property
    def log(self) -> str:
        return self._file.read_text()

    def __enter__(self) -> Self:
        wait_until(self._ready.exists)
        return self


async def test_a_real_worker_writes_nothing_of_a_code(plane: ControlPlane, tmp_path: Path) -> None:
    _, (code, good) = await issue(plane, 2, amount=100, currency="EUR")
    reserved = reserve_port(plane.settings.host, 0)
    settings = replace(plane.settings, port=reserved.getsockname()[1], log_level="debug", request_timeout_s=1)
    key = (await api_keys.create(plane, "merchant", ["redeem", "read"])).value.key
    with LoggedWorker(settings, tmp_path) as worker:
        async with aiohttp.ClientSession() as session:
            merchant = Merchant(session, f"http://{settings.host}:{settings.port}", key)
            raw = Raw(merchant)
            for body, _ in wrong_bodies(code).values():
                check(await raw.send(raw.request(body)), code)
            for data in malformed_http(raw, code).values():
                check(await raw.send(data), code)
            assert (await merchant.redeem(good, key="k"))[0] == 200
            assert (await merchant.redeem(good, key="k"))[0] == 200
            assert (await merchant.redeem(good))[0] == 409
        assert worker.stop() == 0
        assert "worker serves" in worker.log
        check_hidden(worker.log, code, good)
        assert key not in worker.log
        assert '"level":"error"' not in worker.log
    reserved.close()


# anything


NUMBERS = st.integers() | st.floats() | st.integers(-(2**70), 2**70)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("code", "user", "amount", "order", "client", "metadata")


def run_examples(
    send: Callable[[bytes], Any], data: st.SearchStrategy[Any], as_bytes: Callable[[Any], bytes], *hidden: str
) -> None:
    """Check the answers to many examples, in a thread; hypothesis shows the one that fails."""

    @hypothesis_settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data)
    def answered(example: object) -> None:
        check(send(as_bytes(example)), *hidden)

    answered()


async def test_any_json_at_all_is_answered_from_the_table(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    near = st.fixed_dictionaries(
        {"code": JSON | st.just(code), "user": JSON | st.just("ann")},
        optional={name: JSON | st.just(1) | st.just({"ip": "1"}) for name in FIELDS[2:]},
    )
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        loop = asyncio.get_running_loop()

        def send(body: bytes) -> Answer:
            data = raw.request(body, "Idempotency-Key: k")
            answer = asyncio.run_coroutine_threadsafe(raw.send(data), loop).result(ANSWER_TIMEOUT_S)
            assert answer is not None
            return answer

        def as_json(value: object) -> bytes:
            return json.dumps(value).encode()

        await asyncio.to_thread(run_examples, send, near | JSON, as_json, code)
    check_hidden(caplog.text, code)


async def test_any_damage_to_a_request_is_answered_from_the_table(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        loop = asyncio.get_running_loop()
        document = {"code": code, "user": "ann", "amount": 1, "order": "o", "metadata": {"a": [1]}}
        whole = raw.request(json.dumps(document).encode(), "Idempotency-Key: k")
        places = st.integers(0, len(whole) - 1)
        damage = st.lists(
            st.tuples(places, st.sampled_from([0, 1]), st.binary(max_size=3)), min_size=1, max_size=4
        )

        def damaged(edits: list[tuple[int, int, bytes]]) -> bytes:
            data = whole
            for at, removed, inserted in edits:
                data = data[:at] + inserted + data[at + removed :]
            return data

        def send(data: bytes) -> Answer | None:
            sending = raw.send(data, then_close=True)
            return asyncio.run_coroutine_threadsafe(sending, loop).result(ANSWER_TIMEOUT_S)

        await asyncio.to_thread(run_examples, send, damage, damaged)
    check_hidden(caplog.text, code)
