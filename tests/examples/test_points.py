"""``examples/points.py``, really run beside an engine: each event counts once, whatever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis  # noqa: TC002 - the fixture's type is read

from engine.settings import without_settings
from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.streams import persisting
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from engine.control.change import ControlPlane
    from engine.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "examples" / "points.py"


async def start(settings: Settings, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), "--redis", settings.redis_url, *arguments),
        cwd=settings.data_dir,
        env=without_settings(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


async def catch_up(settings: Settings) -> None:
    """Run it until it has nothing more to do."""
    running = await start(settings, "--once")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, err = await running.communicate()
    finally:
        await kill(running)
    assert (running.returncode, err) == (0, b"")


def grants(settings: Settings) -> list[tuple[str, str, int]]:
    """For which event who was given how much."""
    file = settings.data_dir / "points.sqlite3"
    if not file.exists():
        return []
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as points:
        return list(points.execute("SELECT event, user, points FROM grants")) if tables(points) else []


def tables(points: sqlite3.Connection) -> list[Any]:
    return points.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()


async def test_points_are_granted_once_and_taken_back(plane: ControlPlane, redis: Redis) -> None:
    settings = plane.settings
    _, cards = await issue(plane, 2, kind="balance", amount=5000, currency="EUR")
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane, scopes=("redeem", "read")) as merchant:
        await catch_up(settings)  # registers the group: nothing is lost from now on
        _, card = await merchant.redeem(cards[0], "ann", amount=700)
        _, code = await merchant.redeem(codes[0], "bob")
        for redeemed, body in ((card, {"reason": "r", "amount": 200}), (code, {"reason": "r"})):
            path = f"/v1/redemptions/{redeemed['id']}/rollback"
            assert (await merchant.call("POST", path, json=body))[0] == 200
        hold = {"code": codes[1], "user": "cho", "order": "o"}
        _, held = await merchant.call("POST", "/v1/holds", json=hold)
        _, confirmed = await merchant.call("POST", f"/v1/holds/{held['id']}/confirm", json={})
        await catch_up(settings)
        await redis.xgroup_setid(keys.events(0), "points", id="0")  # all of it comes once more
        await catch_up(settings)
    found = grants(settings)
    for event, given in ((card, ("ann", 700)), (code, ("bob", 100)), (confirmed, ("cho", 100))):
        assert (event["id"], *given) in found
    assert sorted(given[1:] for given in found) == [
        *(("ann", -200), ("ann", 700), ("bob", -100), ("bob", 100), ("cho", 100)),
    ]
    pending: Any = await redis.xpending(keys.events(0), "points")
    assert pending["pending"] == 0


async def test_points_are_right_whenever_it_is_killed(plane: ControlPlane, redis: Redis) -> None:
    """Beside a persister that trims, and an engine that redeems all the while."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - to repeat it
    source, settings = random.Random(seed), plane.settings
    _, codes = await issue(plane, 300, amount=500, currency="EUR")
    redeemed: list[str] = []
    async with engine_in_process(plane) as merchant, persisting(settings):
        await catch_up(settings)

        async def redeem_all() -> None:
            for code in codes:
                _, body = await merchant.redeem(code)
                redeemed.append(body["id"])

        redeeming = asyncio.create_task(redeem_all())
        kills = 0
        while not redeeming.done() or kills < 5:
            running = await start(settings)
            aim = min(len(codes), len(grants(settings)) + source.randrange(1, 40))
            await wait_until_async(lambda aim=aim: len(grants(settings)) >= aim)  # type: ignore[misc] # bound now
            await kill(running)
            kills += 1
        await redeeming
        await catch_up(settings)

        async def trimmed() -> bool:
            return await redis.xlen(keys.events(0)) == 0

        await wait_until_async(trimmed)  # the group is through, so nothing is kept for it
    found = grants(settings)
    assert sorted(found) == sorted((event, "ann", 500) for event in redeemed)
