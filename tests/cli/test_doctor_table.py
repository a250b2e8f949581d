"""Walks the table of docs/doctor.md: each part in each condition, with real processes and servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.health.parts import Liveness, read_ledger
from engine.observability.heartbeats import ProcessRole
from engine.webhooks import changes
from engine.webhooks.changes import NewWebhook
from tests.support.cli import Cli
from tests.support.deployment import Process, engine_in_process, issue
from tests.support.doctor_page import pattern_of
from tests.support.endpoints import delivering, receiving
from tests.support.locks import holding
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.deployment import Merchant
    from tests.support.endpoints import Receiver
    from tests.support.servers import Servers, ValkeyProcess

PAGE: Final = Path(__file__).parents[2] / "docs" / "doctor.md"
ROW: Final = re.compile(
    r"^\| ([\w ]+?) \| (\w+)(?: \([^)]*\))? \| `([^`]+)` \| (\w+) \| (.+?) \|$", re.MULTILINE
)
CONDITIONS: Final = ("healthy", "stopped", "hung", "failing", "misconfigured", "absent")
PARTS: Final = ("Redis", "PostgreSQL", "persister", "deliverer", "worker", "webhook endpoint")
HANG: Final = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))\n"
PROGRAMS: Final = {"persister": "persister", "deliverer": "persister.webhooks", "worker": "engine.worker"}
WRONG_SETTINGS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("persister", "failing"): {"redis_url": "redis://127.0.0.1:1"},
    ("persister", "misconfigured"): {"shards": 2},
    ("deliverer", "misconfigured"): {"webhook_retry_s": "soon"},
    ("worker", "misconfigured"): {"mint_keys": "k1:" + "11" * 32},
}
STATUS: Final = {"ok": 0, "warning": 0, "wrong": 1}


class Row(NamedTuple):
    """A row of the table."""

    part: str
    condition: str
    check: str
    verdict: str
    says: str

    def matches(self, check: dict[str, Any]) -> bool:
        whole = re.compile(pattern_of(self.says) + ("" if self.verdict == "wrong" else "$"), re.DOTALL)
        return check["verdict"] == self.verdict and bool(whole.match(check["says"]))


ROWS: Final = [Row(*found) for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]


@dataclass
class Scene:
    """A deployment in which all is well, but for one part in one condition."""

    plane: ControlPlane
    servers: Servers
    valkey: ValkeyProcess
    receiver: Receiver
    directory: Path
    stack: contextlib.AsyncExitStack
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.plane.settings

    async def arrange(self, part: str, condition: str) -> None:
        if part in PROGRAMS:
            await self._arrange_process(part, condition)
            return
        arrange = getattr(self, f"{part.split(maxsplit=1)[0].lower()}_{condition}", None)
        if arrange is not None:
            await arrange()

    async def _arrange_process(self, part: str, condition: str) -> None:
        if condition == "absent":
            return
        settings = replace(self.settings, port=0, **WRONG_SETTINGS.get((part, condition), {}))
        more = [str(self.directory / "worker-0.ready")] if part == "worker" else []
        process = self.stack.enter_context(Process(settings, PROGRAMS[part], *more))
        if (part, condition) == ("deliverer", "misconfigured"):
            assert await asyncio.to_thread(process.running.wait, 60) == 2
        if condition in {"failing", "misconfigured"} and part != "worker":
            if part == "deliverer" and condition == "failing":
                await self._hide("webhook_secrets")
            return
        await wait_until_async(lambda: self._beats(part))
        if condition == "failing":
            await self.redis_misconfigured()
        elif condition in {"stopped", "hung"}:
            os.kill(process.running.pid, signal.SIGSTOP if condition == "stopped" else signal.SIGUSR1)
            self.stack.callback(process.kill)

    async def _beats(self, part: str) -> bool:
        async with self.plane.database.connection() as connection:
            ledger = await read_ledger(connection)
        if part == "worker":
            return bool(ledger.signs.of(ProcessRole.WORKER))
        state = ledger.persister(0) if part == "persister" else ledger.deliverer
        return state.liveness is Liveness.ACTIVE

    async def _hide(self, table: str) -> None:
        connection = await self._connection()
        await connection.execute(f"ALTER TABLE {table} RENAME TO hidden")
        self.stack.push_async_callback(connection.execute, f"ALTER TABLE hidden RENAME TO {table}")

    async def _connection(self) -> Any:  # noqa: ANN401 - asyncpg has no types
        connection = await asyncpg.connect(self.settings.database_url)
        self.stack.push_async_callback(connection.close)
        return connection

    # Redis

    async def redis_stopped(self) -> None:
        self.valkey.pause()
        self.stack.callback(self.valkey.resume)

    async def redis_hung(self) -> None:
        """A script without end: Redis refuses everything else, but to kill it."""
        client = Redis.from_url(self.settings.redis_url)
        self.stack.push_async_callback(client.aclose)
        await client.config_set("busy-reply-threshold", 50)
        endless: asyncio.Task[Any]
        endless = asyncio.create_task(client.eval("while true do end", 0))  # type: ignore[arg-type] # untyped there

        async def end() -> None:
            await client.script_kill()
            await asyncio.wait({endless})
            endless.exception()

        self.stack.push_async_callback(end)

    async def redis_failing(self) -> None:
        used: Any = await self.plane.redis.info("memory")
        await self._configure("maxmemory", str(used["used_memory"] * 10 // 8), "0")

    async def redis_misconfigured(self) -> None:
        await self._configure("appendfsync", "everysec", "always")

    async def redis_absent(self) -> None:
        self.valkey.kill()
        self.stack.callback(self.valkey.start)

    async def _configure(self, name: str, value: str, right: str) -> None:
        await self.plane.redis.config_set(name, value)
        self.stack.push_async_callback(self.plane.redis.config_set, name, right)

    # PostgreSQL

    async def postgresql_stopped(self) -> None:
        assert self.servers.postgres is not None
        self.servers.postgres.pause()
        self.stack.callback(self.servers.postgres.resume)

    async def postgresql_hung(self) -> None:
        lock = "LOCK TABLE ledger_offsets IN ACCESS EXCLUSIVE MODE"
        await self.stack.enter_async_context(holding(self.settings.database_url, lock))

    async def postgresql_failing(self) -> None:
        connection = await self._connection()
        name = await connection.fetchval("SELECT current_database()")
        setting = f'ALTER DATABASE "{name}" {{}} default_transaction_read_only'
        await connection.execute(setting.format("SET") + " = on")
        self.stack.push_async_callback(connection.execute, setting.format("RESET"))

    async def postgresql_misconfigured(self) -> None:
        name = self.settings.database_url.partition("?")[0].rpartition("/")[2]
        self.environment["REDEEM_DATABASE_URL"] = self.settings.database_url.replace(name, "nowhere")

    async def postgresql_absent(self) -> None:
        assert self.servers.postgres is not None
        self.servers.postgres.stop()
        self.stack.callback(self.servers.postgres.start)

    # webhook endpoint

    async def webhook_hung(self) -> None:
        self.receiver.answer = lambda _: asyncio.Event().wait()  # type: ignore[assignment,return-value] # never answers

    async def webhook_failing(self) -> None:
        self.receiver.status = 500

    async def webhook_misconfigured(self) -> None:
        self.receiver.status = 404


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(
        settings,
        webhooks_allow_private=True,
        webhook_retry_s="1000",
        webhook_timeout_s=1,
        republish_interval_s=1,
    )


@pytest.fixture
def hangs_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes of the engine block their event loop for an hour when they get SIGUSR1."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "site"), str(PAGE.parents[1]))))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.part}-{row.condition}".replace(" ", "_"))
@pytest.mark.usefixtures("hangs_when_told")
async def test_each_part_in_each_condition_is_told_as_the_page_says(
    row: Row, plane: ControlPlane, servers: Servers, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    _, (code,) = await issue(plane, 1)
    cli = Cli(plane.settings)
    async with receiving() as gone:
        pass
    merchant: Merchant | None = None
    async with receiving() as receiver, contextlib.AsyncExitStack() as others:
        if row.part != "persister":
            await others.enter_async_context(persisting(plane.settings))
        if row.part != "deliverer":
            await others.enter_async_context(delivering(plane.settings))
        if row.part != "worker":
            merchant = await others.enter_async_context(engine_in_process(plane))
        if row.part != "webhook endpoint" or row.condition != "absent":
            url = gone.url if (row.part, row.condition) == ("webhook endpoint", "stopped") else receiver.url
            await changes.create(plane, NewWebhook(url=url), actor="test")
        async with contextlib.AsyncExitStack() as stack:
            scene = Scene(plane, servers, valkey, receiver, tmp_path, stack)
            await scene.arrange(row.part, row.condition)
            if " that wait: 1" in row.says and merchant is not None:
                assert (await merchant.redeem(code))[0] == 200
            found: dict[str, Any] = {}

            async def told() -> bool:
                status, out, err = await cli("doctor", "--json", **scene.environment)
                assert err == ""
                found.clear()
                found.update({check["check"]: check for check in json.loads(out)["checks"]})
                check = found.get(row.check)
                return check is not None and row.matches(check) and status == STATUS[row.verdict]

            try:
                await wait_until_async(told)
            except AssertionError:
                pytest.fail(f"{row} is not what it says: {found}")


def test_the_page_has_each_part_in_each_condition() -> None:
    assert [(row.part, row.condition) for row in ROWS] == [
        (part, condition) for part in PARTS for condition in CONDITIONS
    ]
