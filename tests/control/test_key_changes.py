from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from engine.control import api_keys, audit_log, key_changes, signing_secrets
from engine.control.key_changes import ApiKeyChange
from engine.errors import Refusal
from tests.support.deployment import issue
from tests.support.dumps import dump_of_database, dump_of_redis

if TYPE_CHECKING:
    from engine.control.api_keys import ApiKey
    from engine.control.change import ControlPlane
    from engine.control.key_changes import ChangedKey

ORIGIN = "https://shop.example"


async def updated(plane: ControlPlane, key: ApiKey, **changes: Any) -> ChangedKey:  # noqa: ANN401 - of any member
    return (await key_changes.update(plane, key.id, msgspec.convert(changes, ApiKeyChange))).value


async def made(plane: ControlPlane, *scopes: str) -> ApiKey:
    return (await api_keys.create(plane, "shop", scopes or ("redeem",))).value.api_key


async def made_for_browsers(plane: ControlPlane) -> ApiKey:
    campaign, _ = await issue(plane, 1)
    issued = await api_keys.create_for_browsers(plane, "page", campaigns=[campaign], origins=[ORIGIN])
    return issued.value.api_key


async def test_only_what_is_named_is_changed_and_recorded(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    key = await made(plane)
    changed = await updated(plane, key, name="till", campaigns=[campaign, campaign])
    assert changed.signing_secret is None
    assert changed.api_key == msgspec.structs.replace(key, name="till", campaigns=(campaign,))
    assert await api_keys.page(plane, after=None, limit=10) == [changed.api_key]
    assert (await updated(plane, key, campaigns=None)).api_key.campaigns is None
    assert (await updated(plane, key, campaigns=None, name="till")).api_key.name == "till"
    entries = await audit_log.page(
        plane.database, act="update_key", subject=f"key:{key.id}", after=None, limit=10
    )
    assert [entry.details for entry in entries] == [
        {"campaigns": [[campaign], None]},
        {"name": ["shop", "till"], "campaigns": [None, [campaign]]},
    ]


async def test_a_key_that_begins_to_sign_gets_one_secret_and_keeps_it(plane: ControlPlane) -> None:
    key = await made(plane)
    first = await updated(plane, key, signing="optional")
    assert first.signing_secret is not None
    assert first.signing_secret.secret not in repr(first)
    assert first.api_key.signing_secrets == (first.signing_secret.id,)
    for signing in ("required", "off", "optional"):
        later = await updated(plane, key, signing=signing)
        assert (later.signing_secret, later.api_key.signing) == (None, signing)
        assert later.api_key.signing_secrets == first.api_key.signing_secrets
    second = (await signing_secrets.rotate(plane, key.id)).value
    await signing_secrets.retire(plane, key.id, first.signing_secret.id)
    assert (await updated(plane, key, signing="required")).api_key.signing_secrets == (second.id,)
    dump = await dump_of_database(plane) + await dump_of_redis(plane.redis)
    for secret in (first.signing_secret, second):
        assert secret.secret not in dump
        assert secret.secret.encode().hex() not in dump


async def test_the_pages_and_campaigns_of_a_browser_key_can_be_replaced(plane: ControlPlane) -> None:
    key = await made_for_browsers(plane)
    other, _ = await issue(plane, 1)
    changed = await updated(plane, key, campaigns=[other], origins=["https://Till.example:443"])
    assert changed.api_key.campaigns == (other,)
    assert changed.api_key.origins == ("https://till.example",)
    assert changed.api_key.signing_secrets == key.signing_secrets


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"name": ""}, "malformed_request"),
        ({"name": "a\0"}, "malformed_request"),
        ({"signing": "on"}, "malformed_request"),
        ({"origins": [ORIGIN]}, "malformed_request"),
        ({"campaigns": []}, "malformed_request"),
        ({"campaigns": ["cmp_9"]}, "campaign_not_found"),
    ],
)
async def test_a_change_that_the_key_cannot_have_is_refused(
    plane: ControlPlane, changes: dict[str, Any], refusal: str
) -> None:
    key = await made(plane)
    with pytest.raises(Refusal, match=refusal):
        await updated(plane, key, **changes)
    assert await api_keys.page(plane, after=None, limit=10) == [key]


async def test_a_key_cannot_become_one_of_another_kind(plane: ControlPlane) -> None:
    browser, admin = await made_for_browsers(plane), await made(plane, "admin")
    for key, changes in (
        (browser, {"campaigns": None}),
        (browser, {"signing": "optional"}),
        (browser, {"origins": []}),
        (browser, {"origins": ["http://shop.example"]}),
        (admin, {"campaigns": list(browser.campaigns or ())}),
    ):
        with pytest.raises(Refusal, match="malformed_request"):
            await updated(plane, key, **changes)
    assert await api_keys.page(plane, after=None, limit=10) == [browser, admin]


async def test_a_name_with_a_code_is_refused(plane: ControlPlane) -> None:
    key = await made(plane)
    _, (code,) = await issue(plane, 1)
    with pytest.raises(Refusal, match="malformed_request"):
        await updated(plane, key, name=f"for {code}")


async def test_a_revoked_or_unknown_key_cannot_be_changed(plane: ControlPlane) -> None:
    key = await made(plane)
    await api_keys.revoke(plane, key.id)
    for key_id in (key.id, "key_000000000000", "key_\0"):
        with pytest.raises(Refusal, match="not_found"):
            await key_changes.update(plane, key_id, ApiKeyChange(name="till"))
