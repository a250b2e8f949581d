"""Signatures of another implementation of RFC 9421 are accepted, and it accepts ours."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import TYPE_CHECKING

import pytest
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    InvalidSignature,
    MappingKeyResolver,
    algorithms,
)

from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.signing import a_signer, batch_of, body_of

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.signing import Signer

COMPONENTS = ("@method", "@authority", "@path", "@query", "content-digest", "idempotency-key")


@dataclass
class Message:
    """A request, as the library reads it."""

    method: str
    url: str
    headers: dict[str, str]


def keys_of(signer: Signer) -> MappingKeyResolver:
    secrets = {signer.keyid: signer.secret.encode()}
    return MappingKeyResolver(public_keys=secrets, private_keys=secrets)


def signed_by_library(
    signer: Signer, body: bytes, path: str, content_type: str = "application/json"
) -> dict[str, str]:
    digest = b64encode(hashlib.sha256(body).digest()).decode()
    headers = {
        "Authorization": f"Bearer {signer.key}",
        "Content-Type": content_type,
        "Content-Digest": f"sha-256=:{digest}:",
        "Idempotency-Key": "order-1",
    }
    HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=keys_of(signer)).sign(
        Message("POST", signer.merchant.url + path, headers),
        key_id=signer.keyid,
        nonce=token_urlsafe(16),
        tag="redeem",
        covered_component_ids=COMPONENTS,
        body=body,
        use_existing_digest=True,
    )
    return headers


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", ["/v1/redemptions", "/v1/redemptions?from=till%207"])
async def test_the_engine_accepts_a_signature_of_another_implementation(
    plane: ControlPlane, lane: str, path: str
) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant)
        body = body_of(code)
        headers = signed_by_library(signer, body, path)
        changed = await signer.send(headers | {"Idempotency-Key": "order-2"}, body, path=path)
        assert (changed[0], changed[1]["code"]) == (401, "signature_invalid")
        status, answer = await signer.send(headers, body, path=path)
        assert (status, answer["status"]) == (200, "redeemed")


@pytest.mark.parametrize("lane", LANES)
async def test_the_engine_accepts_a_batch_and_an_import_of_another_implementation(
    plane: ControlPlane, lane: str
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane) as merchant:
        signer = await a_signer(plane, merchant, "redeem", "admin")
        batch, path = batch_of([(code, "i1")]), "/v1/redemptions/batch"
        status, answer = await signer.send(signed_by_library(signer, batch, path), batch, path=path)
        assert (status, answer["results"][0]["status"]) == (200, 200)
        lines, path = b"code\nFLASH50\n", f"/v1/campaigns/{campaign}/imports"
        headers = signed_by_library(signer, lines, path, "text/csv")
        status, answer = await signer.send(headers, lines, path=path)
        assert (status, answer["accepted"]) == (201, 1)


async def test_another_implementation_accepts_what_the_documentation_signs(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant)
        body, path = body_of("0000-0000-0000-0000"), "/v1/redemptions?from=till%207"
        verifier = HTTPMessageVerifier(
            signature_algorithm=algorithms.HMAC_SHA256, key_resolver=keys_of(signer)
        )
        message = Message("POST", merchant.url + path, signer.sign(body, "order-1", path=path))
        (verified,) = verifier.verify(message, expect_tag="redeem", body=body)
        assert [name.strip('"') for name in verified.covered_components][:-1] == list(COMPONENTS)
        assert verified.body == body
        message.headers["Idempotency-Key"] = "order-2"
        with pytest.raises(InvalidSignature):
            verifier.verify(message, expect_tag="redeem", body=body)
