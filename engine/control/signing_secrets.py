"""Signing secrets of API keys: adds and retires them. A secret is shown once; it is stored encrypted.

A key that signs has one secret, and two while it is rotated: add the second, let all clients use it, retire
the first. The secret of a browser key signs user tokens (``engine.guard.user_tokens``). A browser key that an
earlier version made has none until one is added.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from engine.codes import mint_keys
from engine.codes.mint_keys import MintKeyError
from engine.codes.sealing import seal
from engine.control import audit_log, mint_key_checks
from engine.control.change import Change, Changed, ControlPlane, change
from engine.errors import Refusal, StoreUnavailable
from engine.guard.opened_secrets import place
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.postgres_types import Connection
    from engine.settings import Settings

SECRETS_MAX: Final = 2
_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_SQL: Final = queries(__package__, "signing_secrets")


class IssuedSecret(msgspec.Struct, frozen=True):
    """A new signing secret. The bytes of ``secret`` are the key of the HMAC. It is shown only once."""

    id: str
    api_key: str
    secret: str
    created_at: datetime

    def __repr__(self) -> str:
        return f"IssuedSecret({self.id})"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return msgspec.structs.asdict(self) | {"created_at": shown_instant(self.created_at)}


class RetiredSecret(msgspec.Struct, frozen=True):
    """A signing secret that is accepted no longer. It was deleted."""

    id: str
    api_key: str

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return msgspec.structs.asdict(self)


def shown_once(secret: IssuedSecret | None) -> dict[str, object]:
    """Return the member of an answer about an API key that shows a secret which was made with it."""
    return {} if secret is None else {"signing_secret": {"id": secret.id, "secret": secret.secret}}


async def issue(connection: Connection, settings: Settings, api_key: str) -> IssuedSecret:
    """Make a signing secret and store it, encrypted under the current mint key.

    Raises:
        StoreUnavailable: there is no mint key here, or not that of the deployment.
    """
    try:
        keys = mint_keys.from_settings(settings)
    except (MintKeyError, OSError) as error:
        raise StoreUnavailable(f"signing secrets are encrypted under a mint key: {error}") from error
    await mint_key_checks.use(connection, keys.current, keys.by_name)
    number = f"sgn_{secrets.token_hex(_ID_BYTES)}"
    secret = f"rs_{secrets.token_urlsafe(_SECRET_BYTES)}"
    sealed = seal(keys.by_name[keys.current], secret.encode(), place(api_key, number))
    created_at = await connection.fetchval(_SQL["insert"], number, api_key, keys.current, sealed)
    return IssuedSecret(number, api_key, secret, created_at)


async def rotate(plane: ControlPlane, api_key: str, *, actor: str = "cli") -> Changed[IssuedSecret]:
    """Add a second secret to an API key that signs, or a browser key. Both are accepted until one is retired.

    Raises:
        Refusal: ``not_found``: no such key, or revoked; ``malformed_request``: its requests are not signed;
            ``signing_secret_limit``: it has two secrets.
        StoreUnavailable: as ``issue``.
    """

    async def write(under: Change) -> IssuedSecret:
        known = await _key(under.connection, api_key)
        if len(known) >= SECRETS_MAX:
            raise Refusal("signing_secret_limit", f"It has {' and '.join(known)}: retire one of them first.")
        issued = await issue(under.connection, plane.settings, api_key)
        await _record(under, "add_signing_secret", actor, api_key, issued.id)
        return issued

    return await change(plane, write)


async def retire(
    plane: ControlPlane, api_key: str, secret: str, *, actor: str = "cli"
) -> Changed[RetiredSecret]:
    """Delete one of two secrets. Workers learn of it as of a block.

    Raises:
        Refusal: ``not_found``: no such key or secret; ``signing_secret_limit``: it is the key's only secret.
    """

    async def write(under: Change) -> RetiredSecret:
        known = await _key(under.connection, api_key)
        if secret not in known:
            raise Refusal("not_found", "There is no such signing secret.")
        if len(known) == 1:
            raise Refusal("signing_secret_limit", "It is the only one: add another one first.")
        await under.connection.execute(_SQL["delete"], secret)
        await _record(under, "retire_signing_secret", actor, api_key, secret)
        return RetiredSecret(secret, api_key)

    return await change(plane, write)


async def _key(connection: Connection, api_key: str) -> list[str]:
    """Lock an API key that signs, or a browser key, and return the ids of its secrets."""
    row = None if "\0" in api_key else await connection.fetchrow(_SQL["key"], api_key)
    if row is None or row["revoked"]:
        raise Refusal("not_found", "There is no such API key.")
    if row["signing"] == "off" and row["kind"] != "browser":
        raise Refusal("malformed_request", "The requests of this API key are not signed.")
    return list(row["signing_secrets"])


async def _record(under: Change, act: str, actor: str, api_key: str, secret: str) -> None:
    await under.connection.execute(_SQL["changed"], api_key, under.version)
    await audit_log.record(
        under.connection, act=act, actor=actor, subject=f"key:{api_key}", details={"secret": secret}
    )
