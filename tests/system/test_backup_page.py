"""The commands of docs/backup.md and docs/upgrade.md, as they stand there, and what comes of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from engine.codes import mint_keys
from engine.observability.heartbeats import BEAT_S
from engine.settings import Settings
from persister.migrations import initialise, migrate, migrations_directory
from tests.support.cli import redeem
from tests.support.deployment import Merchant, Process, client_session, wait_until_ready
from tests.support.pages import blocks, run_block
from tests.support.servers import PostgresProcess
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.servers import ValkeyProcess

BACKUP: Final = blocks("docs/backup.md")
UPGRADE: Final = blocks("docs/upgrade.md")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own(own_directory: Path) -> Settings:
    """Bundled servers in ``.redeem`` of the working directory, as the pages have them."""
    return Settings(data_dir=own_directory / ".redeem", port=0, workers=1, republish_interval_s=1)


class Deployment:
    """A ``redeem up`` that stops and starts, its merchant, and a shell for the pages' commands."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.place = settings.data_dir.parent
        self.key = ""
        self.codes: list[str] = []
        self._used = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Merchant]:
        """Run ``redeem up`` for the block, and stop it in order."""
        with Process(self.settings, "engine.cli", "up", log=self.place / "up.log") as up:
            word, _, url = (await asyncio.to_thread(up.line)).partition(" ")
            assert word == "ready", (self.place / "up.log").read_text()
            if not self.key:
                await asyncio.to_thread(self._prepare)
            async with client_session() as session:
                merchant = Merchant(session, url, self.key)
                await wait_until_ready(merchant)
                yield merchant
            assert await asyncio.to_thread(up.stop, 60) == 0

    def _prepare(self) -> None:
        self.key = redeem(self.settings, "keys", "create", "--name", "shop", "--scopes", "redeem,read")
        self.codes = self.more_codes()

    def more_codes(self) -> list[str]:
        campaign = redeem(self.settings, "campaigns", "create", "--name", "Sale", "--active")
        rows = redeem(self.settings, "codes", "mint", campaign, "--count", "20").splitlines()
        return [row.partition(",")[0] for row in rows[1:]]

    async def redeem_some(self, merchant: Merchant, count: int) -> None:
        """Redeem the next codes."""
        for number in range(self._used, self._used + count):
            status, body = await merchant.redeem(self.codes[number], key=f"order-{number}")
            assert status == 200, body
        self._used += count

    async def shell(self, block: str) -> str:
        """Run a block; it must succeed."""
        status, out = await run_block(block, self.place, self.settings.to_environ())
        assert status == 0, out
        return out

    async def all_recorded(self, merchant: Merchant, count: int) -> None:
        async def recorded() -> bool:
            _, page = await merchant.call("GET", "/v1/redemptions?user=ann")
            return len(page["items"]) == count

        await wait_until_async(recorded)


async def back_up_between(deployment: Deployment, before: int, after: int) -> None:
    """Redeem, back up as the page says, redeem more, and stop."""
    async with deployment.running() as merchant:
        await deployment.redeem_some(merchant, before)
        await deployment.all_recorded(merchant, before)
        await deployment.shell(BACKUP["Back up"][0])
        await deployment.redeem_some(merchant, after)
        await deployment.all_recorded(merchant, before + after)


async def check(deployment: Deployment) -> None:
    await asyncio.sleep(2 * BEAT_S)  # the workers' last one may be from before they were ready
    assert "everything agrees" in await deployment.shell(BACKUP["Restore PostgreSQL"][2])


def test_each_block_of_the_pages_is_run_here() -> None:
    assert {heading: len(found) for heading, found in BACKUP.items()} == {
        "Back up": 1,
        "Restore PostgreSQL": 3,
        "Events are missing": 1,
        "The configuration is older": 1,
        "Reach the servers yourself": 1,
    }
    assert {heading: len(found) for heading, found in UPGRADE.items()} == {
        "Before": 1,
        "On one machine": 1,
        "On your own servers": 2,
    }


async def test_what_the_backup_lacks_comes_back_from_the_stream(own: Settings) -> None:
    deployment = Deployment(own)
    await back_up_between(deployment, 3, 4)
    own.mint_keys_path.unlink()
    assert "restored 3 events" in await deployment.shell(BACKUP["Restore PostgreSQL"][0])
    await deployment.shell(BACKUP["Restore PostgreSQL"][1])
    async with deployment.running() as merchant:
        await deployment.all_recorded(merchant, 7)
        status, body = await merchant.redeem(deployment.codes[6], key="order-6")
        assert (status, body.get("replayed")) == (200, True), body
        assert (await merchant.redeem(deployment.codes[6]))[1]["code"] == "already_redeemed"
        await check(deployment)
        if not shutil.which("redis-cli") or not shutil.which("psql"):
            pytest.skip("psql or redis-cli is not on this machine")
        assert "count" in await deployment.shell(BACKUP["Reach the servers yourself"][0])


