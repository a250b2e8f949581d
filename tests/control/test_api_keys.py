from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from engine.control import api_keys
from engine.errors import Refusal
from engine.store.configuration import SCOPES
from tests.support.dumps import dump_of_database, dump_of_redis

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_a_key_is_random_and_tells_its_id(plane: ControlPlane) -> None:
    first = (await api_keys.create(plane, "shop", ["read", "redeem", "read"])).value
    second = (await api_keys.create(plane, "shop", list(SCOPES))).value
    for issued in (first, second):
        assert re.fullmatch(r"rk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", issued.key)
        assert issued.key.split("_")[1] == issued.api_key.id.removeprefix("key_")
    assert first.key[16:] != second.key[16:]
    assert first.api_key.scopes == ("redeem", "read")
    assert first.key not in repr(first)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("", ["read"]),
        ("x" * 201, ["read"]),
        ("a\0", ["read"]),
        ("a", []),
        ("a", ["root"]),
        ("a", ["read", ""]),
        ("a", ["READ"]),
    ],
)
async def test_a_malformed_key_is_refused(plane: ControlPlane, name: str, scopes: list[str]) -> None:
    with pytest.raises(Refusal, match="malformed_request"):
        await api_keys.create(plane, name, scopes)
    assert await api_keys.page(plane, after=None, limit=10) == []


async def test_a_revoked_key_stays_revoked_from_then_on(plane: ControlPlane) -> None:
    made = (await api_keys.create(plane, "shop", ["read"])).value.api_key
    revoked = (await api_keys.revoke(plane, made.id)).value
    assert revoked.revoked_at is not None
    assert (await api_keys.revoke(plane, made.id)).value == revoked
    assert await api_keys.page(plane, after=None, limit=10) == [revoked]


@pytest.mark.parametrize("key_id", ["", "key_000000000000", "key_x\0", "rk_1"])
async def test_an_unknown_key_cannot_be_revoked(plane: ControlPlane, key_id: str) -> None:
    with pytest.raises(Refusal, match="not_found"):
        await api_keys.revoke(plane, key_id)


async def test_pages_join_to_all_keys_in_order(plane: ControlPlane) -> None:
    made = [(await api_keys.create(plane, f"{number}", ["read"])).value.api_key for number in range(5)]
    first = await api_keys.page(plane, after=None, limit=3)
    assert first + await api_keys.page(plane, after=first[-1].id, limit=3) == made
    with pytest.raises(Refusal, match="cursor"):
        await api_keys.page(plane, after="nonsense", limit=3)


async def test_a_dump_of_both_databases_holds_a_key_only_as_its_digest(plane: ControlPlane) -> None:
    issued = (await api_keys.create(plane, "shop", ["read"])).value
    await api_keys.revoke(plane, issued.api_key.id)
    dump = await dump_of_database(plane) + await dump_of_redis(plane.redis)
    secret = issued.key.split("_", 2)[2]
    assert secret not in dump
    assert secret.encode().hex() not in dump
    assert dump.count(api_keys.digest(issued.key).hex()) == 2
