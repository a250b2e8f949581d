"""Wrong bodies, over real sockets: refused from the table, never echoed, never logged."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.support.deployment import engine_in_process, issue
from tests.support.streams import count_events

if TYPE_CHECKING:
    import pytest
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
from tests.support.bad_input import (
    ANSWER_TIMEOUT_S,
    CHUNKED,
    Answer,
    Raw,
    check,
    check_hidden,
    check_untouched,
    chunked,
    nested,
    run_examples,
    wrong_bodies,
)

NUMBERS = st.integers() | st.floats() | st.integers(-(2**70), 2**70)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("code", "user", "amount", "order", "client", "metadata")


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
    assert await count_events(redis, 0) == 1


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
