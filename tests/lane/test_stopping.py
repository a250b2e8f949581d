"""What is in flight when a worker stops is answered, in both lanes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.control import api_keys
from engine.worker import serving
from tests.support.bad_input import Raw, read_answer
from tests.support.deployment import Merchant, client_session, issue, wait_until_ready
from tests.support.lanes import LANES, Read
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_in_flight_when_a_worker_stops_is_answered(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch, *, lane: str
) -> None:
    _, (code,) = await issue(plane, 1)
    settings = replace(plane.settings, port=0, lane=lane)
    key = (await api_keys.create(plane, "merchant", ["redeem"])).value.key
    read = Read(monkeypatch)
    async with client_session() as session, serving(settings, None) as port:
        merchant = Merchant(session, f"http://{settings.host}:{port}", key)
        await wait_until_ready(merchant)
        raw = Raw(merchant)
        assert (await raw.post(b"{}")).status == 400  # its key is known
        await redis.client_pause(300)
        reader, writer = await raw.connect()
        data = raw.request(json.dumps({"code": code, "user": "ann"}).encode())
        target = read.bytes + len(data)
        writer.write(data)
        await wait_until_async(lambda: read.bytes == target)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    answer = await read_answer(reader)
    assert answer is not None
    assert answer.status == 200
    assert await reader.read() == b""
    writer.close()
