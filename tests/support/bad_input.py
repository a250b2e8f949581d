"""Bad input: a raw client, wrong bodies, malformed HTTP, and checks that every response must pass."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.api.problems import PROBLEMS
from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from tests.support.deployment import Merchant


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
    """A client that sends any bytes."""

    def __init__(self, merchant: Merchant) -> None:
        self.merchant = merchant
        self._address = urlsplit(merchant.url)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._address.hostname, self._address.port)

    def request(
        self, body: bytes, *headers: str, line: str = "POST /v1/redemptions HTTP/1.1", bare: bool = False
    ) -> bytes:
        """Return a correct request, except for the arguments; ``bare`` leaves out the headers of the body."""
        head = [line, "Host: localhost", f"Authorization: Bearer {self.merchant.key}"]
        if not bare:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join((*head, *headers)).encode("utf-8", "surrogateescape") + BLANK + body

    async def send(self, data: bytes, *, then_close: bool = False) -> Answer | None:
        """Send bytes and return the response; None if the connection is closed without one."""
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
    """Check that a response is a known problem and shows nothing of the input; None passes."""
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
    """Check that nothing was redeemed and that the code can still be redeemed."""
    assert await redis.xlen(keys.events(0)) == 0
    status, body = await merchant.redeem(code)
    assert (status, body["status"]) == (200, "redeemed")


def wrong_bodies(code: str) -> dict[str, tuple[bytes, str]]:
    """Return bodies by name, each with the problem code of its refusal."""
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


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


CHUNKED: Final = ("Content-Type: application/json", "Transfer-Encoding: chunked")


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
        "HTTP/2 in a request line": request(body, line="POST /v1/redemptions HTTP/2.0"),
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


def run_examples(
    send: Callable[[bytes], Any], data: st.SearchStrategy[Any], as_bytes: Callable[[Any], bytes], *hidden: str
) -> None:
    """Check the responses to many examples, in a thread; hypothesis shows the example that fails."""

    @hypothesis_settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data)
    def answered(example: object) -> None:
        check(send(as_bytes(example)), *hidden)

    answered()
