"""``redeem audit`` and ``redeem conflicts``, beside a running engine."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from engine.store import keys
from persister.reconcile.conflicts import CodeTallies
from tests.support.deployment import engine_in_process, issue
from tests.support.records import persist

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.cli import Cli


async def test_an_audit_says_whether_everything_agrees_and_what_does_not(
    cli: Cli, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 5)
    async with engine_in_process(plane, scopes=("redeem", "admin")) as merchant:
        for code in codes[:3]:
            assert (await merchant.redeem(code))[0] == 200
        await persist(plane.settings)
        assert (await merchant.call("GET", "/v1/audits"))[1]["items"] == []
        lines = (await cli.done("audit")).splitlines()
        assert lines[-1] == "everything agrees"
        assert any(line.split() == ["states", "5", "0"] for line in lines)
        (anchor,) = [line.split()[-1] for line in lines if "--anchor" in line]
        document = await cli.json("audit", "--anchor", anchor)
        assert document["clean"]
        head = document["chain"][0]
        assert anchor == f"{head['shard']}:{head['seq']}:{head['digest']}"

        await plane.redis.setbit(keys.state(0, 0, 0), 2 * 4 + 1, 1)
        status, out, err = await cli("audit")
        assert (status, err) == (1, "")
        assert "states: batch 0, serial 4: should be 0, is 1" in out
        assert out.splitlines()[-1] == "1 differences"
        status, out, _ = await cli("audit", "--json")
        assert status == 1
        assert '"findings":[{"check":"states","item":"batch 0, serial 4","expected":"0","found":"1"}]' in out
        kept = (await merchant.call("GET", "/v1/audits"))[1]["items"]
        assert [one["clean"] for one in kept] == [False, False, True, True]
        assert {"check": "states", "looked_at": 5, "differing": 1} in kept[0]["checks"]
        assert kept[0]["began_at"] < kept[0]["ended_at"]
        second = (await merchant.call("GET", f"/v1/audits?limit=1&after={kept[1]['id']}"))[1]["items"]
        assert second == [kept[2]]
    assert (await cli("audit", "--anchor", "0:1"))[0] == 2


async def test_servers_that_are_away_are_one_line(cli: Cli) -> None:
    for name in ("REDEEM_REDIS_URL", "REDEEM_DATABASE_URL"):
        away = "redis://127.0.0.1:1" if "REDIS" in name else "postgresql://x@127.0.0.1:1/x"
        for url in (away, "mysql://127.0.0.1/x"):
            for command in (["audit"], ["rebuild"], ["rebuild", "--force"]):
                assert "internal error" not in await cli.refused(*command, **{name: url})


async def test_a_postgresql_that_answers_nothing_is_one_line_that_says_so(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://x@127.0.0.1:{port}/x"
        told = await cli.refused("audit", REDEEM_DATABASE_URL=url, REDEEM_PERSIST_TIMEOUT_S="1")
    assert "did not answer in time" in told


async def test_conflicts_are_shown_the_newest_first(cli: Cli, plane: ControlPlane) -> None:
    _, (first, second) = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        for _ in range(2):
            for code in (first, second):
                assert (await merchant.redeem(code))[0] == 200
            await plane.redis.delete(keys.state(0, 0, 0))
    assert await cli.done("conflicts") == ""
    await persist(plane.settings)
    async with plane.database.connection() as connection:
        await CodeTallies(connection).check(100)  # as the persister does when it comes to it
    found = await cli.json("conflicts")
    assert [(item["id"], item["serial"]) for item in found] == [(2, 1), (1, 0)]
    lines = (await cli.done("conflicts", "--limit", "1")).splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("batch 0, serial 1  2 of 1")
    assert [item["id"] for item in await cli.json("conflicts", "--after", "2")] == [1]
