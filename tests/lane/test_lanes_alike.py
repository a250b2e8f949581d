"""All lanes answer the same requests with the same answers, and the same comes of it in Redis.

Workers on one Redis, one for each lane: express, python and aiohttp. Each is sent the same bytes but
for the codes, which are those of a campaign of its own, and the keys. Where the express lane was not
built, the other two are compared.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.codes.formats import FORMATS
from engine.control import blocks, campaigns, voids
from engine.control.blocks import NewBlock
from engine.control.campaigns import CampaignChange
from engine.control.voids import VoidDeclaration
from tests.support.all_lanes import AGAIN, BLANK, BODY, CODE, CODE_BYTES, KEY, all_lanes, request
from tests.support.bad_input import malformed_http, wrong_bodies
from tests.support.deployment import issue, mint_batch
from tests.support.importing import a_campaign, bring, lines_of
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


def plain() -> dict[str, bytes]:
    """What the fast lane answers itself, each of them."""
    return {
        "a redemption": request(),
        "with a key": request(BODY, b"Idempotency-Key: k-1"),
        "the key again, for another code": request(BODY, b"Idempotency-Key: k-1"),
        "the code again": request(b'{"code": "<same>", "user": "bob"}'),
        "all fields": request(
            b'{"code": "<code>", "user": "ann", "amount": 500, "order": "o-1",'
            b' "client": {"ip": "::1", "device": "d"}, "metadata": {"a": [1, {"b": null}]}}'
        ),
        "other letters": request('{"code": "<code>", "user": "Zoë", "order": "№ 1 ü"}'.encode()),
        "other letters and a key": request(
            '{"code": "<code>", "user": "李"}'.encode(), b"Idempotency-Key: k-2"
        ),
        "escapes": request(b'{"code": "<code>", "user": "Zo\\u00eb", "order": "a\\"b\\\\c/\\/"}'),
        "letters that are put together": request('{"code": "<code>", "user": "Zoe\u0308"}'.encode()),
        "a solution that nobody asked for": request(
            b'{"code": "<code>", "user": "ann", "client": {"challenge": "AAAA"}}'
        ),
        "an empty client": request(b'{"code": "<code>", "user": "ann", "client": {}, "metadata": {}}'),
        "the code in other letters": request('{"code": "<code>", "user": "ü <same>"}'.encode()),
        "another amount": request(b'{"code": "<code>", "user": "ann", "amount": 7}'),
        "an unknown code": request(b'{"code": "0000-0000-0000-0000", "user": "ann"}'),
        "no code at all": request(b'{"code": "?", "user": "ann"}'),
        "the code as a user": request(b'{"code": "<code>", "user": "0000-0000"}'),
        "a long key": request(BODY, b"Idempotency-Key: " + b"k" * 300),
        "a key with a space": request(BODY, b"Idempotency-Key: a b"),
        "a key that does not print": request(BODY, b"Idempotency-Key: a\tb"),
        "headers in lower case": request(
            BODY,
            *(b"host: a", b"authorization: bearer <key>", b"content-type: APPLICATION/JSON"),
            *(b"content-length: %d" % (len(BODY) + CODE_BYTES - len(CODE)), b"x-a: b"),
            standard=False,
        ),
        "a charset": request(
            BODY,
            *(b"Host: a", b"Authorization: Bearer <key>", b"Content-Type: application/json; charset=utf-8"),
            b"Content-Length: %d" % (len(BODY) + CODE_BYTES - len(CODE)),
            standard=False,
        ),
        "the last": request(BODY, b"Connection: close"),
        "kept alive": request(BODY, b"Connection: Keep-Alive"),
        "a request id": request(BODY, b"Request-Id: r-1"),
        "a request id of a UUID": request(BODY, b"request-id: 0b9d2a7e-58a1-4a6f-9d0b-0f6f1f3a2c11"),
        "a request id and a key": request(BODY, b"Request-Id: r-1", b"Idempotency-Key: r-1"),
        "a key and a request id": request(BODY, b"Idempotency-Key: r-2", b"Request-Id: r+1/=:@~._"),
        "the code as a request id": request(BODY, b"Request-Id: <same>"),
        "an odd header": request(BODY, b"X-Odd: \xc3\xa9\xff\t;,=\"'"),
    }


def blocked() -> dict[str, bytes]:
    """Redemptions of sources that are blocked."""
    return {
        "a user": request(b'{"code": "0000-0000-0000-0000", "user": "mallory"}'),
        "a user in escapes": request(b'{"code": "0000-0000-0000-0000", "user": "\\u006dallory"}'),
        "an address": request(b'{"code": "?", "user": "ann", "client": {"ip": "203.0.113.9"}}'),
        "a mapped address": request(b'{"code": "?", "user": "ann", "client": {"ip": "::ffff:203.0.113.9"}}'),
        "a device": request(b'{"code": "?", "user": "ann", "client": {"ip": null, "device": "d-9"}}'),
    }


def odd() -> dict[str, bytes]:
    """What goes to aiohttp, or begins in the one lane and ends in the other."""
    length = len(BODY) + CODE_BYTES - len(CODE)
    bare = (b"Host: a", b"Authorization: Bearer <key>", b"Content-Type: application/json")

    def made(*headers: bytes, body: bytes = BODY) -> bytes:
        return request(body, *headers, standard=False)

    sized = b"Content-Length: %d" % length
    return {
        "glued": request() * 3,
        "glued with keys": b"".join(request(BODY, b"Idempotency-Key: g-%d" % at) for at in range(3)),
        "glued with refusals": (request(b"{}") + request() + request(b"[]")) * 2,
        "a solution that is too long": request(
            b'{"code": "<code>", "user": "ann", "client": {"challenge": "%s"}}' % (b"A" * 2049)
        ),
        "nothing": b"",
        "empty lines": b"\r\n\r\n" + request(),
        "another call between": request() + request(line=b"GET /healthz HTTP/1.1", body=b"") + request(),
        "a query": request(line=b"POST /v1/redemptions?a=b HTTP/1.1"),
        "an empty query": request(line=b"POST /v1/redemptions? HTTP/1.1"),
        "a fragment": request(line=b"POST /v1/redemptions#a HTTP/1.1"),
        "a slash behind": request(line=b"POST /v1/redemptions/ HTTP/1.1"),
        "escapes": request(line=b"POST /v1/%72edemptions HTTP/1.1"),
        "an absolute target": request(line=b"POST http://localhost/v1/redemptions HTTP/1.1"),
        "HTTP/1.0": request(line=b"POST /v1/redemptions HTTP/1.0"),
        "HTTP/1.0 kept alive": request(
            BODY, b"Connection: keep-alive", line=b"POST /v1/redemptions HTTP/1.0"
        ),
        "two spaces": request(line=b"POST  /v1/redemptions HTTP/1.1"),
        "no host": made(*bare[1:], sized),
        "two hosts": request(BODY, b"Host: b"),
        "no key": made(bare[0], bare[2], sized),
        "an unknown key": made(bare[0], b"Authorization: Bearer nobody", bare[2], sized),
        "two keys": request(BODY, b"Authorization: Bearer nobody"),
        "another scheme": made(bare[0], b"Authorization: Basic <key>", bare[2], sized),
        "spaces around the key": made(bare[0], b"Authorization: \t Bearer  <key> \t", bare[2], sized),
        "no type": made(*bare[:2], sized),
        "another type": made(*bare[:2], b"Content-Type: text/plain", sized),
        "a type with parameters": made(*bare[:2], b'Content-Type: application/json;a="b;c"', sized),
        "a space behind the type": made(*bare[:2], b"Content-Type: application/json ", sized),
        "an encoding": request(BODY, b"Content-Encoding: gzip"),
        "the encoding identity": request(BODY, b"Content-Encoding: identity"),
        "no length": made(*bare),
        "the length 0": made(*bare, b"Content-Length: 0", body=b""),
        "a length with zeros": made(*bare, b"Content-Length: 000%d" % length),
        "a length with a space": made(*bare, b"Content-Length: %d " % length),
        "a length too short": made(*bare, b"Content-Length: %d" % (length - 1)),
        "a length too long": made(*bare, b"Content-Length: %d" % (length + 1)),
        "a long body": request(b" " * 20_000 + BODY),
        "a long body as told": made(*bare, b"Content-Length: 99999999999"),
        "two lengths": request(BODY, sized),
        "chunks": made(*bare, b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (length, BODY)),
        "chunks and a length": request(BODY, b"Transfer-Encoding: chunked"),
        "expecting": request(BODY, b"Expect: 100-continue"),
        "expecting something else": request(BODY, b"Expect: nothing"),
        "an upgrade": request(BODY, b"Upgrade: h2c", b"Connection: Upgrade"),
        "an upgrade to WebSocket": request(BODY, b"Upgrade: websocket", b"Connection: Upgrade"),
        "a connection of a kind of its own": request(BODY, b"Connection: x"),
        "closed and kept alive": request(BODY, b"Connection: close, keep-alive"),
        "two connections": request(BODY, b"Connection: keep-alive", b"Connection: close"),
        "by a proxy": request(BODY, b"Proxy-Connection: close"),
        "two idempotency keys": request(BODY, b"Idempotency-Key: a", b"Idempotency-Key: a"),
        "two in other letters": request(BODY, b"Idempotency-Key: a", b"IDEMPOTENCY-KEY: a"),
        "two request ids": request(BODY, b"Request-Id: a", b"Request-Id: a"),
        "an empty request id": request(BODY, b"Request-Id:"),
        "a request id with a space": request(BODY, b"Request-Id: a b"),
        "a request id that is too long": request(BODY, b"Request-Id: " + b"a" * 129),
        "a request id that is no ASCII": request(BODY, b"Request-Id: \xc3\xa9"),
        "spaces around the request id": request(BODY, b"Request-Id: \t a \t"),
        "a request id of a refusal": request(b"{}", b"Request-Id: r-3"),
        "an empty idempotency key": request(BODY, b"Idempotency-Key:"),
        "a space behind the idempotency key": request(BODY, b"Idempotency-Key: s "),
        "an idempotency key that is no ASCII": request(BODY, b"Idempotency-Key: \xc3\xa9"),
        "a header twice": request(BODY, b"X-A: a", b"X-A: b"),
        "a folded header": request(BODY, b"X-A: a", b" b"),
        "a header without an end": request(BODY, b"X-A: a\nX-B: b"),
        "NUL": request(BODY, b"X-A: \0"),
        "many headers": request(BODY, *(b"X-%d: a" % at for at in range(100))),
        "too many headers": request(BODY, *(b"X-%d: a" % at for at in range(200))),
        "a long header": request(BODY, b"X-A: " + b"a" * 8000),
        "too long a header": request(BODY, b"X-A: " + b"a" * 9000),
        "line ends of their own": request().replace(b"\r\n", b"\n"),
        "one such line end": request(BODY, b"X-A: a").replace(b"a\r\n\r\n", b"a\n\r\n"),
        "garbage behind": request() + b"\0garbage\r\n\r\n",
        "a redemption behind a wrong one": request(BODY, b" x") + request(),
        "half a redemption behind": request() + request()[:60],
    }


async def test_all_lanes_answer_what_is_well_formed_alike(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for new in (
        NewBlock(kind="user", subject="mallory", reason="test"),
        NewBlock(kind="network", subject="203.0.113.0/24", reason="test"),
        NewBlock(kind="device", subject="d-9", reason="test"),
    ):
        await blocks.create(plane, new, actor="cli")
    async with all_lanes(plane, redis, monkeypatch, 60) as lanes:
        for name, data in blocked().items():
            ((status, _, problem),) = await lanes.check(data)
            assert (status, b'"code":"blocked"' in problem) == ("HTTP/1.1 403 Forbidden", True), name
            assert lanes.by_aiohttp == 0, name
        for name, data in plain().items():
            assert await lanes.check(data), name
            assert lanes.by_aiohttp == 0, name
        assert await lanes.check_effects() >= len(plain()) - 8


# What the express lane leaves to the python lane, of all that is plain: what is refused before its code is
# looked up, and the last request of a connection.
FOR_THE_PYTHON_LANE: Final = {
    *("no code at all", "a long key", "a key that does not print", "the last", "the code in other letters"),
}


@pytest.mark.skipif(LANES[0] != "express", reason="the express lane was not built")
@pytest.mark.parametrize("shards", [1, 2])
async def test_the_express_lane_answers_what_is_plain_itself(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 100) as lanes:
        whole, in_pieces = set[str](), set[str]()
        for name, data in plain().items():
            behind_head = data.index(BLANK) + len(BLANK)  # many clients send head and body apart
            for left, cuts in ((whole, ()), (in_pieces, (behind_head,))):
                before = lanes.by_python
                assert await lanes.check(data, cuts), name
                if lanes.by_python != before:
                    left.add(name)
        assert whole == in_pieces == FOR_THE_PYTHON_LANE
        assert lanes.by_aiohttp == 0


LEFT: Final = {
    "body": request(b'{"code": "<code>"}'),
    "code": request(b'{"code": "?", "user": "ann"}'),
    "code_in_text": request(b'{"code": "<code>", "user": "ann", "order": "<same>"}'),
    "guard": request(b'{"code": "<code>", "user": "mallory"}'),
    "idempotency_key": request(BODY, b"Idempotency-Key: " + b"k" * 300),
    "api_key": request(BODY).replace(KEY, b"nobody"),
}


@pytest.mark.skipif(LANES[0] != "express", reason="the express lane was not built")
async def test_what_the_express_lane_leaves_is_counted_once_by_reason(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blocks.create(plane, NewBlock(kind="user", subject="mallory", reason="test"), actor="cli")
    async with all_lanes(plane, redis, monkeypatch, 10) as lanes:
        merchant = lanes.lanes[0].raw.merchant

        async def counts() -> dict[str, int]:
            async with merchant.session.get(merchant.url + "/metrics") as response:
                text = await response.text()
            found = re.findall(r'^redeem_express_left_total\{reason="(\w+)"\} (\d+)', text, re.MULTILINE)
            return {reason: int(count) for reason, count in found}

        for reason, data in LEFT.items():
            before = await counts()
            assert await lanes.check(data), reason
            after = await counts()
            assert {
                name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)
            } == {reason: 1}


@pytest.mark.parametrize("shards", [1, 2])
async def test_all_lanes_redeem_imported_codes_alike(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 1, metadata_kept=True) as lanes:
        for at, lane in enumerate(lanes.lanes):
            lane.campaign = await a_campaign(plane)
            lane.codes = [f"BRAND-{lane.name[:2].upper()}{at}-{number:0>11}" for number in range(12)]
            await bring(plane, lane.campaign, lines_of(lane.codes))
        for body in (
            BODY,
            b'{"code": "<same>", "user": "ann"}',
            b'{"code": "<code>", "user": "bob", "order": "o", "metadata": {"b": "Z\xc3\xbcrich", "a": 7}}',
            b'{"code": "<code>", "user": "bob", "metadata": {"note": "of <same>"}}',
            b'{"code": "<code>", "user": "<same>"}',
        ):
            for key in ((), (b"Idempotency-Key: i-%d" % len(body),)):
                size = len(lanes.lanes[0].codes[0])
                assert {len(lane.codes[0]) for lane in lanes.lanes} == {size}
                places = body.count(CODE) + body.count(AGAIN)
                length = len(body) + places * (size - len(CODE))
                assert await lanes.check(request(body, *key, length=length)), body
        assert lanes.by_aiohttp == 0
        assert await lanes.check_effects() > 0


FORMS: Final[dict[str, dict[str, Any]]] = {
    "no amount": {},
    "an amount": {"amount": 500, "currency": "EUR"},
    "several uses": {"kind": "multi", "max_uses": 2},
    "a balance": {"kind": "balance", "amount": 1000, "currency": "JPY"},
    "a limit for each user": {"per_user_limit": 1, "stock": 100},
    "a budget": {"amount": 300, "currency": "EUR", "budget": 700},
    "not begun": {"starts_at": "2999-01-01T00:00:00Z"},
    "a prefix": {"prefix": "SPRING-SALE"},
    **{f"codes of {name}": {"format_name": name} for name in FORMATS},
}
BODIES_OF_FORMS: Final = (
    b'{"code": "<code>", "user": "ann"}',
    b'{"code": "<same>", "user": "ann", "amount": 400, "order": "o-1"}',
    b'{"code": "<same>", "user": "a~!#$%&\'()*+/;<=>?@[]^`{|}", "amount": "up_to_balance", "order": "/"}',
    b'{"code": "<same>", "user": "bob", "amount": 500, "currency": "EUR"}',
    b'{"code": "<code>", "user": "bob", "amount": 0}',
    b'{"code": "<code>", "user": "bob", "amount": 500, "order": "ab"}',
    b'{"code": "<code>", "user": "cy", "campaign": "cmp_1"}',
    b'{"code": "<code>", "user": "dan", "order": "for <same>"}',
    b'{"code": "<code>", "user": "eve"}',
)


@pytest.mark.parametrize("shards", [1, 2])
async def test_all_lanes_answer_alike_for_every_form_of_code(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 1) as lanes:
        for name, form in FORMS.items():
            for lane in lanes.lanes:
                lane.campaign, lane.codes = await issue(plane, 12, **form)
            size = len(lanes.lanes[0].codes[0])
            for turn, body in enumerate(BODIES_OF_FORMS):
                for key in ((), (b"Idempotency-Key: %b-%d" % (name.encode(), turn % 4),)):
                    places = body.count(CODE) + body.count(AGAIN)
                    length = len(body) + places * (size - len(CODE))
                    assert await lanes.check(request(body, *key, length=length)), (name, body)
        assert lanes.by_aiohttp == 0


async def test_all_lanes_refuse_alike_what_became_void_or_paused(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 1) as lanes:
        made = []
        for lane in lanes.lanes:
            lane.campaign, _ = await issue(plane, 1)
            batch, lane.codes = await mint_batch(plane, lane.campaign, 8)
            made.append((lane.campaign, batch))
        assert await lanes.check(request())
        for _, batch in made:  # the workers learn of it from the script, in the middle of a call
            void = VoidDeclaration(batch=batch, first_serial=1, last_serial=3, reason="stolen")
            await voids.declare(plane, void, void=True, actor="cli")
        for expected in (b"code_void", b"code_void", b"code_void", b"redeemed"):
            ((_, _, body),) = await lanes.check(request())
            assert expected in body
        for campaign, _ in made:
            await campaigns.update(plane, campaign, CampaignChange(state="paused"), actor="cli")
        ((_, _, body),) = await lanes.check(request())
        assert b"campaign_inactive" in body
        assert await lanes.check_effects() == 3


async def test_all_lanes_charge_a_source_alike_and_once(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"guard_attempts_per_min": 1, "guard_attempts_burst": 9}
    async with all_lanes(plane, redis, monkeypatch, 20, **limits) as lanes:
        code_in_order = b'{"code": "<code>", "user": "ann", "order": "for <code>"}'
        bodies = (
            b'{"code": "<code>", "user": "ann"}',
            code_in_order,
            b'{"code": "0123456789ABCDEF", "user": "ann"}',
        )
        statuses = []
        for body in bodies * 4:  # one attempt of ann was made before
            ((status, _, _),) = await lanes.check(request(body))
            statuses.append(status.split(" ")[1])
        assert statuses == ["200", "400", "404"] * 2 + ["200", "400"] + ["429"] * 4


async def test_all_lanes_answer_what_is_odd_alike(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 400, request_timeout_s=5) as lanes:
        for data in odd().values():
            await lanes.check(data)
            await lanes.check(request() + data)  # found in the middle of a connection
        assert await lanes.check_effects() > len(odd())


async def test_all_lanes_answer_what_is_hostile_alike(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 500) as lanes:
        code = "0000-0000-0000-0000"
        for body, _ in wrong_bodies(code).values():
            await lanes.check(request(body.replace(code.encode(), AGAIN), length=len(body)))
        assert lanes.by_aiohttp <= 3  # too large, or empty
        raw = lanes.lanes[0].raw
        for data in malformed_http(raw, code).values():
            await lanes.check(data.replace(raw.merchant.key.encode(), KEY))
        assert await lanes.check_effects() == 0


async def test_all_lanes_say_alike_that_nothing_is_on_disk(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 4, durability="memory") as lanes:
        for body in (BODY, b"{}"):
            ((_, headers, _),) = await lanes.check(request(body))
            assert headers["redeem-durability"] == "memory"
        assert lanes.by_aiohttp == 0


async def test_all_lanes_say_alike_when_to_come_again(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 4, attempt_deadline_ms=1000, retry_after_s=7) as lanes:
        await redis.client_pause(4000)
        ((status, headers, _),) = await lanes.check(request())
        assert (status, headers["retry-after"]) == ("HTTP/1.1 503 Service Unavailable", "7")
        assert lanes.by_aiohttp == 0
        await wait_until_async(redis.ping)


async def test_a_client_that_disconnects_has_redeemed_once_and_its_retry_says_so(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 4) as lanes:
        for lane in lanes.lanes:
            merchant = lane.raw.merchant
            code = lane.codes.pop()
            body = json.dumps({"code": code, "user": "ann"}).encode()
            await redis.client_pause(300)
            _, writer = await lane.raw.connect()
            lanes.lanes[0].read.bytes = 0
            writer.write(lane.raw.request(body, "Idempotency-Key: once"))
            await wait_until_async(lambda: lanes.lanes[0].read.bytes > 0)
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
            status, answer = await merchant.redeem(code, key="once")
            assert (status, answer["replayed"]) == (200, True)
        assert lanes.by_aiohttp == 0
        assert await lanes.check_effects() == 1
