"""What ``redeem doctor`` and ``redeem audit`` have found, over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine.control import api_keys
from engine.errors import StoreUnavailable
from engine.pages import doctor
from engine.store.configuration import SCOPES
from tests.support.deployment import Merchant, engine_in_process

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_doctor_says_over_http_what_is_wrong_and_what_to_do(plane: ControlPlane) -> None:
    """No persister runs here."""
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        (status, report), (_, same) = await asyncio.gather(
            merchant.call("GET", "/v1/doctor"), merchant.call("GET", "/v1/doctor")
        )
        assert (status, report["verdict"], same) == (200, "wrong", report)
        checks = {one["check"]: one for one in report["checks"]}
        assert checks["schema"]["verdict"] == "ok"
        assert checks["shard 0 persister"]["verdict"] == "wrong"
        assert checks["shard 0 persister"]["do"]
        reads = (await api_keys.create(plane, "support", ["read"])).value.key
        assert (await Merchant(merchant.session, merchant.url, reads).call("GET", "/v1/doctor"))[0] == 403


async def test_a_doctor_that_does_not_end_is_ended(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXAMINE_S_MAX", 0.0)
    one = doctor.Doctor(plane.settings)
    with pytest.raises(StoreUnavailable, match="in time"):
        await one.examine()
    monkeypatch.setattr(doctor, "EXAMINE_S_MAX", 60.0)
    monkeypatch.setattr(doctor, "_COMMAND", ("true",))
    with pytest.raises(StoreUnavailable, match="read"):
        await one.examine()
