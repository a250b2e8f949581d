"""Verifies user tokens: who the customer of a page is, signed by the merchant's backend (docs/card.md).

A user token is a JSON Web Token (RFC 7519) with ``alg`` HS256 and four claims: ``sub`` the user, ``aud`` the
id of the browser key, ``iat`` and ``exp``. Any of the secrets of the browser key may have signed it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import jwt
from jwt.exceptions import InvalidSubjectError

from engine.api.checks import user_name
from engine.errors import Refusal

if TYPE_CHECKING:
    from engine.guard.opened_secrets import OpenedSecrets
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

INVALID: Final = "invalid_user_token"
LENGTH_MAX: Final = 4096
_ALGORITHM: Final = "HS256"
_CLAIMS: Final = ("sub", "aud", "iat", "exp")


class UserTokens:
    """Verifies the user tokens of one worker's requests."""

    def __init__(self, settings: Settings, secrets: OpenedSecrets) -> None:
        self._settings = settings
        self._secrets = secrets

    def user_of(self, api_key: CachedKey, token: str) -> str:
        """Return the user whom a token names, as ``checks.user_name`` does.

        Raises:
            Refusal: ``invalid_user_token``: the detail says why.
            StoreUnavailable: a secret of the key cannot be decrypted here.
        """
        claims = self._claims(api_key, token)
        self._check_times(claims)
        try:
            return user_name(claims["sub"], self._settings.user_length_max)
        except Refusal as refusal:
            raise Refusal(INVALID, f"sub: {refusal.detail}") from None

    def _claims(self, api_key: CachedKey, token: str) -> dict[str, Any]:
        if len(token) > LENGTH_MAX:
            raise Refusal(INVALID, f"The token has more than {LENGTH_MAX} characters.")
        failure = "The browser key has no signing secret."
        for secret in api_key.signing_secrets:
            try:
                return jwt.decode(
                    token,
                    self._secrets.of(api_key, secret),
                    algorithms=[_ALGORITHM],
                    audience=api_key.id,
                    options={
                        "require": list(_CLAIMS),
                        "strict_aud": True,
                        "verify_exp": False,  # ``_check_times`` does
                        "verify_iat": False,
                    },
                )
            except jwt.PyJWTError as error:
                failure = _reason(error, api_key)
                if not isinstance(error, jwt.InvalidSignatureError):
                    break  # another secret would not help
        raise Refusal(INVALID, failure)

    def _check_times(self, claims: dict[str, Any]) -> None:
        issued, expires, now = claims["iat"], claims["exp"], time.time()
        most = self._settings.user_token_s_max
        if not all(isinstance(at, int) and not isinstance(at, bool) for at in (issued, expires)):
            raise Refusal(INVALID, "iat and exp must be whole seconds since 1970.")
        if issued > now + self._settings.signature_ahead_s_max:
            raise Refusal(INVALID, "iat is later than now.")
        if expires <= now:
            raise Refusal(INVALID, "The token has expired.")
        if expires - issued > most:
            raise Refusal(INVALID, f"exp must be at most {most} seconds after iat.")


def _reason(error: jwt.PyJWTError, api_key: CachedKey) -> str:
    """Say what is wrong, in our words. What the token says is not repeated."""
    if isinstance(error, jwt.InvalidSignatureError):
        return "The token is not signed with a secret of this browser key."
    if isinstance(error, jwt.InvalidAlgorithmError):
        return f"alg must be {_ALGORITHM}."
    if isinstance(error, jwt.InvalidAudienceError):
        return f"aud must be the id of the browser key, {api_key.id}."
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"The token must have the claims {', '.join(_CLAIMS)}."
    if isinstance(error, InvalidSubjectError):
        return "sub must be a text."
    if isinstance(error, jwt.ImmatureSignatureError):
        return "nbf is later than now."
    return "It is no JSON Web Token."
