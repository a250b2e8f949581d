"""The fast lane by itself, over real sockets: the order of answers, hand-overs, and odd clients.

What it redeems with is the test's, so that the test says when an answer comes. What both lanes do
alike, with a whole engine behind them, is in ``test_lanes_alike``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import pytest
import uvloop

from engine.lane import lanes as lanes_module
from engine.lane import protocol
from engine.lane.head import WAITING_BYTES_MAX
from tests.support.bad_input import read_answer
from tests.support.lanes import (
    LIMIT_S,
    OTHER,
    SLOW,
    bodies,
    connect_small,
    echo,
    front_end,
    post,
    shrink_buffers,
    turns,
)
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.guard.signatures import SignedHead
    from engine.lane.lanes import Lanes
    from engine.redemption.attempt import OnDone
    from tests.support.lanes import Front


async def test_a_request_may_be_cut_anywhere() -> None:
    async with front_end() as (front, _):
        whole = post(b'{"a": 1}', "Idempotency-Key: k")
        reader, writer = await front.connect()
        for cut in range(len(whole)):  # one after another on one connection
            writer.write(whole[:cut])
            await turns()
            writer.write(whole[cut:])
            answer = await read_answer(reader)
            assert answer is not None
            body = json.loads(answer.body)
            assert (body["id"], body["campaign"]) == ('{"a": 1}', "k"), cut
        for byte in whole:
            writer.write(bytes([byte]))
            await turns()
        assert await bodies(reader, 1) == ['{"a": 1}']
        assert front.others == []
        assert len(front.asked) == len(whole) + 1
        writer.close()


async def test_a_request_behind_one_in_flight_waits_for_its_turn() -> None:
    async with front_end() as (front, _):
        front.at_once = False
        reader, writer = await front.connect()
        for number in range(0, 20, 2):
            second = post(b"%d" % (number + 1))
            await front.send(writer, post(b"%d" % number), second[:number], second[number:])
            assert len(front.asked) == number + 1  # the next waits for the answer to this one
            front.answer()
            assert await bodies(reader, 1) == [str(number)]
            front.answer()
            assert await bodies(reader, 1) == [str(number + 1)]
        assert front.others == []
        writer.close()


async def test_several_requests_at_once_are_aiohttps_and_keep_their_order() -> None:
    async with front_end() as (front, _):
        front.at_once = False
        reader, writer = await front.connect()
        glued = b"".join(post(b"%d" % number) for number in range(1, 100))
        await front.send(writer, post(b"0"), glued[:500], glued[500:-3])
        assert front.others == []
        front.answer()
        assert await bodies(reader, 99) == [str(number) for number in range(99)]
        writer.write(glued[-3:])
        assert await bodies(reader, 1) == ["99"]
        assert front.asked == [b"0"]
        writer.close()


async def test_aiohttp_gets_what_is_no_redemption_in_its_turn_and_the_lane_gets_the_client_back() -> None:
    async with front_end() as (front, lanes):
        front.at_once = False
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"), OTHER)
        assert front.others == []  # nothing else while something is in flight
        front.answer()
        assert await bodies(reader, 2) == ["1", "other"]
        front.at_once = True
        for number in range(20):
            writer.write(post(b"%d" % number))
            assert await bodies(reader, 1) == [str(number)]
            writer.write(post(b"x%d" % number).replace(b"/v1/redemptions", b"/v1/others"))
            assert await bodies(reader, 1) == [f"x{number}"]
        assert front.asked == [b"1", *(b"%d" % number for number in range(20))]  # none of them by aiohttp
        assert [body for _, body in front.others] == [b"", *(b"x%d" % number for number in range(20))]
        assert lanes._shared.connections.open == 1
        writer.close()


async def test_a_redemption_behind_what_aiohttp_still_answers_waits_for_its_turn() -> None:
    async with front_end() as (front, _):
        reader, writer = await front.connect()
        writer.write(OTHER.replace(b"/other", SLOW.encode()))
        await turns(20)
        writer.write(post(b"1"))
        await turns(20)
        assert (front.asked, front.others) == ([], [])
        front.may_answer.set()
        assert await bodies(reader, 2) == ["other", "1"]
        assert front.asked == []  # aiohttp had taken it up
        writer.write(post(b"2"))
        assert await bodies(reader, 1) == ["2"]
        assert front.asked == [b"2"]
        writer.close()


async def test_a_request_whose_end_is_unclear_stays_with_aiohttp() -> None:
    async with front_end() as (front, _):
        reader, writer = await front.connect()
        for piece in (OTHER[:9], OTHER[9:], post(b"1")):  # the end of its head comes by itself
            writer.write(piece)
            await turns()
        assert await bodies(reader, 2) == ["other", "1"]
        writer.write(OTHER + post(b"2") + OTHER)
        assert await bodies(reader, 3) == ["other", "2", "other"]
        writer.write(post(b"3"))
        assert await bodies(reader, 1) == ["3"]
        assert front.asked == []
        writer.close()


async def test_an_unknown_key_is_for_aiohttp_to_find_out_about() -> None:
    async with front_end() as (front, _):
        front.known = False
        reader, writer = await front.connect()
        for number in (b"1", b"2"):
            writer.write(post(number)[:-1])
            await turns()
            writer.write(number)
            assert await bodies(reader, 1) == [number.decode()]
        front.known = True
        writer.write(post(b"3"))
        assert await bodies(reader, 1) == ["3"]
        assert [body for _, body in front.others] == [b"1", b"2"]
        assert front.asked == [b"3"]
        writer.close()


@pytest.mark.parametrize(
    "odd",
    [
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "Upgrade: h2c",
        "Connection: upgrade",
        "Content-Encoding: gzip",
        "Signature: sig1=:AAAA:",
        "X-Twice: a\r\nX-Twice: b",
        "authorization: Bearer other",
    ],
)
async def test_what_is_not_plain_is_handed_over_whole(odd: str) -> None:
    async with front_end() as (front, _):
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"))
        assert await bodies(reader, 1) == ["1"]
        writer.write(post(b"2", odd))
        assert await reader.read(7) == b"HTTP/1."
        assert front.asked == [b"1"]
        writer.close()


async def test_who_says_no_more_gets_all_answers_to_what_was_whole() -> None:
    async with front_end() as (front, _):
        front.at_once = False
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"), post(b"2"))
        writer.write_eof()
        await turns()
        front.answer()
        front.answer()
        assert await bodies(reader, 2) == ["1", "2"]
        assert await reader.read() == b""
        writer.close()
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"), post(b"4") + OTHER + post(b"3")[:-1])
        writer.write_eof()
        await turns()
        front.answer()
        assert await bodies(reader, 3) == ["1", "4", "other"]
        assert await reader.read() == b""
        writer.close()
        reader, writer = await front.connect()
        writer.write(post(b"3")[:-1])
        writer.write_eof()
        assert await reader.read() == b""
        assert front.asked == [b"1", b"2", b"1"]
        writer.close()


async def test_a_client_that_vanishes_is_forgotten_and_its_answer_goes_nowhere() -> None:
    async with front_end() as (front, lanes):
        front.at_once = False
        _, writer = await front.connect()
        await front.send(writer, post(b"1"), post(b"2"))
        reset = struct.pack("ii", 1, 0)  # else it could still read, as far as anybody can tell
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        await wait_until_async(lambda: lanes._shared.connections.open == 0)
        front.answer()
        assert front.asked == [b"1"]  # nobody waits for the second


async def test_an_answer_that_comes_twice_is_not_taken_for_that_to_the_next_request() -> None:
    async with front_end() as (front, _):
        front.at_once = False
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"), post(b"2"))
        again = front.waiting[0]
        front.answer()
        await wait_until_async(lambda: front.asked == [b"1", b"2"])
        again(echo("wrong"))
        last = front.waiting[0]
        front.answer()
        again(echo("wrong"))
        last(echo("wrong"))
        assert await bodies(reader, 2) == ["1", "2"]
        writer.write(OTHER)
        assert await bodies(reader, 1) == ["other"]
        writer.close()


async def fill(front: Front, lanes: Lanes, writer: asyncio.StreamWriter) -> protocol.FastLane:
    """Send one redemption after another, until the answers stop going out; the lane."""
    await front.send(writer, post(b"%d" % len(front.asked)))
    (lane,) = lanes._shared.open
    assert isinstance(lane, protocol.FastLane)
    while not lane._writing_paused:
        await front.send(writer, post(b"%d" % len(front.asked)))
    return lane


async def test_who_does_not_read_is_not_read_from_and_gets_everything_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_buffers(monkeypatch)
    async with front_end() as (front, lanes):
        reader, writer = await connect_small(front)
        lane = await fill(front, lanes, writer)
        taken = len(front.asked)
        writer.write(post(b"behind"))
        await turns(50)
        assert len(front.asked) == taken
        assert lane._transport is not None
        assert not lane._transport.is_reading()
        assert await bodies(reader, taken) == [str(at) for at in range(taken)]
        assert await bodies(reader, 1) == ["behind"]
        assert len(front.asked) == taken + 1
        writer.close()


async def test_who_does_not_read_and_says_no_more_gets_everything_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_buffers(monkeypatch)
    async with front_end() as (front, lanes):
        reader, writer = await connect_small(front)
        await fill(front, lanes, writer)
        taken = len(front.asked)
        writer.write(OTHER)
        writer.write_eof()
        await turns(50)
        assert await bodies(reader, taken + 1) == [*(str(at) for at in range(taken)), "other"]
        assert await reader.read() == b""
        writer.close()


async def test_who_never_reads_is_cut_off_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_buffers(monkeypatch)
    async with front_end(keepalive_s=1) as (front, lanes):
        _, writer = await connect_small(front)
        await fill(front, lanes, writer)
        await wait_until_async(lambda: lanes._shared.connections.open == 0)
        writer.transport.abort()


async def test_what_waits_behind_a_request_in_flight_is_bounded() -> None:
    async with front_end() as (front, lanes):
        front.at_once = False
        reader, writer = await front.connect()
        whole = b"".join(post(b"%06d" % number + b" " * 1000) for number in range(2000))
        await front.send(writer, post(b"first"), whole)
        (lane,) = lanes._shared.open
        assert isinstance(lane, protocol.FastLane)
        await wait_until_async(lambda: lane._reading_paused)
        await turns(50)
        assert len(lane._received) < WAITING_BYTES_MAX + 2**18 < len(whole)  # what was read at once
        front.answer()
        assert await bodies(reader, 1) == ["first"]
        assert [body[:6] for body in await bodies(reader, 2000)] == [f"{at:06}" for at in range(2000)]
        writer.close()


async def test_the_end_waits_for_what_is_in_flight_and_takes_nothing_more() -> None:
    async with front_end() as (front, lanes):
        front.at_once = False
        reader, writer = await front.connect()
        idle, idle_writer = await front.connect()
        idle_writer.write(post(b"0")[:20])
        await front.send(writer, post(b"1"), post(b"2"))
        ending = asyncio.create_task(lanes.close(LIMIT_S))
        assert await idle.read() == b""
        assert not ending.done()
        front.answer()
        assert await bodies(reader, 1) == ["1"]
        assert await reader.read() == b""
        await ending
        assert front.asked == [b"1"]
        writer.close()
        idle_writer.close()


async def test_the_end_does_not_wait_longer_than_it_may() -> None:
    async with front_end(stop_s=0) as (front, lanes):
        front.at_once = False
        reader, writer = await front.connect()
        await front.send(writer, post(b"1"))
        await lanes.close(0)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        front.answer()
        writer.close()


async def test_who_says_nothing_is_hung_up_on() -> None:
    async with front_end(keepalive_s=1, request_timeout_s=1) as (front, lanes):
        reader, writer = await front.connect()
        assert await reader.read() == b""
        writer.close()
        reader, writer = await front.connect()
        writer.write(post(b"1"))
        assert await bodies(reader, 1) == ["1"]
        assert await reader.read() == b""
        writer.close()
        await wait_until_async(lambda: lanes._shared.connections.open == 0)
        assert front.others == []


async def test_a_slow_request_is_aiohttps_with_its_limits_and_is_answered_if_it_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.0)
    monkeypatch.setattr(lanes_module, "TICK_S", 0.01)
    async with front_end() as (front, lanes):
        reader, writer = await front.connect()
        for cut in (1, 40, len(post(b"1")) - 1):  # within the line, the head, the body
            writer.write(post(b"1")[:cut])
            await wait_until_async(lambda: not lanes._shared.open)
            writer.write(post(b"1")[cut:])
            assert await bodies(reader, 1) == ["1"]
            writer.close()
            reader, writer = await front.connect()
        assert front.asked == []
        assert [body for _, body in front.others] == [b"1"] * 3
        writer.close()


async def test_the_last_answer_is_said_to_be_the_last() -> None:
    async with front_end() as (front, _):
        reader, writer = await front.connect()
        writer.write(post(b"1", "Connection: keep-alive"))
        first = await read_answer(reader)
        writer.write(post(b"2", "Connection: Close"))
        second = await read_answer(reader)
        assert first is not None
        assert second is not None
        assert ("connection" in first.headers, second.headers["connection"]) == (False, "close")
        assert await reader.read() == b""
        assert front.asked == [b"1", b"2"]
        writer.close()


async def test_a_bug_of_ours_is_logged_and_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with front_end() as (front, lanes):

        def fail(_: str, __: str | None, ___: SignedHead | None, body: bytes, ____: OnDone) -> bool:
            raise RuntimeError(body)

        monkeypatch.setattr(lanes._shared, "redeem", fail)
        reader, writer = await front.connect()
        writer.write(post(b"secret"))
        answer = await read_answer(reader)
        assert answer is not None
        assert (answer.status, answer.code) == (500, "internal_error")
        assert await reader.read() == b""
        writer.close()
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


# Workers run on uvloop, whose transports are others than those of asyncio.
FOR_UVLOOP: Final = [
    test
    for name, test in tuple(globals().items())
    if name.startswith("test_") and inspect.signature(test).parameters.keys() <= {"monkeypatch"}
]


@pytest.mark.parametrize("test", FOR_UVLOOP, ids=lambda test: test.__name__)
def test_it_is_so_on_uvloop_as_well(test: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401 - any above
    needed = {"monkeypatch": monkeypatch} if inspect.signature(test).parameters else {}
    uvloop.run(test(**needed))
