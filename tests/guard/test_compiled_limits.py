"""The compiled table of a limit does exactly what the one in Python does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from engine.guard.limits import MODULE, Limit, LimitTable, limit_table

if TYPE_CHECKING:
    from engine.guard.labels import Source

CompiledLimitTable = pytest.importorskip(
    MODULE, reason="the table of limits was not compiled"
).CompiledLimitTable
KINDS = ("user", "device", "network")


@pytest.mark.parametrize("seed", range(40))
def test_both_tables_decide_share_and_learn_alike(seed: int) -> None:
    chance = random.Random(seed)
    limit = Limit(per_minute=chance.randrange(1, 120), burst=chance.randrange(1, 20))
    sources_max = chance.choice([1, 2, 5, 30, 9999])
    tables: list[Any] = [kind(limit, sources_max) for kind in (LimitTable, CompiledLimitTable)]
    users = chance.choice([1, 3, 40])

    def a_source() -> Source:
        return "key_0", chance.choice(KINDS), f"{chance.randrange(users)}"

    now, refused, told = 1000.0, 0, 0
    for step in range(3000):
        now += chance.choice([0.0, 0.0, 0.01, 1.0, 3 * limit.interval_s]) * chance.random()
        units = chance.choice([1, 1, 1, 2, 3, 2 * limit.burst])
        sources = list({a_source() for _ in range(chance.choice([0, 1, 1, 2, 3]))})
        do = chance.choice(["admit"] * 6 + ["wait_s", "charge", "left", "take_unshared", "learn"])
        arguments: dict[str, tuple[Any, ...]] = {
            "left": (a_source(), now),
            "take_unshared": (chance.randrange(4),),
            "learn": (a_source(), 60 * chance.random(), now),
        }
        results = [getattr(table, do)(*arguments.get(do, (sources, units, now))) for table in tables]
        assert results[0] == pytest.approx(results[1], abs=1e-9), (seed, step, do)
        assert not isinstance(results[0], dict) or list(results[0]) == list(results[1])
        assert len(tables[0]) == len(tables[1])
        refused += do == "admit" and results[0] > 0
        told += do == "take_unshared" and len(results[0])
    assert refused
    assert told


def test_one_attempt_is_charged_to_all_its_sources_by_the_clock_alike() -> None:
    for kind in (LimitTable, CompiledLimitTable):
        table = kind(Limit(per_minute=1, burst=2), 100)
        waits = [table.admit_now("key_0", "ann") for _ in range(3)]
        assert waits == [0.0, 0.0, pytest.approx(60, abs=30)]
        assert table.admit_now("key_1", "ann") == 0.0
        assert table.admit_now("key_2", "ann", "d", "203.0.113.1") == 0.0
        assert table.admit_now("key_2", "bob", "d") == 0.0
        assert table.admit_now("key_2", "", "d") > 0.0
        assert table.admit_now("key_2", "bob", "", "203.0.113.1") == 0.0
        assert len(table) == 6
        twice = [source for source, charged_s in table.take_unshared(9).items() if charged_s > 60]
        assert [subject for _, _, subject in twice] == ["ann", "d", "203.0.113.1", "bob"]


def test_a_worker_uses_the_compiled_table() -> None:
    assert type(limit_table(Limit(1, 1), 10)) is CompiledLimitTable
