"""Verifies signed requests: one strict profile of RFC 9421, with digests of RFC 9530 (docs/signing.md).

A signature covers the six components of ``COMPONENTS``, in this order. A secret belongs to one API key. The
caller compares the body with the digest, and hands the mark of the nonce to the idempotency record, which
notices a replay (lua/lib/idempotency.lua).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.errors import Refusal, StoreUnavailable
from engine.store.idempotency import nonce_mark

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.guard.opened_secrets import OpenedSecrets
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

COMPONENTS: Final = ("@method", "@authority", "@path", "@query", "content-digest", "idempotency-key")
ALGORITHM: Final = "hmac-sha256"
TAG: Final = "redeem"
NONCE_LENGTH_MIN: Final = 22  # 128 bits in base64
NONCE_LENGTH_MAX: Final = 128
REPEATED: Final = "signature_header_repeated"
MALFORMED: Final = "signature_malformed"
MISSING: Final = "signature_component_missing"
UNKNOWN: Final = "signature_key_unknown"

_PARAMETERS: Final = frozenset(("created", "nonce", "keyid", "alg", "tag"))
# Structured fields (RFC 9651): a dictionary with one member, an inner list of strings with parameters.
_STRING: Final = r'"[ !#-\[\]-~]*"'
_INPUT: Final = re.compile(
    r"([a-z*][a-z0-9_.*-]{0,63})="
    rf"(\(((?:{_STRING}(?: {_STRING})*)?)\)((?:;[a-z]+=(?:[0-9]{{1,15}}|{_STRING}))*))"
)
_QUOTED: Final = " ".join(f'"{name}"' for name in COMPONENTS)
# The same with the profile's components and parameters, as most clients order them: read in one go.
_USUAL_INPUT: Final = re.compile(
    r"([a-z*][a-z0-9_.*-]{0,63})="
    rf"(\({re.escape(_QUOTED)}\)"
    rf";created=([0-9]{{1,15}});nonce=({_STRING});keyid=({_STRING})"
    rf';alg="{ALGORITHM}";tag="{TAG}")'
)
_PARAMETER: Final = re.compile(rf";([a-z]+)=([0-9]+|{_STRING})")
_SIGNATURE: Final = re.compile(r"([a-z*][a-z0-9_.*-]{0,63})=:([A-Za-z0-9+/]{43}=):")
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


class SignedHead(NamedTuple):
    """What the head of a signed request says. ``target``: path and query as they were received."""

    method: str
    authority: str
    target: str
    idempotency_key: str
    content_digest: str
    signature_input: str
    signature: str


class Verified(NamedTuple):
    """A signature that was verified.

    Attributes:
        digest: SHA-256 that the body must have.
        nonce: the mark of its nonce, for the idempotency record.
    """

    digest: bytes
    nonce: bytes

    def check_body(self, body: bytes) -> None:
        """Compare the body with the digest that was signed.

        Raises:
            Refusal: ``content_digest_mismatch``.
        """
        self.check_digest(hashlib.sha256(body).digest())

    def check_digest(self, digest: bytes) -> None:
        """Compare the SHA-256 of the body with the digest that was signed.

        Raises:
            Refusal: ``content_digest_mismatch``.
        """
        if digest != self.digest:
            raise Refusal("content_digest_mismatch")


class _Input(NamedTuple):
    label: str
    created: int
    keyid: str
    nonce: str
    parameters: str  # the value of @signature-params


class Signatures:
    """Verifies the signatures of one worker's requests."""

    def __init__(self, settings: Settings, secrets: OpenedSecrets) -> None:
        self._settings = settings
        self._secrets = secrets

    def verify(self, api_key: CachedKey, head: SignedHead) -> Verified:
        """Verify the signature of a head. The body must still be compared with the digest.

        Raises:
            Refusal: it is not a valid signature of this key; the code says why.
            StoreUnavailable: the secret cannot be decrypted here.
        """
        given = _parse_input(head.signature_input)
        signature = _bytes(_SIGNATURE, head.signature, given.label)
        self._check_time(given.created)
        secret = self._secret(api_key, given.keyid)
        base = signature_base(zip(COMPONENTS, _values(head), strict=True), given.parameters)
        if not hmac.compare_digest(hmac.digest(secret, base, "sha256"), signature):
            raise Refusal("signature_invalid")
        match = _DIGEST.fullmatch(head.content_digest)
        if match is None:
            raise Refusal(MALFORMED, "Content-Digest must be one SHA-256: sha-256=:…:")
        return Verified(_decoded(match[1]), nonce_mark(given.nonce))

    def verify_at_once(self, api_key: CachedKey, head: SignedHead | None, body: bytes) -> bytes | None:
        """Verify a whole request for the fast lane, without waiting. ``head`` is None if it is not signed.

        Returns the mark of the nonce; empty if the request needs no signature. None: only the caller's slow
        way can answer, because there is no signature, or the secret is not known here.

        Raises:
            Refusal: as ``verify`` and ``Verified.check_body``.
        """
        if api_key.signing == "off":
            return b""
        if head is None:
            return None if api_key.signing == "required" else b""
        try:
            verified = self.verify(api_key, head)
        except StoreUnavailable:
            return None
        except Refusal as refusal:
            if refusal.code == UNKNOWN:
                return None
            raise
        verified.check_body(body)
        return verified.nonce

    def _check_time(self, created: int) -> None:
        now, settings = time.time(), self._settings
        if created < now - settings.signature_age_s_max:
            raise Refusal("signature_expired")
        if created > now + settings.signature_ahead_s_max:
            raise Refusal("signature_in_future")

    def _secret(self, api_key: CachedKey, keyid: str) -> bytes:
        for secret in api_key.signing_secrets:
            if secret.id == keyid:
                return self._secrets.of(api_key, secret)
        raise Refusal(UNKNOWN)


def signature_base(components: Iterable[tuple[str, str]], parameters: str) -> bytes:
    """Return the bytes that are signed (RFC 9421, section 2.5)."""
    lines = [f'"{name}": {value}\n' for name, value in components]
    return f'{"".join(lines)}"@signature-params": {parameters}'.encode("utf-8", "surrogateescape")


def _values(head: SignedHead) -> tuple[str, ...]:
    """Return the values of the components (RFC 9421, section 2.2)."""
    path, _, query = head.target.partition("?")
    fields = head.content_digest, head.idempotency_key
    return head.method, head.authority.lower(), path, f"?{query}", *fields


def _parse_input(text: str) -> _Input:
    match = _USUAL_INPUT.fullmatch(text)
    if match is None:
        return _parse_any_input(text)
    label, parameters, created, nonce, keyid = match.groups()
    return _checked_input(label, parameters, created, nonce, keyid)


def _parse_any_input(text: str) -> _Input:
    match = _INPUT.fullmatch(text)
    if match is None:
        raise Refusal(MALFORMED, "Signature-Input must be one signature of the profile.")
    label, parameters, components, rest = match.groups()
    _check_components(tuple(name[1:-1] for name in re.findall(_STRING, components)))
    pairs = _PARAMETER.findall(rest)
    named = dict(pairs)
    if named.keys() != _PARAMETERS or len(pairs) != len(named):
        raise Refusal(MALFORMED, "The parameters must be created, nonce, keyid, alg and tag, each once.")
    if named["alg"] != f'"{ALGORITHM}"' or named["tag"] != f'"{TAG}"':
        raise Refusal(MALFORMED, f'alg must be "{ALGORITHM}", and tag must be "{TAG}".')
    created, keyid, nonce = named["created"], named["keyid"], named["nonce"]
    if created.startswith('"') or not (keyid.startswith('"') and nonce.startswith('"')):
        raise Refusal(MALFORMED, "created must be an integer; keyid and nonce must be strings.")
    return _checked_input(label, parameters, created, nonce, keyid)


def _checked_input(label: str, parameters: str, created: str, nonce: str, keyid: str) -> _Input:
    if not NONCE_LENGTH_MIN <= len(nonce) - 2 <= NONCE_LENGTH_MAX:
        raise Refusal(MALFORMED, f"nonce must have {NONCE_LENGTH_MIN} to {NONCE_LENGTH_MAX} characters.")
    return _Input(label, int(created), keyid[1:-1], nonce[1:-1], parameters)


def _check_components(given: tuple[str, ...]) -> None:
    if given == COMPONENTS:
        return
    if missing := [name for name in COMPONENTS if name not in given]:
        raise Refusal(MISSING, f"Not signed: {', '.join(missing)}.")
    if len(given) == len(COMPONENTS):
        raise Refusal("signature_components_reordered")
    raise Refusal(MALFORMED, "More components are signed than the six of the profile.")


def _bytes(pattern: re.Pattern[str], text: str, label: str) -> bytes:
    match = pattern.fullmatch(text)
    if match is None or match[1] != label:
        raise Refusal(MALFORMED, "Signature must have one HMAC-SHA256, under the label of Signature-Input.")
    return _decoded(match[2])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Refusal(MALFORMED) from None
