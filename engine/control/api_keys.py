"""API keys: creates, revokes and lists them. A key is shown once; only its SHA-256 digest is stored.

A key is ``rk_<id>_<secret>``. The secret's 43 characters hold 256 random bits, so a fast digest is as
safe as a slow one. The id in the key shows which key was leaked, without a call to try it.

A browser key begins with ``pk_``. It stands in web pages for everybody to read, so it may do little.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from engine.api.checks import check_choice
from engine.api.origins import check_origins
from engine.control import audit_log, signing_secrets
from engine.control.campaigns import check_name
from engine.control.change import Change, Changed, ControlPlane, change
from engine.control.publishing import cached_key
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal, not_a_cursor
from engine.queries import queries
from engine.store.configuration import SCOPES, SIGNING
from engine.times import shown_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.database import Database
    from engine.postgres_types import Connection, Row
    from engine.store.configuration import CachedKey

ID_BYTES: Final = 6
SECRET_BYTES: Final = 32
CAMPAIGNS_MAX: Final = 100
_ID: Final = re.compile(r"key_[0-9a-f]{12}")
_SQL: Final = queries(__package__, "api_keys")


class NewApiKey(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/keys``. ``campaigns``: the key is limited to these; None: it is not limited.

    A server key needs ``scopes``; a browser key has none, and needs ``campaigns`` and ``origins``.
    """

    name: str
    scopes: list[str] | None = None
    campaigns: list[str] | None = None
    kind: Literal["server", "browser"] = "server"
    origins: list[str] | None = None
    signing: str = "off"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as the API shows it: never the key itself, never its digest.

    Attributes:
        signing: whether its requests are signed: one of ``SIGNING``.
        signing_secrets: ids of its signing secrets, the oldest first.
    """

    id: str
    name: str
    kind: str
    scopes: tuple[str, ...]
    campaigns: tuple[str, ...] | None
    origins: tuple[str, ...] | None
    created_at: datetime
    revoked_at: datetime | None
    signing: str
    signing_secrets: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return {
            name: shown_instant(value) if isinstance(value, datetime) else value
            for name, value in msgspec.structs.asdict(self).items()
        }


class IssuedKey(msgspec.Struct, frozen=True):
    """A new API key. ``key`` and ``signing_secret`` are shown once; the key is stored nowhere."""

    api_key: ApiKey
    key: str
    signing_secret: signing_secrets.IssuedSecret | None = None

    def __repr__(self) -> str:
        return f"IssuedKey({self.api_key.id})"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API, with the key itself, and the signing secret if it has one."""
        return self.api_key.document() | {"key": self.key} | signing_secrets.shown_once(self.signing_secret)


