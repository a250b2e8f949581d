"""``redeem loadtest``: each scenario for a moment against a real engine; its verifier on a lying ledger."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from loadtest.scenarios import SCENARIOS, read_plan

if TYPE_CHECKING:
    from pathlib import Path

    from engine.postgres_types import Pool
    from tests.support.load_tests import LoadTests


LONGER: Final = {
    "guessers": ("--seconds", "10", "--peak", "24"),
    "botnet": ("--seconds", "14", "--peak", "40"),
}
"""The guard needs some codes before it may do anything, and the verifier some after that."""


@pytest.mark.long
async def test_every_scenario_runs_and_its_answers_are_in_the_ledger(load: LoadTests) -> None:
    places = asyncio.Semaphore(4)

    async def run(scenario: str) -> tuple[int, dict[str, Any], str]:
        async with places:
            return await load.run(scenario, *LONGER.get(scenario, ()))

    results = dict(zip(SCENARIOS, await asyncio.gather(*map(run, SCENARIOS)), strict=True))
    for scenario, (status, result, err) in results.items():
        assert status == 0, (scenario, result, err)
        assert result["passed"], scenario
        assert result["verifier"]["acknowledged"] == result["verifier"]["events"] > 0, scenario
        directory = load.directory / scenario
        assert (directory / "locust.html").stat().st_size
        assert (directory / "locust_stats.csv").stat().st_size
    answers = {scenario: result["answers"] for scenario, (_, result, _) in results.items()}
    assert answers["flash-sale"]["ok"] == read_plan(load.directory / "flash-sale").stock
    assert answers["flash-sale"]["sold_out"]
    assert answers["hot-code"]["ok"] == read_plan(load.directory / "hot-code").max_uses
    assert answers["hot-code"]["uses_exceeded"]
    assert answers["retry-storm"]["none"]
    assert answers["guessers"]["blocked"]
    assert answers["botnet"]["challenge_required"]
    assert set(results["mixed-day"][1]["latency_ms"]) >= {"check", "redeem"}
    listed = await load.json("keys", "list")
    assert {key["revoked_at"] is None for key in listed if key["name"] == "load test"} == {False}
    assert {campaign["state"] for campaign in await load.json("campaigns", "list", "--all")} == {"ended"}


async def test_a_planted_loss_and_a_planted_double_redemption_are_found_in_the_ledger(
    load: LoadTests,
    pool: Pool,
) -> None:
    status, _, err = await load.run("unique-codes")
    assert status == 0, err
    status, found = await load.verify("unique-codes")
    assert (status, found["differences"]) == (0, {})

    lost, doubled, other = await pool.fetch(
        "SELECT * FROM ledger WHERE type = 'redeemed' ORDER BY seq LIMIT 3"
    )
    await pool.execute("UPDATE ledger SET serial = $1 WHERE seq = $2", doubled["serial"], other["seq"])
    status, found = await load.verify("unique-codes")
    assert status == 1
    assert set(found["differences"]) == {"succeeded_too_often", "not_as_answered"}
    assert f"code {doubled['batch']}/{doubled['serial']}" in found["listed"][0]["text"]

    await pool.execute("DELETE FROM ledger WHERE seq = $1", lost["seq"])
    status, found = await load.verify("unique-codes")
    assert status == 1
    assert found["differences"]["lost"] == 1
    missing = f"{lost['shard']}-{lost['stream_ms']}-{lost['stream_seq']}"
    assert missing in [item["item"] for item in found["listed"]]


async def test_a_run_fails_on_its_thresholds_on_misuse_and_without_an_engine(
    load: LoadTests, tmp_path: Path
) -> None:
    load.thresholds.write_text("[default]\np99_ms = 0.001\n")
    status, result, _ = await load.run("unique-codes")
    assert status == 1
    assert len(result["failed"]) == 1
    assert "p99_ms" in result["failed"][0]

    load.thresholds.write_text("[default]\np98_ms = 1\n")
    status, result, err = await load.run("hot-code")
    assert (status, result) == (1, {})
    assert "p98_ms" in err

    assert (await load("loadtest", "run", "no-such-scenario"))[0] == 2
    key_file = tmp_path / "key"
    key_file.write_text("rk_nobody")
    arguments = ("loadtest", "run", "soak", "--key-file", str(key_file), "--out", str(tmp_path / "out"))
    status, _, err = await load(*arguments, "--url", load.url)
    assert (status, err.count("\n"), "unauthenticated" in err) == (1, 1, True)
    status, _, err = await load(*arguments, "--url", "http://127.0.0.1:9")
    assert (status, err.count("\n"), "does not answer" in err) == (1, 1, True)


@pytest.mark.long
async def test_what_runs_leave_behind_has_neither_codes_nor_keys(
    load: LoadTests,
    pool: Pool,
) -> None:
    status, _, err = await load.run("mixed-day")
    assert status == 0, err
    directory = load.directory / "mixed-day"
    left = b"".join(file.read_bytes() for file in sorted(directory.iterdir()))
    batches = await pool.fetch("SELECT id FROM batches")
    exported = [await load.done("codes", "export", str(row["id"]), "--out", "-") for row in batches]
    codes = [line.partition(",")[0] for text in exported for line in text.splitlines()[1:]]
    assert b"answers" in left
    assert codes
    assert b"rk_" not in left
    assert [code for code in codes if code.encode() in left] == []


@pytest.mark.long
async def test_a_capacity_report_climbs_until_its_end_and_is_one_page(load: LoadTests) -> None:
    out = load.directory / "capacity"
    status, text, err = await load(
        *("loadtest", "capacity", "--from", "20", "--to", "40", "--step", "1", "--p99-ms", "60000", "--json"),
        *("--lag", "60", "--connections", "8", "--generators", "2", "--url", load.url, "--out", str(out)),
    )
    assert status == 0, err
    report = json.loads(text)
    steps = [(step["per_second"], step["purpose"], step["seconds"]) for step in report["steps"]]
    assert steps == [
        *((rate, "search", 1) for rate in (20, 30, 40)),
        *[(40, "confirmation", 2)] * 2,
        *((rate, "share", 1) for rate in (10, 20, 30)),
    ]
    assert (report["capacity"]["per_second"], report["capacity"]["runs"]) == (40, 2)
    assert report["verifier"]["acknowledged"] == report["verifier"]["events"] == 310
    watched = {name for sample in report["samples"] for name in sample["cores"]}
    assert {"front end", "persister", "load generator", "everything else"} <= watched
    assert "<h1>This box" in (out / "capacity.html").read_text()
