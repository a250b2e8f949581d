"""Both servers set back in every combination: nothing that either of them knows becomes good again (P8).

PostgreSQL is the same, older (within what the stream kept, or beyond it), empty, or another deployment's;
Redis is the same, older, empty, or another deployment's; the engine runs meanwhile, or is stopped. It
goes on by itself, or it refuses to redeem and says what to type; after that was typed, it redeems.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from engine.cli.initialise import initialise
from engine.control import api_keys
from engine.control.publishing import publish
from engine.errors import StoreBehind
from engine.store import keys
from engine.store.deployment_id import ForeignStore
from engine.worker import serving
from persister.rebuild.rebuild import RebuildRefused, rebuild
from persister.reconcile.reconcile import reconcile
from persister.recover.recover import recover
from tests.support.backups import Backups
from tests.support.deployment import Merchant, client_session, issue
from tests.support.ledger_rows import persisted, silent
from tests.support.servers import own_valkey
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from _pytest.mark import ParameterSet

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.servers import Servers, ValkeyProcess

OLD, NEW, FRESH = range(10), range(10, 20), range(20, 22)
WORKS: Final = "works"
RECOVER: Final = "redeem recover"
REBUILD: Final = "redeem rebuild"
FOREIGN: Final = "belongs to deployment"
HOLE: Final = f"10 events; run `{RECOVER}`"

# For each PostgreSQL and Redis: what becomes of it, and which codes at least stay redeemed once it works.
CELLS: Final = {
    ("same", "same"): (WORKS, [*OLD, *NEW]),
    ("same", "older"): (REBUILD, [*OLD, *NEW]),
    ("same", "empty"): (REBUILD, [*OLD, *NEW]),
    ("same", "foreign"): (FOREIGN, [*OLD, *NEW]),
    ("older, kept", "same"): (WORKS, [*OLD, *NEW]),
    ("older, kept", "older"): (WORKS, [*OLD]),
    ("older, kept", "empty"): (REBUILD, [*OLD]),
    ("older, kept", "foreign"): (FOREIGN, [*OLD]),
    ("older", "same"): (RECOVER, [*OLD, *NEW]),
    ("older", "older"): (WORKS, [*OLD]),
    ("older", "empty"): (REBUILD, [*OLD]),
    ("older", "foreign"): (FOREIGN, [*OLD]),
    ("empty", "same"): (FOREIGN, None),
    ("empty", "older"): (FOREIGN, None),
    ("empty", "foreign"): (FOREIGN, None),
    ("foreign", "same"): (FOREIGN, None),
    ("foreign", "older"): (FOREIGN, None),
    ("foreign", "empty"): (REBUILD, None),
}


@dataclass
class World:
    """One deployment with everything that a test may put in the place of its data."""

    plane: ControlPlane
    settings: Settings
    servers: Servers
    valkey: ValkeyProcess
    place: Path
    backups: Backups
    codes: list[str]
    key: str = ""

    async def set_back(self, postgresql: str, redis: str) -> None:
        """Put other data in the place of both servers' data."""
        self.valkey.kill()
        if redis != "same":
            shutil.rmtree(self._data)
            self._data.mkdir()
        if redis in {"older", "foreign"}:
            shutil.copytree(self.place / redis, self._data, dirs_exist_ok=True)
        if postgresql != "same":
            await self.backups.restore(self.copies[postgresql])
        self.valkey.spawn()
        await self.valkey.wait_ready()

    async def snapshot(self, name: str) -> None:
        """Copy the data of Redis, which must be on disk."""
        self.valkey.kill()
        shutil.copytree(self._data, self.place / name)
        self.valkey.spawn()
        await self.valkey.wait_ready()

    def __post_init__(self) -> None:
        self.copies: dict[str, str] = {}
        self._data = self.valkey.server.data_dir / "valkey"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Merchant]:
        """A worker and a persister, that may not be ready."""
        async with (
            persisting(self.settings),
            serving(replace(self.settings, port=0), None) as port,
            client_session() as session,
        ):
            yield Merchant(session, f"http://{self.settings.host}:{port}", self.key)

    async def redeem(self, serials: range) -> None:
        """Redeem codes, and wait until the ledger has them."""
        async with self.running() as merchant:
            for serial in serials:
                status, body = await merchant.redeem_until_definite(self.codes[serial], key=f"k{serial}")
                assert status == 200, body
            await persisted(self.plane)
            if not self.settings.stream_kept_min:
                await wait_until_async(self._trimmed)

    async def _trimmed(self) -> bool:
        return await self.plane.redis.xlen(keys.events(0)) == 0

    async def start_anew(self, database: str) -> None:
        """Begin as another deployment: an empty Redis, and an empty PostgreSQL with an id of its own."""
        connection = await asyncpg.connect(self.servers.database_url(database))
        await connection.execute("UPDATE deployment SET id = gen_random_uuid()")
        await connection.close()


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    with own_valkey() as process:
        yield process


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    return fresh_database_url


