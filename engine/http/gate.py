"""What every handler does first: who calls, may they, and what do they send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http.requests import read_json

if TYPE_CHECKING:
    from aiohttp import web

    from engine.http.auth import Authenticator
    from engine.settings import Settings
    from engine.store.configuration import ApiKey


class Gate:
    """Lets requests through to their handlers."""

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        self._settings = settings
        self._authenticator = authenticator

    def known_caller(self, authorization: str, scope: str) -> ApiKey | None:
        """The key of a request, as far as can be told without waiting; None: ask the others."""
        api_key = self._authenticator.known(authorization)
        return api_key if api_key is not None and scope in api_key.scopes else None

    async def caller(self, request: web.Request, scope: str) -> ApiKey:
        """The key of a request that reads; one that was revoked a moment ago is refused.

        Raises:
            Refusal, StoreUnavailable: as ``Authenticator.authorize``.
        """
        authorization = request.headers.get("Authorization")
        return await self._authenticator.authorize(authorization, scope, fresh=True)

    async def caller_and_body(
        self, request: web.Request, scope: str, bytes_max: int | None = None, *, may_be_empty: bool = False
    ) -> tuple[ApiKey, bytes]:
        """The key of a request whose script call will tell whether it was revoked, and its body.

        Raises:
            Refusal, StoreUnavailable: as ``Authenticator.authorize`` and ``read_json``.
        """
        authorization = request.headers.get("Authorization")
        await self._authenticator.authorize(authorization, scope, fresh=False)
        settings = self._settings
        body = b""
        if request.can_read_body or not may_be_empty:
            most = settings.body_bytes_max if bytes_max is None else bytes_max
            body = await read_json(request, most, settings.request_timeout_s)
        # Again: the body may have taken its time, and the key may have been revoked meanwhile.
        return await self._authenticator.authorize(authorization, scope, fresh=False), body
