"""Authentication: finds the API key of a request, and checks that it has the scope of the call.

A key is looked up by its SHA-256 in the worker's copy of the configuration, or by its id where a session of
the dashboard names it. A key that is not there may be new, so the copy is refreshed before it is refused.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import web

from engine.control import api_keys
from engine.errors import Refusal, StoreUnavailable
from engine.http.origins import check_origin
from engine.http.same_origin import require_same_origin
from engine.pages.sessions import Session
from engine.store.configuration import CachedKey

if TYPE_CHECKING:
    from engine.database import Database
    from engine.pages.sessions import Sessions
    from engine.store.configuration import ConfigurationCache

_SCHEME: Final = "bearer "
COOKIE: Final = "redeem_session"
"""The name of the cookie with the session of somebody who is signed in to the dashboard."""
BROWSER: Final = "browser"
"""In place of a scope: only a browser key may make the call."""
EITHER: Final = " or "
"""Between two scopes of a route: a key with either of them may make the call."""
KEY_LENGTH_MAX: Final = 256
_REMEMBERED_MAX: Final = 1024


class Authenticator:
    """Finds the API key of a request. Caches the result by header until the configuration changes."""

    def __init__(self, configuration: ConfigurationCache, database: Database, sessions: Sessions) -> None:
        self._configuration = configuration
        self._database = database
        self.sessions = sessions
        self._remembered: dict[str | Session, CachedKey] = {}
        self._remembered_version = -1
        self._origins: frozenset[str] = frozenset()
        self._origins_version = -1

    def known(self, authorization: str | Session | None) -> CachedKey | None:
        """Return the valid key of a header or a session, if the worker's copy has it. Never waits."""
        if authorization is None:
            return None
        if self._remembered_version != self._configuration.version:
            self._remembered.clear()
            self._remembered_version = self._configuration.version
        remembered = self._remembered.get(authorization)
        if remembered is None:
            remembered = self._look_up(authorization)
            if remembered is not None and len(self._remembered) < _REMEMBERED_MAX:
                self._remembered[authorization] = remembered
        return remembered

    def _look_up(self, authorization: str | Session) -> CachedKey | None:
        known = self._configuration.api_keys
        if isinstance(authorization, Session):
            api_key = next((key for key in known.values() if key.id == authorization.key_id), None)
        else:
            secret = secret_of(authorization)
            api_key = None if secret is None else known.get(api_keys.digest(secret).hex())
        return None if api_key is None or api_key.revoked else api_key

    def known_with(self, authorization: str, scope: str) -> CachedKey | None:
        """Return the key as ``known`` does, if it has the scope."""
        api_key = self.known(authorization)
        if api_key is None or scope not in api_key.scopes:
            return None
        return api_key

    async def lists_origin(self, origin: str) -> bool:
        """Whether a valid browser key is for pages of this origin.

        Raises:
            StoreUnavailable: none is known here, and Redis cannot be asked.
        """
        if origin not in self._known_origins():
            await self._configuration.confirm()
        return origin in self._known_origins()

    def _known_origins(self) -> frozenset[str]:
        if self._origins_version != self._configuration.version:
            found = self._configuration.api_keys.values()
            self._origins = frozenset(
                origin for key in found if not key.revoked for origin in key.origins or ()
            )
            self._origins_version = self._configuration.version
        return self._origins

    async def authorize_change(self, authorization: str | Session | None, scope: str) -> CachedKey:
        """Check a key for a call that changes PostgreSQL. While Redis is away, PostgreSQL is asked.

        So a campaign can be paused and a key revoked while Redis is away.

        Raises:
            Refusal: ``unauthenticated`` or ``forbidden``.
            StoreUnavailable: neither Redis nor PostgreSQL can be asked.
        """
        try:
            return await self.authorize(authorization, scope, fresh=True)
        except StoreUnavailable:
            return _require_scope(await self._in_postgresql(authorization), scope)

    async def _in_postgresql(self, authorization: str | Session | None) -> CachedKey | None:
        if isinstance(authorization, Session):
            return await api_keys.find_by_id(self._database, authorization.key_id)
        secret = secret_of(authorization or "")
        return await api_keys.find(self._database, secret) if secret else None

    async def authorize(
        self, authorization: str | Session | None, scope: str, *, fresh: bool, for_browsers: bool = False
    ) -> CachedKey:
        """Return the key of a request; check that it has ``scope``, or that it is a browser key and may call.

        With ``fresh``, Redis is asked first whether the configuration has changed, so that a key revoked a
        moment ago is refused. The redeem path does not need this: its script refuses such a key.

        Raises:
            Refusal: ``unauthenticated`` or ``forbidden``.
            StoreUnavailable: the key is unknown here, and Redis cannot be asked.
        """
        if isinstance(authorization, Session):
            await self.sessions.require_open(authorization)
        api_key = None if fresh else self.known(authorization)
        if api_key is None:
            if authorization is not None:
                await self._configuration.confirm()
            api_key = self.known(authorization)
        return _require_scope(api_key, scope, for_browsers=for_browsers)


