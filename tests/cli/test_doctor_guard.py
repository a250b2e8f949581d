"""Walks the table of the guard in docs/doctor.md: `redeem doctor` names what is wrong, and what to type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from engine.control import alerts, blocks, guard_rules
from engine.guard.behaviour import Alarm
from engine.store import keys
from tests.support.browsers import page_of
from tests.support.cli import Cli
from tests.support.deployment import engine_of_processes, issue
from tests.support.doctor_page import pattern_of
from tests.support.importing import a_campaign, age_imports, bring, lines_of
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

PAGE: Final = Path(__file__).parents[2] / "docs" / "doctor.md"
ROW: Final = re.compile(r"^\| (guard: [^|`]+?) \| `([\w ]+)` \| (\w+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
CHECKS: Final = ("guard sharing", "client addresses", "guard blocks", "guard alerts", "guard imports")


class Row(NamedTuple):
    """A row of the table."""

    trouble: str
    check: str
    verdict: str
    says: str
    do: str

    def matches(self, check: dict[str, Any]) -> bool:
        is_said = re.fullmatch(pattern_of(self.says), check["says"])
        return bool(check["verdict"] == self.verdict and is_said and check["do"] == self.do.replace("`", ""))


ROWS: Final = [Row(*found) for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]


async def cut_off(plane: ControlPlane, _: Merchant) -> None:
    await plane.redis.set(keys.guard_attempts(), "of another program")


async def ignore_a_proxy(plane: ControlPlane, merchant: Merchant) -> None:
    campaign, _ = await issue(plane, 1)
    page = await page_of(plane, merchant, campaign)
    for _ in range(2):
        await page.post("/v1/codes/check", {"code": "0000"}, X_Forwarded_For="203.0.113.7")


async def fill(plane: ControlPlane, actor: str, count: int) -> None:
    for number in range(count):
        new = blocks.NewBlock(kind="user", subject=f"eve {number}", reason="made-up codes")
        await blocks.create(plane, new, actor=actor)


async def fill_automatic(plane: ControlPlane, _: Merchant) -> None:
    await fill(plane, "guard", 2)


async def fill_all(plane: ControlPlane, _: Merchant) -> None:
    await fill(plane, "cli", 3)


async def raise_alerts(plane: ControlPlane, _: Merchant) -> None:
    for number in range(3):
        await alerts.raise_alert(plane, Alarm("flood", f"flood:{number}", "a flood", None, {}), 1)
    await alerts.acknowledge(plane, "alr_1", actor="cli")


async def import_before_the_update(plane: ControlPlane, _: Merchant) -> None:
    campaign = await a_campaign(plane)
    await bring(plane, campaign, lines_of(["SPRING4711ABCDEFGH", "SPRING4712ABCDEFGH"]))
    await age_imports(plane)


async def observe(plane: ControlPlane, _: Merchant) -> None:
    await guard_rules.set_modes(plane, {"score": "observe", "slow_drip": "observe"}, actor="cli")
    async with plane.database.connection() as connection:
        await connection.execute(
            "UPDATE guard_rules SET changed_at = now() - interval '20 days' WHERE name = 'score'"
        )


SCENES: Final = {
    "guard: a worker cannot write its keys in Redis": cut_off,
    "guard: a proxy is not in the list": ignore_a_proxy,
    "guard: too many automatic blocks": fill_automatic,
    "guard: too many blocks": fill_all,
    "guard: alerts that nobody has acknowledged": raise_alerts,
    "guard: an earlier version imported codes, and did not measure them": import_before_the_update,
    "guard: a rule was never enforced": observe,
}


async def checks_of(cli: Cli) -> dict[str, dict[str, Any]]:
    _, out, err = await cli("doctor", "--json", REDEEM_BLOCKS_MAX="3", REDEEM_GUARD_BLOCKS_MAX="2")
    assert err == ""
    return {check["check"]: check for check in json.loads(out)["checks"]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.trouble.replace(" ", "_"))
async def test_what_is_wrong_is_named_and_nothing_else_of_the_guard(row: Row, plane: ControlPlane) -> None:
    cli = Cli(plane.settings)
    guarded: dict[str, Any] = {
        "guard_score_mode": "observe",
        "trusted_proxies": "10.0.0.0/8",
        "client_address_header": "x-forwarded-for",
    }
    async with engine_of_processes(plane, workers=1, **guarded) as merchant:
        before = await checks_of(cli)
        assert {before[name]["verdict"] for name in CHECKS} == {"ok"}
        assert not [name for name in before if name.startswith("guard rule")]
        await SCENES[row.trouble](plane, merchant)

        async def is_told() -> bool:
            check = (await checks_of(cli)).get(row.check)
            return check is not None and row.matches(check)

        await wait_until_async(is_told)
        now = await checks_of(cli)
        of_guard = [name for name in now if name.startswith("guard") or name == "client addresses"]
        assert [name for name in of_guard if now[name]["verdict"] != "ok"] == [row.check]
        await plane.redis.delete(keys.guard_attempts())


def test_the_table_has_each_scene() -> None:
    assert {row.trouble for row in ROWS} == SCENES.keys()


async def repair(plane: ControlPlane, _: Merchant) -> None:
    await plane.redis.delete(keys.guard_attempts())


async def test_a_worker_that_shares_again_is_well(plane: ControlPlane) -> None:
    cli = Cli(plane.settings)
    async with engine_of_processes(plane, workers=1, guard_score_mode="observe") as merchant:
        for arrange, verdict in ((cut_off, "warning"), (repair, "ok")):
            await arrange(plane, merchant)

            async def is_told(verdict: str = verdict) -> bool:
                return bool((await checks_of(cli))["guard sharing"]["verdict"] == verdict)

            await wait_until_async(is_told)
