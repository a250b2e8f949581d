"""Blocks are in force in every worker process, whoever makes them; the benchmark makes the same calls."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped] # it has no types

from engine.control import blocks
from loadtest.benchmarks.blocks import block_by_ops, block_by_rule, callers, pids_of_workers
from tests.support.deployment import engine_of_processes

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_a_block_by_ops_and_one_by_a_rule_are_in_force_in_every_worker(plane: ControlPlane) -> None:
    settings = {"workers": 3, "scopes": ("redeem", "admin"), "guard_score_mode": "enforce"}
    async with engine_of_processes(plane, **settings) as merchant:  # type: ignore[arg-type] # by name
        url = urlsplit(merchant.url)
        pids = pids_of_workers(psutil.Process())
        assert len(set(pids)) == 3
        workers = await callers(url.hostname or "", url.port or 0, merchant.key, pids)
        for number in range(3):  # each returns when every worker refuses
            await block_by_ops(workers, f"ops-{number}")
            await block_by_rule(workers, f"rule-{number}", random.Random(number))
        assert {(await worker.try_code("0000-0000-0000-0000", "ann")).status for worker in workers} == {404}
        for worker in workers:
            worker.close()
    made = await blocks.page(plane, after=None, limit=9)
    assert {one.subject for one in made if one.actor == "guard"} == {f"rule-{number}" for number in range(3)}
    assert len(made) == 6
