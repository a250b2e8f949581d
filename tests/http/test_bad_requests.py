"""Requests that are no good HTTP, over real sockets: refused from the table, never echoed, never logged."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp
import pytest
from hypothesis import strategies as st

from engine.control import api_keys
from engine.http import redemptions
from engine.processes.reservations import reserve_port
from tests.support.bad_input import (
    ANSWER_TIMEOUT_S,
    BLANK,
    Answer,
    Raw,
    check,
    check_hidden,
    check_untouched,
    malformed_http,
    read_answer,
    run_examples,
    wrong_bodies,
)
from tests.support.deployment import Merchant, Process, engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.streams import count_events
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings


async def test_wrong_headers_are_refused(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    body = json.dumps({"code": code, "user": "ann"}).encode()
    cases: dict[str, tuple[tuple[str, ...], str]] = {
        "two API keys": (("Authorization: Bearer another",), "malformed_request"),
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


async def test_blank_lines_before_a_request_do_not_shift_where_it_ends(
    plane: ControlPlane, redis: Redis
) -> None:
    """Else the bytes of a body would run as a request: here, a redemption inside another request's body."""
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        inside = raw.request(json.dumps({"code": code, "user": "ann"}).encode())
        for blank in (BLANK, BLANK + b"\r\n"):
            outer = raw.request(b"", line="POST /v1/nowhere HTTP/1.1", bare=True)[: -len(BLANK)]
            # With this length, counted from the blank, the request would end with its first packet.
            first = outer + b"\r\nContent-Length: 000" + BLANK
            first = first.replace(b": 000", b": %03d" % (len(blank + first) - len(BLANK)))
            reader, writer = await raw.connect()
            writer.write(raw.request(b"{}", line="POST /v1/nowhere HTTP/1.1"))  # leaves the fast lane
            assert await read_answer(reader)
            writer.write(blank + first)
            assert (await read_answer(reader) or Answer(0, {}, b"")).status == 404
            writer.write(inside)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.5):
                    await reader.read()
            writer.transport.abort()
        await check_untouched(redis, merchant, code)


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
    assert await count_events(redis, 0) == 1


async def test_connections_past_the_limit_are_answered_so(plane: ControlPlane) -> None:
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


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel cannot end connections")
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("ends", [False, True])
async def test_clients_that_never_read_do_not_keep_others_out(
    plane: ControlPlane, lane: str, ends: bool
) -> None:
    """Their answers do not fit into the buffers, also while a connection is being closed."""
    async with engine_in_process(plane, lane=lane, connections_max=2, keepalive_s=1) as merchant:
        await merchant.session.connector.close()  # type: ignore[union-attr] # the one that saw it ready
        raw, address = Raw(merchant), urlsplit(merchant.url)
        health = raw.request(b"", line="GET /healthz HTTP/1.1")

        async def has_status(status: int) -> bool:
            answer = await raw.send(health)
            return answer is not None and answer.status == status

        await wait_until_async(lambda: has_status(200))
        async with contextlib.AsyncExitStack() as stack:

            async def is_stuck() -> bool:
                """Ask for more than fits into the buffers, and read nothing; False if it was refused."""
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect((address.hostname, address.port))
                client.sendall(raw.request(b"", line="GET /openapi.json HTTP/1.1") * 40)
                if ends:
                    client.shutdown(socket.SHUT_WR)
                client.settimeout(0)
                return bool(await wait_until_async(lambda: peek(client))) and b" 200 " in peek(client)

            for _ in range(2):
                await wait_until_async(is_stuck)
            await wait_until_async(lambda: has_status(200))


def peek(client: socket.socket) -> bytes:
    """The status line that has arrived, which stays unread; empty as long as there is none."""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        return client.recv(len(b"HTTP/1.1 200 "), socket.MSG_PEEK)
    return b""


async def test_a_bug_of_ours_shows_nothing_of_the_request_either(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)

    def fail(body: bytes, _: Settings) -> None:
        raise RuntimeError(body)

    async with engine_in_process(plane, lane="python") as merchant:  # compiled code cannot be replaced
        monkeypatch.setattr(redemptions, "parse_redeem_request", fail)
        answer = await Raw(merchant).post(json.dumps({"code": code, "user": "ann"}).encode())
    assert (answer.status, answer.code) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    check_hidden(answer.body.decode(), code)
    check_hidden(caplog.text.replace("Traceback", ""), code)
    assert "RuntimeError" in caplog.text  # but where it was is told


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


async def test_what_follows_a_connect_is_no_request(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        raw = Raw(merchant)
        hidden = raw.request(json.dumps({"code": code, "user": "ann"}).encode())
        head = f"CONNECT /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {len(hidden)}\r\n\r\n".encode()
        reader, writer = await raw.connect()
        writer.write(head + hidden)
        answer = await read_answer(reader)
        assert answer is not None
        assert answer.status == 400
        assert await reader.read() == b""
        writer.close()
        assert (await merchant.redeem(code))[0] == 200