async def test_what_the_stream_no_longer_has_is_recovered_from_redis(own: Settings) -> None:
    deployment = Deployment(replace(own, stream_kept_min=0, stream_kept_s=0))
    await back_up_between(deployment, 3, 4)
    await deployment.shell(BACKUP["Restore PostgreSQL"][0])
    with Process(deployment.settings, "engine.cli", "up", log=deployment.place / "refused.log") as refused:
        assert await asyncio.to_thread(refused.running.wait, 60) == 1
    assert "run `redeem recover`" in (deployment.place / "refused.log").read_text()
    assert "4 stream entries were missing; 4 events were written" in await deployment.shell(
        BACKUP["Events are missing"][0]
    )
    async with deployment.running() as merchant:
        assert (await merchant.redeem(deployment.codes[6]))[1]["code"] == "already_redeemed"
        await deployment.redeem_some(merchant, 1)
        await check(deployment)


async def test_a_restore_without_redis_makes_later_codes_valid_again(own: Settings) -> None:
    deployment = Deployment(own)
    await back_up_between(deployment, 3, 1)
    async with deployment.running():
        lost = await asyncio.to_thread(deployment.more_codes)
    shutil.rmtree(own.data_dir / "valkey")
    await deployment.shell(UPGRADE["On one machine"][0].replace("before-upgrade.dump", "backup.dump"))
    await deployment.shell(BACKUP["The configuration is older"][0])
    async with deployment.running() as merchant:
        assert (await merchant.redeem(deployment.codes[2]))[1]["code"] == "already_redeemed"
        assert (await merchant.redeem(deployment.codes[3]))[0] == 200
        made = await asyncio.to_thread(deployment.more_codes)
        assert not set(made) & set(lost)
        assert (await merchant.redeem(made[0]))[0] == 200
        await check(deployment)


async def test_what_was_made_after_the_backup_comes_back_from_redis(own: Settings) -> None:
    deployment = Deployment(own)
    await back_up_between(deployment, 3, 1)
    async with deployment.running() as merchant:
        lost = await asyncio.to_thread(deployment.more_codes)
        assert (await merchant.redeem(lost[0], key="lost"))[0] == 200
    await deployment.shell(BACKUP["Restore PostgreSQL"][0])
    async with deployment.running() as merchant:
        assert (await merchant.redeem(lost[0]))[1]["code"] == "already_redeemed"
        assert (await merchant.redeem(lost[1]))[0] == 200
        made = await asyncio.to_thread(deployment.more_codes)
        assert not set(made) & set(lost)
        assert (await merchant.redeem(made[0]))[0] == 200
        assert (await merchant.redeem(deployment.codes[3]))[1]["code"] == "already_redeemed"
        await deployment.all_recorded(merchant, 7)
        await check(deployment)


async def test_the_tables_of_an_older_version_are_brought_up_to_date(
    valkey: ValkeyProcess, own_directory: Path
) -> None:
    older = own_directory / "migrations"
    older.mkdir()
    for file in sorted(migrations_directory().iterdir(), key=lambda each: each.name)[:-1]:
        (older / file.name).write_bytes(file.read_bytes())
    postgres = PostgresProcess(own_directory / "postgres")
    postgres.start()
    try:
        connection = await asyncpg.connect(postgres.url)
        await migrate(connection, older)
        await initialise(connection, 1)
        await connection.close()
        (own_directory / ".redeem").mkdir()
        mint_keys.create_file(own_directory / ".redeem" / "mint-keys")
        own = {"REDEEM_REDIS_URL": valkey.url, "REDEEM_DATABASE_URL": postgres.url}
        for step in (UPGRADE["Before"][0], UPGRADE["On your own servers"][0]):
            status, said = await run_block(step, own_directory, own)
            assert status == 0, said
        settings = Settings(
            redis_url=valkey.url,
            database_url=postgres.url,
            data_dir=own_directory / ".redeem",
            port=0,
            workers=1,
        )
        with (
            Process(settings, "engine.cli", "serve") as front_end,
            Process(settings, "persister") as persister,
        ):
            assert (await asyncio.to_thread(front_end.line)).startswith("ready ")

            async def persists() -> bool:
                return (
                    "shard 0 persister                works"
                    in (await run_block("redeem doctor", own_directory, own))[1]
                )

            await wait_until_async(persists)
            status, said = await run_block(UPGRADE["On your own servers"][1], own_directory, own)
            assert status == 0, said
            assert "everything agrees" in said
            for process in (front_end, persister):
                assert await asyncio.to_thread(process.stop) == 0
        back = "redeem restore before-upgrade.dump --yes"
        status, out = await run_block(back, own_directory, own)
        assert (status, "restored 0 events" in out) == (0, True), out
    finally:
        postgres.stop()
