"""Another key under the name of a mint key is refused before it can turn valid codes into unknown ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.cli.initialise import initialise
from engine.control import api_keys, batches
from engine.control.batches import NewBatch
from engine.errors import StoreUnavailable
from engine.store import keys
from engine.worker import serving
from tests.support.deployment import Merchant, client_session, issue, mint_batch
from tests.support.importing import bring
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

OTHER = "k1:" + "11" * 32
REFUSED = "not the keys that codes were issued under.*k1"


def with_other_keys(plane: ControlPlane) -> ControlPlane:
    return replace(plane, settings=replace(plane.settings, mint_keys=OTHER))


def with_second_key(plane: ControlPlane, byte: str) -> ControlPlane:
    mint_keys = f"{plane.settings.mint_keys},k2:{byte * 32}"
    return replace(plane, settings=replace(plane.settings, mint_keys=mint_keys))


async def test_a_worker_with_another_key_of_the_same_name_is_not_ready_and_refuses_no_code_for_good(
    plane: ControlPlane,
) -> None:
    _, (code,) = await issue(plane, 1)
    key = (await api_keys.create(plane, "merchant", ("redeem",))).value.key
    settings = replace(plane.settings, port=0, mint_keys=OTHER)
    async with serving(settings, None) as port, client_session() as session:
        merchant = Merchant(session, f"http://{settings.host}:{port}", key)

        async def parts() -> Any:  # noqa: ANN401 - JSON
            return await merchant.call("GET", "/readyz")

        async def connected() -> bool:
            return bool((await parts())[1]["parts"]["redis"] == "ok")

        await wait_until_async(connected)
        status, body = await parts()
        assert (status, body["parts"]["mint_keys"]) == (503, "not those of this deployment: k1")
        status, body = await merchant.redeem(code)
        assert (status, body["code"]) == (503, "store_unavailable")


async def test_nothing_is_issued_imported_or_exported_under_another_key(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    number, _ = await mint_batch(plane, campaign, 1)
    batch, other = await batches.get(plane, number), with_other_keys(plane)
    with pytest.raises(StoreUnavailable, match=REFUSED):
        await batches.mint(other, campaign, NewBatch(count=1), created_by="test")
    with pytest.raises(StoreUnavailable, match=REFUSED):
        async with batches.exporting(other, batch, actor="test", details={}):
            pytest.fail("codes are exported")
    with pytest.raises(StoreUnavailable, match=REFUSED):
        await bring(other, campaign, b"ABCD-EFGH-1234\n")
    assert len(await batches.page(plane, campaign, after=None, limit=9)) == 2


async def test_a_key_that_only_an_import_uses_is_recorded_too(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    await bring(with_second_key(plane, "22"), campaign, b"ABCD-EFGH-1234\n")
    with pytest.raises(StoreUnavailable, match="others of these names: k2"):
        await bring(with_second_key(plane, "33"), campaign, b"ABCD-EFGH-5678\n")


async def test_init_refuses_another_key_and_records_those_of_an_earlier_version(plane: ControlPlane) -> None:
    await issue(plane, 1)
    with pytest.raises(StoreUnavailable, match=REFUSED):
        await initialise(with_other_keys(plane).settings)
    await plane.database.pool.execute("DELETE FROM mint_keys")  # as an earlier version left it
    await initialise(plane.settings)
    with pytest.raises(StoreUnavailable, match=REFUSED):
        await initialise(with_other_keys(plane).settings)
    published: Any = await plane.redis.hvals(keys.control())
    assert any(b'"key_check":"' in record and b'"key_check":""' not in record for record in published)
