"""While a new version is rolled out, workers of two versions redeem side by side."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.control import api_keys
from engine.redemption.operations import OPERATIONS
from engine.redemption.redeem import Redemption
from engine.store.scripts import LIST_LIBRARIES, libraries
from lua import loader
from tests.support.deployment import Merchant, Process, client_session, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import pytest
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "persister", "lua")
OURS = Redemption.script.library
ALIKE = {operation.script.library for operation in OPERATIONS} - {OURS}


async def redeem_libraries(redis: Redis) -> frozenset[str]:
    """Those of redeem.lua, of all versions."""
    return libraries(await redis.function_list(f"{loader.prefix('redeem')}*")) - ALIKE


async def all_known(redis: Redis) -> bool:
    """Whether a worker has loaded its scripts; it may be ready before."""
    known = libraries(await redis.function_list(LIST_LIBRARIES[-1]))
    return all(operation.script.library in known for operation in OPERATIONS)


async def test_scripts_of_an_older_version_run_beside_those_of_this_one(
    plane: ControlPlane, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "lua" / "redeem.lua"
    script.write_text(script.read_text() + "\n-- as an older version had it\n")
    _, codes = await issue(plane, 3)
    key = (await api_keys.create(plane, "merchant", ("redeem",))).value.key
    settings = replace(plane.settings, port=0, workers=1)
    await redis.function_flush()
    with Process(settings, "engine.cli", "serve") as newer:
        new_url = (await asyncio.to_thread(newer.line)).partition(" ")[2]
        await wait_until_async(lambda: all_known(redis))
        with monkeypatch.context() as there:
            there.chdir(tmp_path)  # `python -m` takes its modules from there
            there.setenv("PYTHONPATH", str(tmp_path))  # and what it starts takes them from there
            older = Process(settings, "engine.cli", "serve")
        with older:
            old_url = (await asyncio.to_thread(older.line)).partition(" ")[2]
            async with client_session() as session:
                old, new = Merchant(session, old_url, key), Merchant(session, new_url, key)
                first = await old.redeem(codes[0], key="k")
                (theirs,) = await redeem_libraries(redis)  # loaded in place of ours
                assert theirs != OURS
                assert first[0] == 200
                assert await new.redeem(codes[0], key="k") == (200, first[1] | {"replayed": True})
                assert (await new.redeem(codes[0]))[1]["code"] == "already_redeemed"
                assert (await new.redeem(codes[1]))[0] == 200
                assert (await old.redeem(codes[1]))[1]["code"] == "already_redeemed"
                assert await redeem_libraries(redis) == {theirs, OURS}  # ours was loaded again
            assert older.stop() == 0
        assert newer.stop() == 0