@pytest.fixture
async def world(  # noqa: PLR0917 - fixtures
    request: pytest.FixtureRequest,
    plane: ControlPlane,
    servers: Servers,
    valkey: ValkeyProcess,
    database_url: str,
    tmp_path: Path,
) -> World:
    postgresql, redis = request.param
    kept = 100 if postgresql == "older, kept" else 0
    settings = replace(plane.settings, republish_interval_s=1, stream_kept_min=kept)
    world = World(plane, settings, servers, valkey, tmp_path, Backups(servers, database_url), [])
    empty = world.copies["empty"] = await world.backups.take()
    await world.start_anew(empty)
    if "foreign" in {postgresql, redis}:
        ours = await world.backups.take()
        await world.start_anew(ours)
        await redeem_as_new(world, OLD)
        world.copies["foreign"] = await world.backups.take()
        await world.snapshot("foreign")
        await world.set_back("same", "empty")
        await world.backups.restore(ours)
    await redeem_as_new(world, OLD)
    world.copies["older"] = world.copies["older, kept"] = await world.backups.take()
    await world.snapshot("older")
    await world.redeem(NEW)
    return world


async def redeem_as_new(world: World, serials: range) -> None:
    """Issue codes in a deployment that has none yet, and redeem some."""
    _, world.codes = await issue(world.plane, FRESH.stop)
    world.key = (await api_keys.create(world.plane, "merchant", ("redeem", "read"))).value.key
    await world.redeem(serials)


async def says(merchant: Merchant) -> str:
    """Return what ``/readyz`` says of Redis and the configuration; empty if it is ready."""
    status, body = await merchant.call("GET", "/readyz")
    return "" if status == 200 else f"{body['parts']['redis']}; {body['parts']['configuration']}"


async def none_is_redeemed_again(world: World, merchant: Merchant, known: list[int]) -> None:
    """No code that one of the two servers knows as used is redeemed once more."""
    for serial in known:
        status, body = await merchant.redeem(world.codes[serial])
        assert status != 200, body


async def check_works(world: World, merchant: Merchant, known: list[int]) -> None:
    async def ready() -> bool:
        return not await says(merchant)

    await wait_until_async(ready)
    for serial in known:
        status, body = await merchant.redeem_until_definite(world.codes[serial], key=f"again-{serial}")
        assert (status, body["code"]) == (409, "already_redeemed")
    status, body = await merchant.redeem_until_definite(world.codes[FRESH[0]], key="fresh")
    assert status == 200, body
    await persisted(world.plane)


async def check_refuses(world: World, merchant: Merchant, outcome: str, known: list[int]) -> None:
    expected = {RECOVER: "redeem recover", REBUILD: "", FOREIGN: FOREIGN}[outcome]

    async def refused() -> bool:
        said = await says(merchant)
        return bool(said) and expected in said

    await wait_until_async(refused)
    await none_is_redeemed_again(world, merchant, known)
    status, body = await merchant.redeem(world.codes[FRESH[0]])
    assert status in {401, 503}, body
    if outcome == REBUILD:
        await wait_until_async(lambda: behind(world, merchant))


async def behind(world: World, merchant: Merchant) -> bool:
    _, body = await merchant.redeem(world.codes[FRESH[0]])
    return body["code"] in {"store_behind", "unauthenticated"}


async def check_start(settings: Settings, outcome: str) -> None:
    """`redeem serve` says at its start what it would refuse."""
    expected = {REBUILD: StoreBehind, FOREIGN: ForeignStore}.get(outcome)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        await initialise(settings)


async def type_what_it_says(world: World, outcome: str) -> None:
    if outcome == RECOVER:
        with pytest.raises(RebuildRefused):
            await rebuild(world.settings, silent)
        await recover(world.settings, lambda _batch, _serial: "WXYZ", silent)
    if outcome == FOREIGN:
        with pytest.raises(RebuildRefused):
            await rebuild(world.settings, silent, forget_lost=True)
    if outcome in {REBUILD, FOREIGN}:
        await rebuild(world.settings, silent, replace_foreign=outcome == FOREIGN)
        await publish(world.plane.redis, world.plane.database)


ENGINES: Final = ("stopped", "running")


def in_turn() -> Iterator[ParameterSet]:
    """Every cell with the engine stopped and running; one of the two is only in the long form, in turn."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*CELLS, strict=True))
    for cell, (at, engine) in itertools.product(CELLS, enumerate(ENGINES)):
        is_quick = (rows.index(cell[0]) + columns.index(cell[1]) + at) % len(ENGINES) == 0
        yield pytest.param(
            cell, engine, id=f"{', '.join(cell)}-{engine}", marks=[] if is_quick else [pytest.mark.long]
        )


@pytest.mark.parametrize(("world", "engine"), list(in_turn()), indirect=["world"])
async def test_set_back(request: pytest.FixtureRequest, world: World, engine: str) -> None:
    postgresql, redis = request.node.callspec.params["world"]
    outcome, known = CELLS[postgresql, redis]
    if engine == "stopped":
        await world.set_back(postgresql, redis)
        await check_start(world.settings, outcome)
    if engine == "running" or outcome != REBUILD:  # behind the ledger, a worker does not serve
        async with world.running() as merchant:
            if engine == "running":
                await world.set_back(postgresql, redis)
            if outcome == WORKS:
                await check_works(world, merchant, known or [])
            else:
                await check_refuses(world, merchant, outcome, known or [*OLD, *NEW])
    if outcome != WORKS and known is not None:
        await type_what_it_says(world, outcome)
        async with world.running() as merchant:
            await check_works(world, merchant, known)
    if known is not None:
        assert (await reconcile(world.settings, {}, silent)).findings == []


def test_the_matrix_is_whole() -> None:
    postgresql = ("same", "older, kept", "older", "empty", "foreign")
    every = set(itertools.product(postgresql, ("same", "older", "empty", "foreign")))
    # Both empty is a new deployment; both of one other deployment is that deployment.
    assert every - CELLS.keys() == {("empty", "empty"), ("foreign", "foreign")}
