"""Signed requests over real HTTP: what is refused, each with its own code, and what is not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.lanes import LANES
from tests.support.signing import Signer, a_signer, body_of
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

REORDERED = ('"@method" "@authority"', '"@authority" "@method"')


def changed(headers: dict[str, str], name: str, old: str, new: str) -> dict[str, str]:
    assert old in headers[name]
    return headers | {name: headers[name].replace(old, new)}


def signed_at(signer: Signer, seconds: float, monkeypatch: pytest.MonkeyPatch, body: bytes) -> dict[str, str]:
    now = time.time()
    with monkeypatch.context() as context:
        context.setattr(time, "time", lambda: now + seconds)
        return signer.sign(body, "k")


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_wrong_with_a_signed_redemption_is_said_and_nothing_is_done(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    campaign, (code,) = await issue(plane, 1)
    body = body_of(code)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer, other = [await a_signer(plane, merchant) for _ in range(2)]
        good = signer.sign(body, "k")
        unsigned = {name: good[name] for name in ("Authorization", "Content-Type", "Idempotency-Key")}
        forged = Signer(merchant, signer.id, signer.key, signer.keyid, other.secret)
        wrong: list[tuple[str, dict[str, str], bytes]] = [
            ("signature_required", unsigned, body),
            ("signature_key_unknown", changed(good, "Signature-Input", signer.keyid, other.keyid), body),
            ("signature_key_unknown", other.sign(body, "k") | {"Authorization": good["Authorization"]}, body),
            ("signature_invalid", forged.sign(body, "k"), body),
            ("signature_invalid", good | {"Idempotency-Key": "other"}, body),
            ("signature_invalid", good | {"Host": "other.example"}, body),
            ("signature_invalid", good | {"Content-Digest": other.sign(b"{}", "k")["Content-Digest"]}, body),
            ("content_digest_mismatch", good, body.replace(b"ann", b"bob")),
            ("signature_components_reordered", changed(good, "Signature-Input", *REORDERED), body),
            ("signature_component_missing", changed(good, "Signature-Input", ' "@query"', ""), body),
            ("signature_component_missing", without(good, "Content-Digest"), body),
            ("signature_component_missing", without(good, "Idempotency-Key"), body),
            ("signature_malformed", without(good, "Signature"), body),
            ("signature_malformed", without(good, "Signature-Input"), body),
            ("signature_malformed", changed(good, "Signature-Input", ";alg=", ";expires=1;alg="), body),
            ("signature_malformed", changed(good, "Signature-Input", '"@method"', '"@method";req'), body),
            ("signature_malformed", changed(good, "Signature-Input", 'tag="redeem"', 'tag="other"'), body),
            ("signature_malformed", changed(good, "Signature", "sig=", "other="), body),
            ("signature_expired", signed_at(signer, -302, monkeypatch, body), body),
            ("signature_in_future", signed_at(signer, 40, monkeypatch, body), body),
        ]
        for refusal, headers, sent in wrong:
            status, answer = await signer.send(headers, sent)
            assert (status, answer["code"]) == (401, refusal), (refusal, answer)
        changed_query = await signer.send(good, body, path="/v1/redemptions?a=b")
        assert (changed_query[0], changed_query[1]["code"]) == (401, "signature_invalid")
        assert await plane.redis.hget(keys.campaign(0, campaign), "uses") is None
        status, answer = await signer.send(good, body)
        assert (status, answer["status"]) == (200, "redeemed")
        for seconds in (-295, 25):  # within the limits, and another nonce: honest retries
            status, answer = await signer.send(signed_at(signer, seconds, monkeypatch, body), body)
            assert (status, answer["replayed"]) == (200, True)


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {other: value for other, value in headers.items() if other != name}


@pytest.mark.parametrize("lane", LANES)
async def test_a_header_that_is_given_twice_is_refused(plane: ControlPlane, lane: str) -> None:
    _, (code,) = await issue(plane, 1)
    body = body_of(code)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant)
        good = signer.sign(body, "k")
        for name in ("Signature", "Signature-Input", "Content-Digest", "Idempotency-Key"):
            for again in (good[name], good[name].replace("sig=", "sig2=")):
                twice: Any = [*good.items(), (name, again)]
                status, answer = await signer.send(twice, body)
                assert (status, answer["code"]) == (401, "signature_header_repeated"), name


@pytest.mark.parametrize("lane", LANES)
async def test_a_replay_is_refused_and_an_honest_retry_gets_the_answer(
    plane: ControlPlane, lane: str
) -> None:
    _, (code, other) = await issue(plane, 2)
    body = body_of(code)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant)
        first = signer.sign(body, "k")
        status, done = await signer.send(first, body)
        assert (status, done["replayed"]) == (200, False)
        again = await signer.send(first, body)
        assert (again[0], again[1]["code"]) == (401, "request_replayed")
        assert await signer.redeem(code, "k") == (200, done | {"replayed": True})
        reused = await signer.redeem(other, "k")
        assert (reused[0], reused[1]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("lane", LANES)
async def test_off_and_optional_keys_need_no_signature(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 6)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant, signing="optional")
        off = Signer(merchant, "", merchant.key, signer.keyid, "another")
        plain = {"Authorization": f"Bearer {signer.key}", "Content-Type": "application/json"}
        bad = Signer(merchant, signer.id, signer.key, signer.keyid, "another")
        assert (await signer.send(plain, body_of(codes[0])))[0] == 200
        assert (await signer.redeem(codes[1], "k1"))[0] == 200
        assert (await bad.redeem(codes[2], "k2"))[1]["code"] == "signature_invalid"
        assert (await merchant.redeem(codes[2], key="k2"))[0] == 200
        assert (await off.redeem(codes[3], "k3"))[0] == 200
        assert (await signer.redeem(codes[4], "k4"))[0] == 200


async def test_every_call_of_a_key_that_must_sign_is_signed(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant, "read", "admin", "redeem")
        path = "/v1/redemptions?user=ann"
        plain = {"Authorization": f"Bearer {signer.key}"}
        assert (await signer.send(plain, b"", method="GET", path=path))[1]["code"] == "signature_required"
        headers = signer.sign(b"", "k", method="GET", path=path)
        assert (await signer.send(headers, b"", method="GET", path=path))[0] == 200
        other = "/v1/redemptions?user=bob"
        assert (await signer.send(headers, b"", method="GET", path=other))[1]["code"] == "signature_invalid"
        body = b'{"code": "0000-0000-0000-0000", "user": "ann"}'
        headers = signer.sign(body, "k", path="/v1/codes/check")
        assert (await signer.send(headers, body, path="/v1/codes/check"))[0] == 404
        assert (await signer.send(headers, body + b" ", path="/v1/codes/check"))[1][
            "code"
        ] == "content_digest_mismatch"
        new = b'{"name": "a", "kind": "single"}'
        headers = signer.sign(new, "c", path="/v1/campaigns")
        assert (await signer.send(headers, new + b" ", path="/v1/campaigns"))[1][
            "code"
        ] == "content_digest_mismatch"
        assert (await signer.send(headers, new, path="/v1/campaigns"))[0] == 201


async def test_two_secrets_are_accepted_until_one_is_retired(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 10_000)
    async with engine_in_process(plane, scopes=("redeem", "admin")) as merchant:
        signer = await a_signer(plane, merchant)
        path = f"/v1/keys/{signer.id}/signing-secrets"
        status, made = await merchant.call("POST", path)
        assert status == 201
        second = Signer(merchant, signer.id, signer.key, made["id"], made["secret"])
        assert (await merchant.call("POST", path))[1]["code"] == "signing_secret_limit"
        assert (await signer.redeem(codes[0], "k0"))[0] == 200
        assert (await second.redeem(codes[1], "k1"))[0] == 200
        assert (await merchant.call("DELETE", f"{path}/{signer.keyid}"))[0] == 200

        async def is_refused() -> bool:
            code, key = codes.pop(), str(len(codes))
            return bool((await signer.redeem(code, key))[1]["code"] == "signature_key_unknown")

        await wait_until_async(is_refused)
        assert (await second.redeem(codes[2], "k2"))[0] == 200
        assert (await merchant.call("DELETE", f"{path}/{made['id']}"))[1]["code"] == "signing_secret_limit"
        dumps = await dump_of_database(plane), await dump_of_redis(plane.redis)
        for secret in (signer.secret, second.secret):
            assert all(secret not in str(dump) and secret.encode().hex() not in str(dump) for dump in dumps)


async def test_a_worker_without_the_mint_key_of_a_secret_does_not_verify(
    plane: ControlPlane, tmp_path: Path
) -> None:
    others = tmp_path / "mint-keys"
    others.write_text(f"k1 {'ab' * 32}\n")
    others.chmod(0o600)
    unknown = "0000-0000-0000-0000"
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant)
        async with engine_in_process(plane, mint_keys_file=others, mint_keys="") as stranger:
            elsewhere = Signer(stranger, signer.id, signer.key, signer.keyid, signer.secret)
            assert (await elsewhere.redeem(unknown, "k"))[1]["code"] == "store_unavailable"
        assert (await signer.redeem(unknown, "k"))[1]["code"] == "code_not_found"
