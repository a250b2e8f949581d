"""Changes an API key that stays in use: its name, campaigns, origins, and whether its requests are signed.

The key itself, its kind and its scopes cannot be changed: that is another key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, UnsetType

from engine.api.checks import check_choice
from engine.api.origins import check_origins
from engine.control import api_keys, audit_log, signing_secrets
from engine.control.campaigns import check_name
from engine.control.change import Change, Changed, ControlPlane, change
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal
from engine.queries import queries
from engine.store.configuration import SIGNING

if TYPE_CHECKING:
    from engine.control.api_keys import ApiKey

CHANGEABLE: Final = ("name", "campaigns", "origins", "signing")
_SQL: Final = queries(__package__, "key_changes")


class ApiKeyChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PATCH /v1/keys/{id}``: a member that is left out stays. ``campaigns`` null: no limit."""

    name: str | UnsetType = UNSET
    campaigns: list[str] | UnsetType | None = UNSET
    origins: list[str] | UnsetType = UNSET
    signing: str | UnsetType = UNSET


class ChangedKey(msgspec.Struct, frozen=True):
    """An API key after a change. ``signing_secret``: what the change made; it is shown only once."""

    api_key: ApiKey
    signing_secret: signing_secrets.IssuedSecret | None = None

    def __repr__(self) -> str:
        return f"ChangedKey({self.api_key.id})"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API, with the new signing secret if there is one."""
        return self.api_key.document() | signing_secrets.shown_once(self.signing_secret)


async def update(
    plane: ControlPlane, key_id: str, changes: ApiKeyChange, *, actor: str = "cli"
) -> Changed[ChangedKey]:
    """Change an API key and publish it. A key that begins to sign and has no secret gets one.

    A key that no longer signs keeps its secrets, so it can sign again with them.

    Raises:
        Refusal: ``not_found``: no such key, or revoked; ``malformed_request``: a value is invalid, or the
            key's kind does not have it; ``campaign_not_found``.
        StoreUnavailable: a secret is needed, and there is no mint key here under which to encrypt it.
    """

    async def write(under: Change) -> ChangedKey:
        before = await api_keys.in_use(under.connection, key_id)
        after = _changed(before, changes)
        if after.name != before.name:
            await refuse_codes(under.connection, plane.settings, name=after.name)
        if after.campaigns != before.campaigns:
            await api_keys.require_campaigns(under.connection, after.campaigns)
        if after == before:
            return ChangedKey(before)
        await under.connection.execute(
            _SQL["update"], key_id, after.name, after.campaigns, after.origins, after.signing, under.version
        )
        secret = None
        if after.signing != "off" and not before.signing_secrets:
            secret = await signing_secrets.issue(under.connection, plane.settings, key_id)
        details: dict[str, object] = _differences(before, after)
        if secret is not None:
            details["secret"] = secret.id
        await audit_log.record(
            under.connection, act="update_key", actor=actor, subject=f"key:{key_id}", details=details
        )
        return ChangedKey(await api_keys.in_use(under.connection, key_id), secret)

    return await change(plane, write)


def _changed(before: ApiKey, changes: ApiKeyChange) -> ApiKey:
    """Check the changes, and return the key as it is after them."""
    given = {name: value for name in CHANGEABLE if (value := getattr(changes, name)) is not UNSET}
    if "name" in given:
        check_name(given["name"])
    if "signing" in given:
        check_choice("signing", given["signing"], SIGNING)
    api_keys.check_kind(before.kind, has_origins="origins" in given, signing=given.get("signing", "off"))
    if "origins" in given:
        given["origins"] = tuple(check_origins(given["origins"]))
    if (campaigns := given.get("campaigns")) is not None:
        given["campaigns"] = tuple(sorted(set(campaigns)))
        api_keys.check_limit(given["campaigns"], before.scopes)
    elif "campaigns" in given and before.kind == "browser":
        raise Refusal("malformed_request", "A key of the kind browser is always limited to campaigns.")
    return msgspec.structs.replace(before, **given)


def _differences(before: ApiKey, after: ApiKey) -> dict[str, object]:
    """Return the changed members, each with its value before and after."""
    return {
        name: [old, new]
        for name in CHANGEABLE
        if (old := getattr(before, name)) != (new := getattr(after, name))
    }
