"""Signs requests with the example of docs/signing.md, and sends them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from engine.control import api_keys
from tests.contract.test_examples_in_docs import fences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

_EXAMPLE: Final[dict[str, Any]] = {}
exec(fences("docs/signing.md", "python")[0], _EXAMPLE)  # noqa: S102 - our own example


def signed_headers(  # noqa: PLR0917 - those of the example
    keyid: str, secret: str, method: str, url: str, body: bytes, idempotency_key: str
) -> dict[str, str]:
    """The headers of a signed request, as the documentation makes them."""
    headers: dict[str, str] = _EXAMPLE["signed_headers"](keyid, secret, method, url, body, idempotency_key)
    return headers


@dataclass
class Signer:
    """A merchant whose API key signs."""

    merchant: Merchant
    id: str
    key: str
    keyid: str
    secret: str = field(repr=False)

    def sign(
        self,
        body: bytes,
        key: str,
        *,
        method: str = "POST",
        path: str = "/v1/redemptions",
        content_type: str = "application/json",
    ) -> dict[str, str]:
        """All headers of a signed request."""
        return {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": content_type,
            **signed_headers(self.keyid, self.secret, method, self.merchant.url + path, body, key),
        }

    async def send(
        self,
        headers: dict[str, str],
        body: bytes | AsyncIterator[bytes],
        *,
        method: str = "POST",
        path: str = "/v1/redemptions",
    ) -> tuple[int, Any]:
        """Send a request as it is."""
        url = self.merchant.url + path
        async with self.merchant.session.request(method, url, data=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def redeem(self, code: str, key: str) -> tuple[int, Any]:
        """Sign and send a redemption."""
        body = body_of(code)
        return await self.send(self.sign(body, key), body)


def body_of(code: str, user: str = "ann") -> bytes:
    return json.dumps({"code": code, "user": user}).encode()


def batch_of(items: Sequence[tuple[str, str]], user: str = "ann") -> bytes:
    """Body of a batch of codes, each with its idempotency key; without one if that is empty."""
    members = [
        {"code": code, "user": user} | ({"idempotency_key": key} if key else {}) for code, key in items
    ]
    return json.dumps({"items": members}).encode()


async def a_signer(
    plane: ControlPlane, merchant: Merchant, *scopes: str, signing: str = "required"
) -> Signer:
    """Create an API key that signs."""
    issued = (await api_keys.create(plane, "signer", scopes or ("redeem", "read"), signing=signing)).value
    secret = issued.signing_secret
    assert secret is not None
    return Signer(merchant, issued.api_key.id, issued.key, secret.id, secret.secret)
