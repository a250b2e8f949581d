"""The page Operations: what is wrong and what to type, what the audits found, conflicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.store import keys
from tests.support.browser import IN_BROWSER
from tests.support.cli import Cli
from tests.support.dashboard import signed_in
from tests.support.deployment import issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.dashboard import Dashboard

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]


async def test_what_is_wrong_and_what_the_audits_found_is_told_with_what_to_type(
    plane: ControlPlane, dashboard: Dashboard
) -> None:
    cli = Cli(plane.settings)
    await issue(plane, 5)
    async with signed_in(dashboard, "/admin/operations") as one:
        await one.sees("checks are fine")
        await one.sees("No audit has run yet")
        await one.sees("No conflicts")
        await one.check()
        await cli.done("audit")
        await plane.redis.setbit(keys.state(0, 0, 0), 2 * 4 + 1, 1)
        assert (await cli("audit"))[0] == 1
        await one.page.reload()
        await one.sees("All agrees")
        await one.sees("states: 1")
        await one.sees("Do this: set fsync = on in postgresql.conf")
        await one.check("operations")
    async with signed_in(dashboard, "/admin/operations", theme="dark", language="zh-CN") as one:
        await one.sees("有差异")
        await one.check("operations-zh-dark")
