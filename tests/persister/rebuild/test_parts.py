"""Several processes write a rebuild's idempotency records; any of them, or the rebuild, may be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from engine.control.publishing import publish
from engine.errors import StoreBehind
from engine.settings import without_settings
from persister.rebuild import parts
from persister.rebuild.parts import PartEnded
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import engine_in_process, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

PROCESSES = 3
_REBUILD = """
import asyncio, os
from engine import settings
from persister.rebuild import parts
from persister.rebuild.rebuild import rebuild
parts.EVENTS_MIN = 0
asyncio.run(rebuild(settings.load(os.environ), lambda *_: None))
"""


def silent(*_: object) -> None:
    """No progress."""


@pytest.fixture
def plane(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> ControlPlane:
    """Rebuilds with several processes, however few events there are."""
    monkeypatch.setattr(parts, "EVENTS_MIN", 0)
    return replace(plane, settings=replace(plane.settings, rebuild_processes=PROCESSES))


def parts_of(pid: int) -> list[psutil.Process]:
    """The processes that write parts, of the rebuild in this process."""
    return [each for each in psutil.Process(pid).children() if "persister.rebuild.part" in each.cmdline()]


async def redeem_some(merchant: Merchant, codes: list[str]) -> list[object]:
    """Redeem each code under a key of its own; return the ids."""
    answers = [await merchant.redeem(code, key=f"k{at}") for at, code in enumerate(codes)]
    assert [status for status, _ in answers] == [200] * len(codes)
    return [body["id"] for _, body in answers]


async def is_whole_again(
    plane: ControlPlane, merchant: Merchant, codes: list[str], ids: list[object]
) -> None:
    """Rebuild. Every key has its answer, and no used code is good."""
    assert await rebuild(plane.settings, silent) == len(codes)
    await publish(plane.redis, plane.database)
    for at, (code, id_) in enumerate(zip(codes, ids, strict=True)):
        status, body = await merchant.redeem(code, key=f"k{at}")
        assert (status, body["id"], body["replayed"]) == (200, id_, True)
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
    assert not (await reconcile(plane.settings, {}, silent)).findings


async def is_refused(plane: ControlPlane, merchant: Merchant, new: str) -> None:
    """Nobody redeems, and nothing is published."""
    with pytest.raises(StoreBehind):
        await publish(plane.redis, plane.database)
    assert (await merchant.redeem(new))[0] == 503


@pytest.mark.parametrize("victim", range(PROCESSES))
async def test_if_one_of_the_processes_is_killed_nobody_redeems_until_the_next_rebuild(
    plane: ControlPlane, victim: int
) -> None:
    _, (*codes, new) = await issue(plane, 9)
    async with engine_in_process(plane) as merchant:
        ids = await redeem_some(merchant, codes)
        rebuilding = asyncio.create_task(rebuild(plane.settings, silent))

        async def started() -> bool:
            return len(parts_of(os.getpid())) == PROCESSES

        await wait_until_async(started)
        began = parts_of(os.getpid())
        began[victim].kill()
        with pytest.raises(PartEnded, match="ended with status -9"):
            await rebuilding
        assert not any(each.is_running() for each in began)
        await is_refused(plane, merchant, new)
        await is_whole_again(plane, merchant, codes, ids)
        assert (await merchant.redeem(new))[0] == 200


async def test_if_the_rebuild_is_killed_its_processes_end_and_the_next_one_starts_again(
    plane: ControlPlane,
) -> None:
    _, (*codes, new) = await issue(plane, 9)
    async with engine_in_process(plane) as merchant:
        ids = await redeem_some(merchant, codes)
        environment = without_settings(os.environ) | plane.settings.to_environ()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _REBUILD, env=environment)

        async def started() -> bool:
            return len(parts_of(process.pid)) == PROCESSES

        await wait_until_async(started)
        began = parts_of(process.pid)
        process.kill()
        await process.wait()

        async def ended() -> bool:
            return not any(each.is_running() for each in began)

        await wait_until_async(ended)
        await is_refused(plane, merchant, new)
        await is_whole_again(plane, merchant, codes, ids)
