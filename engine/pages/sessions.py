"""Sessions of the dashboard, and the links that begin one: signed texts that name an API key.

They are signed with keys derived from the mint keys, so every worker and every restart knows them, and none
of them is stored. A session names the key only: the key is looked up at each request, so revoking it ends the
session. A link is good once; its use is marked in Redis.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from redis.exceptions import RedisError

from engine.codes.derived_keys import DerivedKeys
from engine.codes.mint_keys import MintKeyError
from engine.errors import Refusal, StoreUnavailable
from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings

_PURPOSE: Final = b"redeem: signs sessions and sign-in links of the dashboard, v1"
_SESSION: Final = "session"
_LINK: Final = "link"
_NONCE_BYTES: Final = 16
_LENGTH_MAX: Final = 256
_SIGNED: Final = re.compile(
    r"(?P<key>key_[0-9a-f]{12})\.(?P<expires>[0-9]{10,12})\.(?P<nonce>[A-Za-z0-9_-]{22})\.(?P<mac>[A-Za-z0-9_-]{43})"
)


class Session(NamedTuple):
    """Somebody who is signed in. ``expires_at``: in seconds since the epoch. ``nonce``: of this sign-in."""

    key_id: str
    expires_at: int
    nonce: str


class Sessions:
    """Signs sessions and links, and checks them."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = DerivedKeys(settings, _PURPOSE)

    def begin(self, key_id: str) -> tuple[Session, str]:
        """Return a new session of an API key, and its signed text.

        Raises:
            StoreUnavailable: the mint keys cannot be read.
        """
        return self._sign(_SESSION, key_id, self._settings.session_s)

    def link(self, key_id: str) -> str:
        """Return the token of a link that signs in with an API key, once.

        Raises:
            StoreUnavailable: the mint keys cannot be read.
        """
        return self._sign(_LINK, key_id, self._settings.sign_in_link_s)[1]

    def of(self, text: str | None) -> Session | None:
        """Return the session with this signed text; None if it is not ours, or has expired.

        Raises:
            StoreUnavailable: the mint keys cannot be read.
        """
        return None if text is None else self._checked(_SESSION, text)

    async def use_link(self, token: str) -> str:
        """Return the id of the API key of a link, which is used up by this.

        Raises:
            Refusal: ``unauthenticated``: it is not ours, has expired, or was used.
            StoreUnavailable: the mint keys cannot be read, or Redis cannot be asked.
        """
        link = self._checked(_LINK, token)
        if link is None:
            raise Refusal("unauthenticated", "The sign-in link is not valid, or has expired.")
        left_s = max(1, link.expires_at - int(time.time()) + 1)
        try:
            is_first = await self._redis.set(keys.used_link(link.nonce), b"1", nx=True, ex=left_s)
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        if not is_first:
            raise Refusal("unauthenticated", "The sign-in link was used before.")
        return link.key_id

    async def end(self, session: Session) -> None:
        """Make a session invalid before it expires.

        Raises:
            StoreUnavailable: Redis cannot be asked; the session goes on where its cookie is kept.
        """
        left_s = max(1, session.expires_at - int(time.time()) + 1)
        try:
            await self._redis.set(keys.ended_session(session.nonce), b"1", ex=left_s)
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error

    async def require_open(self, session: Session) -> None:
        """Check that nobody has signed out of a session. While Redis is away, it counts as open.

        Raises:
            Refusal: ``unauthenticated``.
        """
        try:
            ended = await self._redis.exists(keys.ended_session(session.nonce))
        except (OSError, RedisError):
            return
        if ended:
            raise Refusal("unauthenticated", "Somebody has signed out of this session.")

    def secret_of(self, session: Session) -> str:
        """Return a secret of the session's API key, the same in every session of it.

        Idempotency records are sealed with it, as with the key itself where a caller sends that.

        Raises:
            StoreUnavailable: the mint keys cannot be read.
        """
        return _mac(self._signing_keys()[0], "secret", session.key_id)

    def _sign(self, purpose: str, key_id: str, lasts_s: int) -> tuple[Session, str]:
        expires_at = int(time.time()) + lasts_s
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        mac = _mac(self._signing_keys()[0], purpose, key_id, str(expires_at), nonce)
        return Session(key_id, expires_at, nonce), f"{key_id}.{expires_at}.{nonce}.{mac}"

    def _checked(self, purpose: str, text: str) -> Session | None:
        found = _SIGNED.fullmatch(text) if len(text) <= _LENGTH_MAX else None
        if found is None or int(found["expires"]) <= time.time():
            return None
        fields = (found["key"], found["expires"], found["nonce"])
        if not any(
            hmac.compare_digest(_mac(key, purpose, *fields), found["mac"]) for key in self._signing_keys()
        ):
            return None
        return Session(found["key"], int(found["expires"]), found["nonce"])

    def _signing_keys(self) -> list[bytes]:
        try:
            return self._keys.all()
        except MintKeyError as error:
            raise StoreUnavailable(f"no sign-in without mint keys: {error}") from error


def _mac(key: bytes, *fields: str) -> str:
    digest = hmac.digest(key, "\0".join(fields).encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
