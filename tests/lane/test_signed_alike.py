"""All lanes verify signed redemptions alike; the fast lanes do it by themselves where the head is plain."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.lane.connection import ClientConnection
from tests.support.all_lanes import all_lanes
from tests.support.lanes import LANES
from tests.support.signing import Signer, a_signer, signed_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.all_lanes import AllLanes, Lane

    Headers = list[tuple[str, str]]

NAMES: Final = ("Content-Digest", "Signature-Input", "Signature", "Idempotency-Key")


class Signed:
    """Sends a signed redemption to each lane, changed alike, and compares the answers."""

    def __init__(self, lanes: AllLanes, signers: dict[str, Signer]) -> None:
        self.lanes, self.signers = lanes, signers
        self.sent: dict[str, bytes] = {}  # by lane: the latest request

    async def check(self, *, cuts: tuple[int, ...] = (), **how: Any) -> tuple[int, str]:  # noqa: ANN401 - the parts of a request
        """Send a request that is made so. Status, and code of the refusal; empty for a success."""
        for lane in self.lanes.lanes:
            self.sent[lane.name] = self._request(lane, **how)
        return await self.again(cuts)

    async def again(self, cuts: tuple[int, ...] = ()) -> tuple[int, str]:
        """Send the same bytes once more."""
        found = [await lane.exchange(self.sent[lane.name], cuts) for lane in self.lanes.lanes]
        assert [one[1:] for one in found[0]] == [one[1:] for one in found[-1]]
        assert all(one == found[0] for one in found), found
        (status_line, _, body), *_ = found[0]
        said = json.loads(body) if body.startswith(b"{") and b"code" in body else {}
        return int(status_line.split()[1]), said.get("code", "")

    def _request(
        self,
        lane: Lane,
        *,
        change: Callable[[Headers], Headers] = list,
        key: str = "k",
        ahead_s: float = 0.0,
        body_change: tuple[bytes, bytes] = (b"", b""),
        secret: str = "",
        new_code: bool = False,
    ) -> bytes:
        signer = self.signers[lane.name]
        if new_code:
            lane.latest = lane.codes.pop(0).encode()
        body = b'{"code": "%b", "user": "ann"}' % lane.latest
        now = time.time()
        with pytest.MonkeyPatch.context() as context:
            context.setattr(time, "time", lambda: now + ahead_s)
            signed = signed_headers(
                signer.keyid, secret or signer.secret, "POST", "http://Shop.example/v1/redemptions", body, key
            )
        headers = [
            ("Host", "Shop.example"),
            ("Authorization", f"Bearer {signer.key}"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *((name, signed[name]) for name in NAMES),
        ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in change(headers))
        return f"POST /v1/redemptions HTTP/1.1\r\n{lines}\r\n".encode() + body.replace(*body_change)


async def signed_lanes(plane: ControlPlane, lanes: AllLanes, **changes: Any) -> Signed:  # noqa: ANN401 - settings
    signers = {lane.name: await a_signer(plane, lane.raw.merchant, **changes) for lane in lanes.lanes}
    signed = Signed(lanes, signers)
    assert await signed.check(key="first", new_code=True) == (200, "")  # the workers know the keys now
    lanes.by_aiohttp = lanes.by_python = 0
    return signed


def replacing(name: str, pattern: str, by: str) -> Callable[[Headers], Headers]:
    def change(headers: Headers) -> Headers:
        assert any(other == name and re.search(pattern, value) for other, value in headers)
        return [(other, re.sub(pattern, by, value) if other == name else value) for other, value in headers]

    return change


def leaving(name: str) -> Callable[[Headers], Headers]:
    return lambda headers: [one for one in headers if one[0] != name]


def doubling(name: str) -> Callable[[Headers], Headers]:
    return lambda headers: [*headers, next(one for one in headers if one[0] == name)]


REFUSED_BY_ITSELF: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "another host": ("signature_invalid", {"change": replacing("Host", "Shop", "Show")}),
    "another key": ("signature_invalid", {"change": replacing("Idempotency-Key", "k", "j")}),
    "another secret": ("signature_invalid", {"secret": "rs_another"}),
    "another body": ("content_digest_mismatch", {"body_change": (b"ann", b"bob")}),
    "reordered": (
        "signature_components_reordered",
        {"change": replacing("Signature-Input", '"@method" "@authority"', '"@authority" "@method"')},
    ),
    "not signed": ("signature_component_missing", {"change": replacing("Signature-Input", ' "@query"', "")}),
    "another tag": ("signature_malformed", {"change": replacing("Signature-Input", '"redeem"', '"other"')}),
    "one more parameter": (
        "signature_malformed",
        {"change": replacing("Signature-Input", ";alg=", ";expires=1;alg=")},
    ),
    "another label": ("signature_malformed", {"change": replacing("Signature", "sig=", "other=")}),
    "two in one": ("signature_malformed", {"change": replacing("Signature", "$", ", b=:AAAA:")}),
    "no SHA-256": ("signature_invalid", {"change": replacing("Content-Digest", "sha-256", "sha-512")}),
    "old": ("signature_expired", {"ahead_s": -302.0}),
    "ahead": ("signature_in_future", {"ahead_s": 40.0}),
}
FOR_AIOHTTP: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "an unknown secret": (
        "signature_key_unknown",
        {"change": replacing("Signature-Input", "sgn_....", "sgn_9999")},
    ),
    "unsigned": (
        "signature_required",
        {"change": lambda headers: leaving("Signature")(leaving("Signature-Input")(headers))},
    ),
    **{f"no {name}": ("signature_malformed", {"change": leaving(name)}) for name in NAMES[1:3]},
    "no Content-Digest": ("signature_component_missing", {"change": leaving("Content-Digest")}),
    "no Idempotency-Key": ("signature_component_missing", {"change": leaving("Idempotency-Key")}),
    **{f"{name} twice": ("signature_header_repeated", {"change": doubling(name)}) for name in NAMES},
    "an empty signature": ("signature_malformed", {"change": replacing("Signature", ".+", "")}),
    "a tab in the signature": ("signature_malformed", {"change": replacing("Signature", "=:", "=\t:")}),
    "other letters": ("signature_malformed", {"change": replacing("Signature-Input", "nonce", "nönce")}),
    "another host in other letters": ("signature_invalid", {"change": replacing("Host", "Shop", "Shöp")}),
}  # fmt: skip
VALID: Final[dict[str, dict[str, Any]]] = {
    "another time": {"ahead_s": 25.0},
    "names in lower case": {"change": lambda headers: [(name.lower(), value) for name, value in headers]},
    "another order": {"change": lambda headers: headers[::-1]},
    "a request id": {"change": lambda headers: [*headers, ("Request-Id", "r-1")]},
    "a request id before": {"change": lambda headers: [("Request-Id", "r-2"), *headers]},
    "head and body apart": {"cuts": (700,)},
    "the host in lower case": {"change": replacing("Host", "Shop", "shop")},
}


def count_hand_overs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    found: list[None] = []
    take_over = ClientConnection.take_over

    def counting(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 - passed on
        found.append(None)
        take_over(*arguments, **named)

    monkeypatch.setattr(ClientConnection, "take_over", counting)
    return found


@pytest.mark.parametrize("shards", [1, 2])
async def test_all_lanes_verify_alike_and_the_fast_lanes_by_themselves(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    handed_over = count_hand_overs(monkeypatch)
    async with all_lanes(plane, redis, monkeypatch, 20) as lanes:
        signed = await signed_lanes(plane, lanes)
        handed_over.clear()
        for name, (code, how) in REFUSED_BY_ITSELF.items():
            assert await signed.check(**how) == (401, code), name
            assert not handed_over, name
        assert lanes.by_python == (len(REFUSED_BY_ITSELF) if "express" in LANES else 0)
        lanes.by_python = 0
        for name, how in VALID.items():
            assert await signed.check(**how, key=name, new_code=True) == (200, ""), name
            assert await signed.again(how.get("cuts", ())) == (401, "request_replayed"), name
            assert await signed.check(**how, key=name) == (200, ""), name  # an honest retry
        assert (len(handed_over), lanes.by_python) == (0, 0)
        for name, (code, how) in FOR_AIOHTTP.items():
            assert await signed.check(**how) == (401, code), name
            assert len(handed_over) == len(LANES) - 1, name
            handed_over.clear()
        assert await signed.check(key="first", new_code=True) == (422, "idempotency_key_reused")
        assert shards > 1 or await lanes.check_effects() == 1 + len(VALID)


async def test_an_optional_signature_is_looked_at_where_it_is_there(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over = count_hand_overs(monkeypatch)
    async with all_lanes(plane, redis, monkeypatch, 20) as lanes:
        signed = await signed_lanes(plane, lanes, signing="optional")
        handed_over.clear()
        unsigned = FOR_AIOHTTP["unsigned"][1]
        assert await signed.check(**unsigned, key="unsigned", new_code=True) == (200, "")
        assert await signed.check(key="signed", new_code=True) == (200, "")
        forged = REFUSED_BY_ITSELF["another secret"][1]
        assert await signed.check(**forged, key="forged") == (401, "signature_invalid")
        assert not handed_over