API_KEY: Final = web.RequestKey("api_key", CachedKey)
"""The caller's key, after its scope was checked."""


class Access(enum.Enum):
    """What refuses an API key that was revoked a moment ago."""

    SCRIPT = "the script that the call runs refuses the key"
    REDIS = "the configuration is compared with Redis before the call"
    STORE = "as REDIS; while Redis is away, PostgreSQL is asked instead, so that changes stay possible"


class Admission(NamedTuple):
    """What a call asks of its key. ``for_browsers``: a browser key, which has no scopes, may make it too."""

    scope: str
    access: Access
    for_browsers: bool


ADMISSION: Final = web.RequestKey("admission", Admission)


async def admit(request: web.Request, authenticator: Authenticator, admission: Admission) -> CachedKey:
    """Return the key of a request, which may make the call; store both in the request.

    Raises:
        Refusal: ``malformed_request``: there are several keys; or as ``Authenticator.authorize``.
        StoreUnavailable: as ``Authenticator.authorize``.
    """
    given = request.headers.getall("Authorization", [])
    if len(given) > 1:
        raise Refusal("malformed_request", "Authorization is given more than once.")
    request[ADMISSION] = admission
    return await admit_again(request, authenticator)


async def admit_again(request: web.Request, authenticator: Authenticator) -> CachedKey:
    """Check the key again after the body was read: it may have been revoked while the body arrived.

    Raises:
        Refusal, StoreUnavailable: as ``Authenticator.authorize``.
    """
    authorization = credential_of(request, authenticator)
    scope, access, for_browsers = request[ADMISSION]
    if access is Access.STORE:
        api_key = await authenticator.authorize_change(authorization, scope)
    else:
        api_key = await authenticator.authorize(
            authorization, scope, fresh=access is Access.REDIS, for_browsers=for_browsers
        )
    if api_key.origins is not None:
        check_origin(request, api_key)
    request[API_KEY] = api_key
    return api_key


def credential_of(request: web.Request, authenticator: Authenticator) -> str | Session | None:
    """Return the Authorization header of a request; without one, the session of its cookie.

    Raises:
        Refusal: ``forbidden``: a page of another origin made the call.
        StoreUnavailable: the session cannot be checked without mint keys.
    """
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        return authorization
    cookie = request.cookies.get(COOKIE)
    session = None if cookie is None else authenticator.sessions.of(cookie)
    if session is not None:
        require_same_origin(request)
    return session


def sealing_secret_of(request: web.Request, authenticator: Authenticator) -> str | None:
    """Return what a caller's idempotency records are sealed with: its key, or the secret of its session."""
    credential = credential_of(request, authenticator)
    if isinstance(credential, Session):
        return authenticator.sessions.secret_of(credential)
    return secret_of(credential or "")


def secret_of(authorization: str) -> str | None:
    """Return the key in an Authorization header (RFC 6750, section 2.1), or None."""
    if len(authorization) > KEY_LENGTH_MAX or authorization[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return authorization[len(_SCHEME) :].strip()


def _require_scope(api_key: CachedKey | None, scope: str, *, for_browsers: bool = False) -> CachedKey:
    if api_key is None:
        raise Refusal("unauthenticated")
    if api_key.origins is not None:
        if not for_browsers:
            raise Refusal("forbidden", "A browser key can only redeem, hold and check single codes.")
        return api_key
    if scope == BROWSER:
        raise Refusal("forbidden", "This call is for web pages: it needs a browser key.")
    if set(scope.split(EITHER)).isdisjoint(api_key.scopes):
        raise Refusal("forbidden", f"This call needs a key with the scope {scope}.")
    return api_key
