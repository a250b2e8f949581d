"""All lanes answer alike whatever bytes come, and however they are cut."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.all_lanes import BODY, LIMIT_S, all_lanes, request

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

NAMES: Final = st.sampled_from(
    (
        b"X-A",
        b"Idempotency-Key",
        b"Request-Id",
        b"Connection",
        b"Content-Type",
        b"Accept",
        b"Expect",
        b"Content-Length",
    )
)
VALUES: Final = st.sampled_from(
    (b"a", b"k-1", b"close", b"keep-alive", b"application/json", b"", b" a ", b"\xff", b"5", b"100-continue")
) | st.binary(max_size=4)
HEADERS: Final = st.lists(
    st.builds(
        lambda name, gap, value: name + b":" + gap + value, NAMES, st.sampled_from((b" ", b"")), VALUES
    ),
    max_size=2,
)
LINES: Final = st.sampled_from(
    (
        *[b"POST /v1/redemptions HTTP/1.1"] * 6,
        *(b"POST /v1/redemptions HTTP/1.0", b"GET /healthz HTTP/1.1", b"POST /v1/codes/check HTTP/1.1"),
        *(b"PUT /v1/redemptions HTTP/1.1", b"POST /v1/redemptions?a HTTP/1.1"),
    )
)
BODIES: Final = st.sampled_from((*[BODY] * 4, b"{}", b"", b'{"code": "<code>", "user": "a", "amount": -1}'))
REQUESTS: Final = st.builds(
    lambda line, headers, body: request(body, *headers, line=line), LINES, HEADERS, BODIES
)
DAMAGE: Final = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 2), st.binary(max_size=2)), max_size=1
)


def damaged(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, inserted in edits:
        at = place % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]
    return data


@pytest.mark.timeout(600)  # a failure is made smaller for 5 minutes
async def test_all_lanes_answer_anything_alike_however_it_is_cut(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, 4000, request_timeout_s=5) as lanes:
        loop = asyncio.get_running_loop()

        @hypothesis_settings(
            max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(REQUESTS, min_size=1, max_size=3), DAMAGE, st.lists(st.integers(0, 2000), max_size=3))
        @example([request(), request(line=b"GET /healthz HTTP/1.1", body=b""), request()], [], [])
        def alike(parts: list[bytes], edits: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
            data = damaged(b"".join(parts), edits)
            asyncio.run_coroutine_threadsafe(lanes.check(data, cuts), loop).result(2 * LIMIT_S)

        await asyncio.to_thread(alike)
        assert await lanes.check_effects() > 20
