"""Signed batches, whose items have their own idempotency keys, and signed imports, whose body is a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from engine.control import audit_log
from engine.control.publishing import shard_version
from engine.imports import records
from tests.support.deployment import engine_in_process, issue
from tests.support.importing import BrokenOff, in_pieces
from tests.support.lanes import LANES
from tests.support.signing import Signer, a_signer, batch_of
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

BATCH = "/v1/redemptions/batch"
FLASH = b"code\nFLASH50\n"


async def send_batch(signer: Signer, headers: dict[str, str], body: bytes) -> list[tuple[int, str]]:
    """Return the status and the code of each result; the status is that of the call if it was refused."""
    status, answer = await signer.send(headers, body, path=BATCH)
    if status != 200:
        return [(status, answer["code"])]
    return [
        (one["status"], one["body"]["code"] if one["status"] != 200 else str(one["body"]["replayed"]))
        for one in answer["results"]
    ]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shards", [1, 3])
async def test_a_signed_batch_is_redeemed_once_however_often_it_is_sent(
    plane: ControlPlane, lane: str, shards: int
) -> None:
    _, codes = await issue(plane, 8)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant)
        body = batch_of([(code, f"i{at}") for at, code in enumerate(codes)])
        first = signer.sign(body, "b1", path=BATCH)
        assert await send_batch(signer, first, body) == [(200, "False")] * 8
        assert await send_batch(signer, first, body) == [(401, "request_replayed")] * 8
        retry = signer.sign(body, "b1", path=BATCH)
        assert await send_batch(signer, retry, body) == [(200, "True")] * 8
        assert await send_batch(signer, retry, body) == [(401, "request_replayed")] * 8
        assert await shard_version(plane.redis, shards - 1) > 0


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_wrong_with_a_signed_batch_is_said_and_nothing_is_redeemed(
    plane: ControlPlane, lane: str
) -> None:
    _, (code,) = await issue(plane, 1, kind="multi", max_uses=9)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant)
        body = batch_of([(code, "i")])
        good = signer.sign(body, "b", path=BATCH)
        plain = {"Authorization": good["Authorization"], "Content-Type": "application/json"}
        assert await send_batch(signer, plain, body) == [(401, "signature_required")]
        assert await send_batch(signer, plain | {"Idempotency-Key": "b"}, body) == [
            (401, "signature_required")
        ]
        changed = body.replace(b"ann", b"bob")
        assert await send_batch(signer, good, changed) == [(401, "content_digest_mismatch")]
        without = batch_of([(code, "")])
        headers = signer.sign(without, "b", path=BATCH)
        assert await send_batch(signer, headers, without) == [(400, "malformed_request")]
        twice = batch_of(
            [(code, "i"), (code, "i")]
        )  # the second is a retry of the first, as without signature
        headers = signer.sign(twice, "b", path=BATCH)
        assert sorted(await send_batch(signer, headers, twice)) == [(200, "False"), (200, "True")]


async def test_a_batch_has_a_key_of_its_own_only_for_its_signature(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant, signing="optional")
        body = batch_of([(code, "i")])
        plain = {"Authorization": f"Bearer {signer.key}", "Content-Type": "application/json"}
        refused = await send_batch(signer, plain | {"Idempotency-Key": "b"}, body)
        assert refused == [(400, "malformed_request")]
        assert await send_batch(signer, plain, body) == [(200, "False")]
        off = Signer(
            merchant, "", merchant.key, signer.keyid, signer.secret
        )  # its signature is not looked at
        body = batch_of([(other, "i")])
        assert await send_batch(off, off.sign(body, "b", path=BATCH), body) == [(200, "False")]


def csv_of(count: int) -> bytes:
    return b"code\n" + b"".join(b"SPRING-%05d\n" % number for number in range(count))


async def send_import(
    signer: Signer, campaign: str, body: bytes | AsyncIterator[bytes], *, signed: bytes
) -> tuple[int, Any]:
    path = f"/v1/campaigns/{campaign}/imports"
    headers = signer.sign(signed, "file", path=path, content_type="text/csv")
    return await signer.send(headers, in_pieces(body) if isinstance(body, bytes) else body, path=path)


@pytest.mark.parametrize("lane", LANES)
async def test_a_signed_import_is_compared_with_its_digest_before_its_codes_are_good(
    plane: ControlPlane, lane: str
) -> None:
    campaign, _ = await issue(plane, 1, kind="multi", max_uses=9)
    body = csv_of(3000)
    forged = body.replace(b"SPRING-00700", b"FORGED-00700")
    longer = body + b"FORGED-1\n"
    async with engine_in_process(plane, lane=lane, import_chunk_lines=500) as merchant:
        signer = await a_signer(plane, merchant, "redeem", "admin")
        for wrong in (forged, longer, body[:-13], FLASH):
            status, answer = await send_import(signer, campaign, wrong, signed=body)
            assert (status, answer["code"]) == (401, "content_digest_mismatch"), answer
        kept = await records.page(plane, campaign, after=None, limit=9)
        assert [one.state for one in kept] == ["discarded"] * 3
        for number, code in enumerate(("FORGED-00700", "SPRING-00001")):
            assert (await signer.redeem(code, f"k{number}"))[1]["code"] == "code_malformed"
        status, done = await send_import(signer, campaign, body, signed=body)
        assert (status, done["accepted"], done["duplicates"]) == (201, 3000, 0)
        status, again = await send_import(signer, campaign, body, signed=body)
        assert (status, again) == (201, done | {"replayed": True})
        status, answer = await send_import(signer, campaign, body, signed=longer)
        assert (status, answer["code"]) == (401, "content_digest_mismatch")
        assert (await records.get(plane, done["id"])).state == "finished"
        assert (await signer.redeem("SPRING-00001", "k2"))[0] == 200
    entries = await audit_log.page(plane.database, act="discard_import", subject=None, after=None, limit=9)
    assert len(entries) == 3
    assert {entry.actor for entry in entries} == {signer.id}


@pytest.mark.parametrize("lane", LANES)
async def test_a_changed_import_that_breaks_off_is_discarded_by_hand(plane: ControlPlane, lane: str) -> None:
    """Until then none of its codes is good, and the right file does not continue it."""
    campaign, _ = await issue(plane, 1, kind="multi", max_uses=9)
    body = csv_of(3000)
    forged = body.replace(b"SPRING-00007", b"FORGED-00007")
    async with engine_in_process(plane, lane=lane, import_chunk_lines=500) as merchant:
        signer = await a_signer(plane, merchant, "redeem", "admin")

        async def broken_off() -> AsyncIterator[bytes]:
            yield forged[:30_000]
            await wait_until_async(is_written)
            raise BrokenOff

        async def is_written() -> bool:
            return any(one.lines for one in await records.page(plane, campaign, after=None, limit=9))

        with pytest.raises(aiohttp.ClientError):
            await send_import(signer, campaign, broken_off(), signed=body)
        status, answer = await send_import(signer, campaign, body, signed=body)
        assert (status, answer["code"]) == (422, "idempotency_key_reused")
        (kept,) = await records.page(plane, campaign, after=None, limit=9)
        assert (kept.state, kept.name) == ("running", "imp_1")
        for number, code in enumerate(("FORGED-00007", "SPRING-00001")):
            assert (await signer.redeem(code, f"k{number}"))[1]["code"] == "code_malformed"
        await records.discard(plane, kept.name, actor="cli")
        status, done = await send_import(signer, campaign, body, signed=body)
        assert (status, done["accepted"], done["duplicates"]) == (201, 3000, 0)


async def test_an_import_of_a_key_that_must_sign_is_signed(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    path = f"/v1/campaigns/{campaign}/imports"
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant, "admin")
        plain = {"Authorization": f"Bearer {signer.key}", "Content-Type": "text/csv"}
        status, answer = await signer.send(plain, in_pieces(FLASH), path=path)
        assert (status, answer["code"]) == (401, "signature_required")
        forged = Signer(merchant, signer.id, signer.key, signer.keyid, "rs_another")
        status, answer = await send_import(forged, campaign, FLASH, signed=FLASH)
        assert (status, answer["code"]) == (401, "signature_invalid")
        assert await records.page(plane, campaign, after=None, limit=9) == []
