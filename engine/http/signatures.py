"""Checks the signature of a request in aiohttp's lane: its head first, and the body once it is read.

What an API key whose requests are not signed sends is not looked at.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.errors import Refusal
from engine.guard.signatures import MALFORMED, MISSING, REPEATED, UNKNOWN, SignedHead, Verified
from engine.http.auth import API_KEY, admit_again
from engine.http.services import services_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_VERIFIED: Final = web.RequestKey("verified", Verified)
_COVERED: Final = ("Host", "Idempotency-Key", "Content-Digest")
_BODILESS: Final = frozenset(("GET", "HEAD", "DELETE"))


async def check_signature(request: web.Request) -> None:
    """Verify the signature of a request whose API key was admitted, if that key signs.

    Raises:
        Refusal: ``signature_required``: it is not signed; or as ``Signatures.verify``.
        StoreUnavailable: as ``Signatures.verify``.
    """
    api_key = request[API_KEY]
    if api_key.signing == "off":
        return
    head = _signed_head(request)
    if head is None:
        if api_key.signing == "required":
            raise Refusal("signature_required")
        return
    verified = await _verify(request, head)
    if not request.can_read_body:
        verified.check_body(b"")
    elif request.method in _BODILESS:
        raise Refusal(MALFORMED, f"A signed {request.method} has no body.")
    request[_VERIFIED] = verified


async def _verify(request: web.Request, head: SignedHead) -> Verified:
    """Verify the head. A secret that is unknown may be new, so the copy of the configuration is refreshed."""
    services = services_of(request)
    try:
        return services.signatures.verify(request[API_KEY], head)
    except Refusal as refusal:
        if refusal.code != UNKNOWN:
            raise
    await services.core.configuration.confirm()
    return services.signatures.verify(await admit_again(request, services.authenticator), head)


def check_body(request: web.Request, body: bytes) -> None:
    """Compare the body of a signed request with its digest.

    Raises:
        Refusal: ``content_digest_mismatch``.
    """
    verified = request.get(_VERIFIED)
    if verified is not None:
        verified.check_body(body)


async def checked(request: web.Request, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a body; compare the body of a signed request with its digest before they end.

    Raises:
        Refusal: ``content_digest_mismatch``, after the last piece.
    """
    verified, digest = request.get(_VERIFIED), hashlib.sha256()
    async for piece in pieces:
        if verified is not None:
            digest.update(piece)
        yield piece
    if verified is not None:
        verified.check_digest(digest.digest())


def nonce_of(request: web.Request) -> bytes:
    """Return the mark of a signed request's nonce (``idempotency.nonce_mark``); empty if it is not signed."""
    verified = request.get(_VERIFIED)
    return b"" if verified is None else verified.nonce


def _signed_head(request: web.Request) -> SignedHead | None:
    """Return what the head says; None if it has no signature."""
    inputs, signatures = _all(request, "Signature-Input"), _all(request, "Signature")
    if not (inputs or signatures):
        return None
    values = [_all(request, name) for name in _COVERED]
    if any(len(found) > 1 for found in (inputs, signatures, *values)):
        raise Refusal(REPEATED)
    if not (inputs and signatures):
        raise Refusal(MALFORMED, "Signature and Signature-Input belong together.")
    if missing := [name for name, found in zip(_COVERED, values, strict=True) if not found]:
        raise Refusal(MISSING, f"Not there: {', '.join(missing)}.")
    (host,), (key,), (digest,) = values
    return SignedHead(request.method, host, request.raw_path, key, digest, inputs[0], signatures[0])


def _all(request: web.Request, name: str) -> list[str]:
    return request.headers.getall(name, [])
