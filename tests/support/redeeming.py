"""Makes one redemption over HTTP, and checks that its response shows no code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.streams import read_events

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.support.deployment import Merchant


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.text)


async def post(
    merchant: Merchant,
    body: object,
    *,
    method: str = "POST",
    path: str = "/v1/redemptions",
    authorization: str | None = "",
    **headers: str,
) -> Answer:
    """Make a call with any body; an empty ``authorization`` means the merchant's key."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    if authorization is not None:
        headers["Authorization"] = authorization or f"Bearer {merchant.key}"
    url = merchant.url + path
    async with merchant.session.request(method, url, data=data, headers=headers) as response:
        return Answer(response.status, dict(response.headers), await response.text())


def check_refused(answer: Answer, status: int, code: str) -> None:
    """Check that the response is a complete problem document with this code."""
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(answer.body) - {"replayed"} == {"type", "title", "status", "detail", "code"}
    assert answer.body["status"] == status
    assert ("Retry-After" in answer.headers) == (status == 503)


def symbols(code: str) -> str:
    return code.replace("-", "")


def check_code_absent(code: str, text: str) -> None:
    """Check that a text shows at most the last four symbols of a code, in any notation."""
    flat = re.sub(r"[^0-9A-Za-z]", "", text).upper()
    hidden = symbols(code)[:-4]
    for at in range(len(hidden) - 4):
        assert hidden[at : at + 5] not in flat


async def redeemed_codes(redis: Redis, batch_and_serial: bool = False) -> list[Any]:
    """Return the successful redemptions in the stream."""
    entries = await read_events(redis, 0)
    return [(int(e[b"batch"]), int(e[b"serial"])) if batch_and_serial else e for _, e in entries]
