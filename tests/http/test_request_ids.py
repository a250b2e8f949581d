"""Every answer has a Request-Id, in both lanes and outside of them, and a log line about a request has it."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import re
from typing import TYPE_CHECKING, Final

import pytest

from engine.api.request_ids import PROCESS, next_number
from engine.http import redemptions
from engine.lane.choice import MODULE
from engine.redemption.redeem import Redemption
from tests.support.bad_input import Raw, malformed_http
from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

MADE: Final = re.compile(r"req-[0-9a-f]{12}-[0-9a-f]+")
TWO_DIGITS: Final = 0x1A
GIVEN: Final = "0b9d2a7e-58a1-4a6f-9d0b-0f6f1f3a2c11"


@pytest.mark.parametrize("lane", LANES)
async def test_each_answer_has_an_id_of_its_own_or_that_of_the_client(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, lane=lane, scopes=("redeem", "events")) as merchant:
        raw = Raw(merchant)
        made = []
        while (before := next_number()) < TWO_DIGITS:
            pass
        for body in (*(json.dumps({"code": code, "user": "ann"}) for code in codes[:2]), "{}"):
            answer = await raw.post(body.encode())
            made.append(answer.headers["request-id"])
        assert made == [f"{PROCESS}{before + number:x}" for number in (1, 2, 3)]
        redemption = json.dumps({"code": codes[2], "user": "ann"}).encode()
        for given in (GIVEN, "a", "x" * 128, "trace/1:2=3+4~5@6._-"):
            answer = await raw.post(redemption, f"Request-Id: {given}")
            assert answer.headers["request-id"] == given
        for refused in ("", "a b", "x" * 129, "a\udc80", '"a"', codes[0], f"for {codes[0]}"):
            answer = await raw.post(redemption, f"Request-Id: {refused}")
            assert MADE.fullmatch(answer.headers["request-id"]), refused


async def test_answers_from_outside_of_the_handlers_have_one_too(plane: ControlPlane) -> None:
    async with engine_in_process(plane, connections_max=3, scopes=("redeem", "events")) as merchant:
        raw = Raw(merchant)
        lines = ("GET /healthz", "GET /nowhere", "DELETE /v1/redemptions", "GET /v1/keys", "GET /v1/events")
        for line in lines:
            answer = await raw.send(raw.request(b"", f"Request-Id: {GIVEN}", line=f"{line} HTTP/1.1"))
            assert answer is not None
            assert answer.headers["request-id"] == GIVEN, line
        for name, data in malformed_http(raw, "0000-0000-0000-0000").items():
            answer = await raw.send(data, then_close=True)
            assert answer is None or "request-id" in answer.headers, name
        stream = raw.request(b"", "Accept: text/event-stream", line="GET /v1/events HTTP/1.1", bare=True)
        reader, writer = await raw.connect()
        writer.write(stream)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head
        assert b"\r\nRequest-Id: req-" in head
        others = [await raw.connect() for _ in range(3)]
        refused = [await other.read() for other, _ in others[2:]]
        assert all(b"overloaded" in answer and b"\r\nRequest-Id: req-" in answer for answer in refused)
        for _, one in (*others, (reader, writer)):
            one.transport.abort()


@pytest.mark.parametrize("lane", LANES)
async def test_a_failure_is_logged_with_the_id_of_its_request(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    campaign, (code,) = await issue(plane, 1)
    body = json.dumps({"code": code, "user": "ann", "campaign": campaign}).encode()
    at_once: tuple[object, str] = (redemptions, "parse_redeem_request")
    later: tuple[object, str] = (Redemption, "bind_code")
    if lane == "express":
        express = importlib.import_module(MODULE)
        at_once, later = (express, "Assertions"), (express, "masked")
    async with engine_in_process(plane, lane=lane) as merchant:
        raw = Raw(merchant)
        await raw.post(body.replace(code.encode(), b"0000"), "Request-Id: a")  # so that both are known
        monkeypatch.setattr(*at_once, fail)
        answer = await raw.post(body, "Request-Id: at-once")
        assert answer.code == "internal_error"
        monkeypatch.undo()
        monkeypatch.setattr(*later, fail)
        async with asyncio.timeout(30):
            answer = await raw.post(body, "Request-Id: later")
        assert answer.code == "internal_error"
    logged = [getattr(record, "request_id", None) for record in caplog.records]
    assert "at-once" in logged
    assert "later" in logged
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors
