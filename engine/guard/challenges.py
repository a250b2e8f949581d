"""Challenges: puzzles that cost a customer's browser a second, and a guesser one for each code.

Proof of work by ``altcha``, in its form 2: the signature covers every parameter, the time of expiry as well.
In form 1 digits could be moved between that time and the nonce, so solutions lasted for ever
(GHSA-6gvq-jcmp-8959). A challenge is signed with a secret of its API key and source, so it is good for these
only. Redis remembers its nonce, so it is good once, in whichever worker: several solutions fit one challenge.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import TYPE_CHECKING, Final

import altcha
from redis.exceptions import RedisError

from engine.api.outcomes import Challenged
from engine.codes.derived_keys import DerivedKeys
from engine.codes.mint_keys import MintKeyError
from engine.errors import StoreUnavailable
from engine.observability.metrics import GUARD_CHALLENGES
from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings

REQUIRED: Final = "challenge_required"
ALGORITHM: Final = "PBKDF2/SHA-256"
PREFIX: Final = "00"  # one derived key in 256 begins with it
_PURPOSE: Final = b"redeem: signs challenges of the guard, v1"
_CLOCKS_S: Final = 60  # by which the clocks of two workers may differ


class Challenges:
    """Makes challenges, and checks their solutions."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = DerivedKeys(settings, _PURPOSE)

    async def demand(self, api_key: str, source: str, solution: str | None) -> Challenged | None:
        """Return the demand for a solution; None if ``solution`` is a good one, which is used up by this.

        ``api_key``: its id. ``source``: the address, as sources are compared; empty if nobody knows it.

        Raises:
            StoreUnavailable: the mint keys cannot be read, or Redis cannot be asked.
        """
        try:
            secrets = [_secret(key, api_key, source) for key in self._keys.all()]
        except MintKeyError as error:
            raise StoreUnavailable(f"no challenges without mint keys: {error}") from error
        wrong = "missing" if solution is None else await self._mistake(solution, secrets)
        GUARD_CHALLENGES.labels(wrong or "solved").inc()
        return Challenged(wrong, self._new(secrets[0])) if wrong else None

    def _new(self, secret: bytes) -> dict[str, object]:
        made = altcha.create_challenge(
            ALGORITHM,
            self._settings.guard_challenge_rounds,
            key_prefix=PREFIX,
            expires_at=int(time.time()) + self._settings.guard_challenge_s,
            hmac_secret=secret,
        )
        return made.to_dict()

    async def _mistake(self, solution: str, secrets: list[bytes]) -> str:
        """What is wrong with a solution; empty if nothing is. Its challenge is used up either way.

        So nobody can have one challenge checked again and again: it is the one costly step, and comes last.
        """
        try:
            payload = altcha.Payload.from_base64(solution)
        except (ValueError, KeyError, TypeError, RecursionError):
            return "malformed"
        signed_with = None
        for secret in secrets:
            seen = altcha.verify_solution(payload, secret, _derive_nothing)
            if seen.expired:
                return "expired"
            if not seen.invalid_signature:
                signed_with = secret
        if signed_with is None:
            return "foreign"
        if not await self._is_first(payload.challenge.parameters):
            return "used"
        checked = await asyncio.to_thread(altcha.verify_solution, payload, signed_with)
        return "" if checked.verified else "expired" if checked.expired else "wrong"

    async def _is_first(self, signed: altcha.ChallengeParameters) -> bool:
        left_s = max(0, (signed.expires_at or 0) - int(time.time())) + _CLOCKS_S
        try:
            return bool(
                await self._redis.set(keys.guard_used_challenge(signed.nonce), b"1", nx=True, ex=left_s)
            )
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error


def _secret(key: bytes, api_key: str, source: str) -> bytes:
    """Return what the challenges of one API key and source are signed with."""
    return hmac.digest(key, f"{api_key}\0{source}".encode(), "sha256")


def _derive_nothing(_: altcha.ChallengeParameters, __: bytes, ___: bytes) -> bytes:
    """Stand for the costly step while the cheap ones are checked."""
    return b""
