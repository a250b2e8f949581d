"""Walks the second table of docs/doctor.md: of two shards, `redeem doctor` names the one in trouble."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from engine.store import keys
from tests.support.cli import Cli
from tests.support.deployment import engine_in_process, issue
from tests.support.doctor_page import pattern_of
from tests.support.locks import holding
from tests.support.streams import Stream, persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

PAGE: Final = Path(__file__).parents[2] / "docs" / "doctor.md"
ROW: Final = re.compile(r"^\| ([^|`]+?) \| `(shard 1 \w+)` \| (\w+) \| (.+?) \|$", re.MULTILINE)


class Row(NamedTuple):
    """A row of the table."""

    trouble: str
    check: str
    verdict: str
    says: str

    def matches(self, check: dict[str, Any]) -> bool:
        return check["verdict"] == self.verdict and bool(re.fullmatch(pattern_of(self.says), check["says"]))


ROWS: Final = [Row(*found) for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]


class Scene:
    """Two shards, each with one event in the ledger; then shard 1 gets into trouble."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.settings = plane, plane.settings

    async def one_more_event(self) -> None:
        await Stream(self.plane.redis, 1).add(1)

    @contextlib.asynccontextmanager
    async def the_persister_hangs(self) -> AsyncIterator[None]:
        lock = "SELECT 1 FROM ledger_offsets WHERE shard = 1 FOR UPDATE"
        async with persisting(self.settings), holding(self.settings.database_url, lock):
            await self.one_more_event()
            yield

    @contextlib.asynccontextmanager
    async def another_process_has_the_ledger(self) -> AsyncIterator[None]:
        lock = "SELECT pg_advisory_xact_lock(x'5245444d'::int, 1)"
        async with holding(self.settings.database_url, lock), persisting(self.settings):
            yield

    @contextlib.asynccontextmanager
    async def redis_has_lost_it(self) -> AsyncIterator[None]:
        await self.plane.redis.delete(keys.events(1))
        yield

    @contextlib.asynccontextmanager
    async def the_persister_finds_it_lost(self) -> AsyncIterator[None]:
        async with self.redis_has_lost_it(), persisting(self.settings):
            yield

    @contextlib.asynccontextmanager
    async def the_ledger_has_lost_it(self) -> AsyncIterator[None]:
        await self.one_more_event()
        async with persisting(self.settings):
            pass
        await self.plane.redis.xtrim(keys.events(1), maxlen=0, approximate=False)
        async with self.plane.database.connection() as connection:
            await connection.execute("DELETE FROM ledger WHERE shard = 1")
            await connection.execute(
                "UPDATE ledger_offsets SET stream_ms = 0, stream_seq = 0, seq = 0 WHERE shard = 1"
            )
        yield

    @contextlib.asynccontextmanager
    async def it_has_no_configuration(self) -> AsyncIterator[None]:
        await self.plane.redis.delete(keys.version(1))
        yield

    @contextlib.asynccontextmanager
    async def it_is_of_another_deployment(self) -> AsyncIterator[None]:
        await self.plane.redis.set(keys.deployment(1), str(uuid.uuid4()))
        yield

    @contextlib.asynccontextmanager
    async def a_rebuild_was_interrupted(self) -> AsyncIterator[None]:
        await self.plane.redis.set(keys.rebuilding(1), 1)
        yield


SCENES: Final = {
    "its persister waits for a lock": Scene.the_persister_hangs,
    "another program has its lock": Scene.another_process_has_the_ledger,
    "Redis has lost its events": Scene.redis_has_lost_it,
    "its persister finds its events lost": Scene.the_persister_finds_it_lost,
    "PostgreSQL has lost its rows": Scene.the_ledger_has_lost_it,
    "it has no configuration": Scene.it_has_no_configuration,
    "its keys are of another deployment": Scene.it_is_of_another_deployment,
    "a rebuild was interrupted there": Scene.a_rebuild_was_interrupted,
}


@pytest.fixture
def shards() -> int:
    return 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.trouble.replace(" ", "_"))
async def test_the_shard_in_trouble_is_named_and_the_other_is_well(row: Row, plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)  # serials 0 and 1: one for each shard
    async with engine_in_process(plane) as merchant:
        for code in codes:
            assert (await merchant.redeem(code))[0] == 200
    async with persisting(plane.settings):
        pass
    cli = Cli(plane.settings)
    other = row.check.replace("1", "0", 1)
    async with SCENES[row.trouble](Scene(plane)):
        found: dict[str, Any] = {}

        async def told() -> bool:
            status, out, err = await cli("doctor", "--json")
            assert err == ""
            found.clear()
            found.update({check["check"]: check for check in json.loads(out)["checks"]})
            check = found.get(row.check)
            is_well = found.get(other, {"verdict": "ok"})["verdict"] == "ok"  # it may have to catch up first
            return check is not None and row.matches(check) and status == 1 and is_well

        try:
            await wait_until_async(told)
        except AssertionError:
            pytest.fail(f"{row} is not what it says: {found}")
        if other == "shard 0 persister":
            assert found[other]["verdict"] == "ok"
        else:
            assert found.get(other, {"verdict": "ok"})["verdict"] == "ok"
            assert found["shard 0 ledger"]["verdict"] == "ok"


def test_the_page_has_each_trouble() -> None:
    assert [row.trouble for row in ROWS] == list(SCENES)