def digest(key: str) -> bytes:
    """Return the SHA-256 digest under which a key is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def create(
    plane: ControlPlane,
    name: str,
    scopes: Sequence[str],
    *,
    campaigns: Sequence[str] | None = None,
    signing: str = "off",
    actor: str = "cli",
) -> Changed[IssuedKey]:
    """Create a server key, store its digest and publish it.

    ``campaigns``: as in ``NewApiKey``. ``signing``: one of ``SIGNING``. ``actor`` is the id of
    the key of the caller, or ``cli``.

    Raises:
        Refusal: ``malformed_request``: the name, a scope, the list of campaigns or ``signing`` is invalid;
            ``campaign_not_found``.
        StoreUnavailable: the key signs, and there is no mint key here under which to encrypt its secret.
    """
    if not scopes or set(scopes) - set(SCOPES):
        raise Refusal("malformed_request", f"scopes must be one or more of {', '.join(SCOPES)}")
    check_choice("signing", signing, SIGNING)
    limited_to = None if campaigns is None else sorted(set(campaigns))
    if limited_to is not None:
        check_limit(limited_to, scopes)
    granted = [scope for scope in SCOPES if scope in scopes]
    return await _issue(plane, name, granted, limited_to, None, signing=signing, actor=actor)


async def create_for_browsers(
    plane: ControlPlane,
    name: str,
    *,
    campaigns: Sequence[str],
    origins: Sequence[str],
    actor: str = "cli",
) -> Changed[IssuedKey]:
    """Create a browser key: it may redeem, hold and check codes of these campaigns, in these pages.

    Its signing secret signs user tokens.

    Raises:
        Refusal: as for ``create``; ``malformed_request`` also if an origin is invalid.
        StoreUnavailable: there is no mint key here under which to encrypt its secret.
    """
    limited_to = sorted(set(campaigns))
    check_limit(limited_to, ())
    return await _issue(plane, name, [], limited_to, check_origins(origins), actor=actor)


async def create_as_asked(plane: ControlPlane, new: NewApiKey, *, actor: str) -> Changed[IssuedKey]:
    """Create the key that a request asks for.

    Raises:
        Refusal: as for ``create``; also if the request has members of the other kind of key.
    """
    check_kind(new.kind, has_origins=new.origins is not None, signing=new.signing)
    if new.kind == "server":
        return await create(
            plane, new.name, new.scopes or [], campaigns=new.campaigns, signing=new.signing, actor=actor
        )
    if new.scopes:
        raise Refusal("malformed_request", "A key of the kind browser has no scopes: leave scopes out.")
    return await create_for_browsers(
        plane, new.name, campaigns=new.campaigns or [], origins=new.origins or [], actor=actor
    )


async def _issue(
    plane: ControlPlane,
    name: str,
    scopes: list[str],
    campaigns: list[str] | None,
    origins: list[str] | None,
    *,
    signing: str = "off",
    actor: str,
) -> Changed[IssuedKey]:
    """Store and publish a key whose fields were checked, but for its name and whether the campaigns exist."""
    check_name(name)
    kind, mark = ("server", "rk") if origins is None else ("browser", "pk")
    number = secrets.token_hex(ID_BYTES)
    key = f"{mark}_{number}_{secrets.token_urlsafe(SECRET_BYTES)}"

    async def write(under: Change) -> IssuedKey:
        await refuse_codes(under.connection, plane.settings, name=name)
        await require_campaigns(under.connection, campaigns)
        await under.connection.execute(
            _SQL["insert"],
            f"key_{number}",
            name,
            digest(key),
            scopes,
            under.version,
            campaigns,
            kind,
            origins,
            signing,
        )
        secret = None
        if signing != "off" or origins is not None:
            secret = await signing_secrets.issue(under.connection, plane.settings, f"key_{number}")
        row = await under.connection.fetchrow(_SQL["get"], f"key_{number}")
        details: dict[str, object] = {"name": name, "scopes": scopes, "campaigns": campaigns}
        if origins is not None:
            details |= {"kind": kind, "origins": origins}
        if signing != "off":
            details["signing"] = signing
        await audit_log.record(
            under.connection,
            act="create_key",
            actor=actor,
            subject=f"key:key_{number}",
            details=details,
        )
        return IssuedKey(_api_key(row), key, secret)

    return await change(plane, write)


async def revoke(plane: ControlPlane, key_id: str, *, actor: str = "cli") -> Changed[ApiKey]:
    """Revoke an API key for good. Revoking it again changes nothing. ``actor``: as for ``create``.

    Raises:
        Refusal: ``not_found``.
    """
    if not _ID.fullmatch(key_id):
        raise Refusal("not_found", "There is no such API key.")

    async def write(under: Change) -> ApiKey:
        done = await under.connection.execute(_SQL["revoke"], key_id, under.version)
        row = await under.connection.fetchrow(_SQL["get"], key_id)
        if row is None:
            raise Refusal("not_found", "There is no such API key.")
        if done == "UPDATE 1":
            await audit_log.record(under.connection, act="revoke_key", actor=actor, subject=f"key:{key_id}")
        return _api_key(row)

    return await change(plane, write)


async def in_use(connection: Connection, key_id: str) -> ApiKey:
    """Return an API key that was not revoked.

    Raises:
        Refusal: ``not_found``.
    """
    row = await connection.fetchrow(_SQL["get"], key_id) if _ID.fullmatch(key_id) else None
    if row is None or row["revoked_at"] is not None:
        raise Refusal("not_found", "There is no such API key.")
    return _api_key(row)


async def find(database: Database, secret: str) -> CachedKey | None:
    """Look up an API key in PostgreSQL. Return None if it is unknown or revoked."""
    return await _valid(database, digest(secret), None)


async def find_by_id(database: Database, key_id: str) -> CachedKey | None:
    """Look up an API key in PostgreSQL by its id. Return None if it is unknown or revoked."""
    return await _valid(database, None, key_id)


async def find_named(database: Database, name: str, scopes: Sequence[str]) -> str | None:
    """Return the id of the oldest valid key with this name, these scopes and no limit; None for none."""
    async with database.connection() as connection:
        found: str | None = await connection.fetchval(_SQL["valid_with_name"], name, list(scopes))
    return found


async def _valid(database: Database, of_secret: bytes | None, key_id: str | None) -> CachedKey | None:
    async with database.connection() as connection:
        row = await connection.fetchrow(_SQL["valid"], of_secret, key_id)
    return None if row is None else cached_key(row)


async def page(plane: ControlPlane, *, after: str | None, limit: int) -> list[ApiKey]:
    """Return at most ``limit`` keys, the oldest first, starting after the key with the id ``after``."""
    if after is not None and not _ID.fullmatch(after):
        raise not_a_cursor()
    async with plane.database.connection() as connection:
        if after is None:
            rows = await connection.fetch(_SQL["first_page"], limit)
        else:
            rows = await connection.fetch(_SQL["page_after"], limit, after)
    return [_api_key(row) for row in rows]


def check_kind(kind: str, *, has_origins: bool, signing: str) -> None:
    """Check that a key of this kind can have origins, and can sign.

    Raises:
        Refusal: ``malformed_request``.
    """
    if kind == "server" and has_origins:
        raise Refusal("malformed_request", "Only a key of the kind browser has origins.")
    if kind == "browser" and signing != "off":
        raise Refusal("malformed_request", "A key of the kind browser cannot sign: everybody may read it.")


async def require_campaigns(connection: Connection, campaigns: Sequence[str] | None) -> None:
    """Check that there are campaigns with these ids.

    Raises:
        Refusal: ``campaign_not_found``.
    """
    if await connection.fetchval(_SQL["known_campaigns"], campaigns or ()) != len(campaigns or ()):
        raise Refusal("campaign_not_found")


def check_limit(campaigns: Sequence[str], scopes: Sequence[str]) -> None:
    """Check the campaigns of a limited key. It has no scope whose calls concern all campaigns.

    Raises:
        Refusal: ``malformed_request``.
    """
    if not 0 < len(campaigns) <= CAMPAIGNS_MAX:
        raise Refusal("malformed_request", f"campaigns must have 1 to {CAMPAIGNS_MAX} elements, or be null")
    if "admin" in scopes:
        raise Refusal("malformed_request", "A key with the scope admin cannot be limited to campaigns.")


def _texts(stored: list[str] | None) -> tuple[str, ...] | None:
    return None if stored is None else tuple(stored)


def _api_key(row: Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        scopes=tuple(row["scopes"]),
        campaigns=_texts(row["campaigns"]),
        origins=_texts(row["origins"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        signing=row["signing"],
        signing_secrets=tuple(row["signing_secrets"]),
    )
