from __future__ import annotations

import asyncio
import csv
import importlib.metadata
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from engine.store import keys
from engine.store.configuration import ConfigurationCache
from tests.support.cli import COMMAND, Cli, environment

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis


async def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert (await cli.done("--version")).split()[-1] == importlib.metadata.version("redemption-engine")


async def test_help_needs_no_servers_and_no_settings(cli: Cli) -> None:
    status, out, _ = await cli("--help", REDEEM_NONSENSE="1")
    assert status == 0
    for command in ("keys", "campaigns", "codes"):
        assert f"\n  {command}" in out


async def test_help_of_the_group_imports_no_subcommand(cli: Cli) -> None:
    code = (
        "import sys; from engine.cli import main\n"
        "try: main(['--help'])\n"
        "finally: sys.exit(any(name in sys.modules for name in ('asyncpg', 'redis', 'numpy', 'aiohttp')))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environment(cli.settings), stdout=subprocess.DEVNULL
    )
    assert await process.wait() == 0


async def test_a_key_is_printed_alone_and_works_at_once(cli: Cli, redis: Redis) -> None:
    status, out, err = await cli("keys", "create", "--name", "shop", "--scopes", "redeem, read")
    assert (status, err) == (0, "")
    key = out.removesuffix("\n")
    assert key.startswith("rk_")
    assert key.split() == [key]
    worker = ConfigurationCache(redis)
    await worker.refresh()
    (known,) = worker.api_keys.values()
    assert known.scopes == ("redeem", "read")

    (listed,) = await cli.json("keys", "list")
    assert listed["id"] == known.id
    assert known.id in await cli.done("keys", "list")
    assert await cli.done("keys", "revoke", known.id, "--yes") == f"{known.id}\n"
    await worker.refresh()
    assert all(api_key.revoked for api_key in worker.api_keys.values())
    assert "revoked" in await cli.done("keys", "list")


async def test_a_key_that_begins_to_sign_has_its_secret_printed_once(cli: Cli) -> None:
    key = (await cli.json("keys", "create", "--name", "shop", "--scopes", "redeem"))["id"]
    printed = (await cli.done("keys", "update", key, "--signing", "optional", "--name", "till")).split()
    (listed,) = await cli.json("keys", "list")
    assert (listed["name"], listed["signing"]) == ("till", "optional")
    assert printed[:2] == [key, *listed["signing_secrets"]]
    assert printed[2].startswith("rs_")
    assert await cli.done("keys", "update", key, "--signing", "required") == f"{key}\n"
    campaign = (await cli.json("campaigns", "create", "--name", "a"))["id"]
    assert (await cli.json("keys", "update", key, "--campaign", campaign))["campaigns"] == [campaign]
    assert (await cli.json("keys", "update", key, "--campaign", "none"))["campaigns"] is None


async def test_a_source_is_blocked_shown_and_free_again(cli: Cli) -> None:
    made = await cli.done(
        *("blocks", "add", "network", "2001:db8::1", "--reason", "made-up codes", "--ttl-s", "60"),
        *("--evidence", '{"unknown": 9}'),
    )
    assert made == "blk_1\n"
    assert await cli.done("blocks", "add", "user", "ann", "--allow", "--reason", "ours") == "blk_2\n"
    shown = await cli.json("blocks", "show", "blk_1")
    assert (shown["subject"], shown["evidence"], shown["actor"]) == ("2001:db8::/64", {"unknown": 9}, "cli")
    (found,) = await cli.json("blocks", "list", "--kind", "network", "--subject", "2001:db8::2")
    assert found == shown
    assert await cli.done("blocks", "remove", "blk_1") == "blk_1\n"
    assert [one["action"] for one in await cli.json("blocks", "list", "--state", "active")] == ["allow"]


async def test_a_campaign_is_created_shown_and_led_to_its_end(cli: Cli, redis: Redis) -> None:
    value = ("--kind", "single", "--amount", "2500", "--currency", "EUR")
    limits = ("--stock", "10", "--per-user-limit", "1", "--ends-at", "2090-01-01T00:00:00+01:00")
    created = await cli.done("campaigns", "create", "--name", "Sale", *value, *limits, "--active")
    campaign = created.strip()
    shown = await cli.json("campaigns", "show", campaign)
    assert shown["state"] == "active"
    assert shown["ends_at"] == "2089-12-31T23:00:00.000Z"
    assert (shown["amount"], shown["currency"], shown["stock"]) == (2500, "EUR", 10)
    assert "Sale" in await cli.done("campaigns", "show", campaign)
    assert await cli.json("campaigns", "list") == [shown]
    assert shown.pop("numbers")["stock_left"] == 10
    assert campaign in await cli.done("campaigns", "list")

    for command, state in (("pause", b"paused"), ("resume", b"active")):
        assert await cli.done("campaigns", command, campaign) == f"{campaign}\n"
        assert await redis.hget(keys.campaign(0, campaign), "state") == state
    changed = await cli.json(
        "campaigns", "update", campaign, "--stock", "none", "--ends-at", "none", "--name", "none"
    )
    assert changed == shown | {"stock": None, "ends_at": None, "name": "none"}
    await cli.done("campaigns", "end", campaign, "--yes")
    assert "has ended" in await cli.refused("campaigns", "activate", campaign)
    assert "has ended" in await cli.refused("codes", "mint", campaign, "--count", "1")


async def test_the_card_of_a_campaign_comes_from_a_file(cli: Cli, tmp_path: Path) -> None:
    card: dict[str, Any] = {"brand": "Northwind", "texts": {"zh": {"title": "礼物"}}}
    file, broken = tmp_path / "card.json", tmp_path / "broken.json"
    file.write_bytes(orjson.dumps(card))
    broken.write_bytes(orjson.dumps(card | {"accent": "pink"}))
    created = await cli.json("campaigns", "create", "--name", "Sale", "--card", str(file))
    assert created["card"] == card
    update = ("campaigns", "update", created["id"], "--card")
    assert "accent" in await cli.refused(*update, str(broken))
    assert "cannot be read" in await cli.refused(*update, str(tmp_path / "missing.json"))
    assert (await cli.json("campaigns", "show", created["id"]))["card"] == card
    assert (await cli.json(*update, "none"))["card"] is None


async def test_codes_minted_are_codes_exported(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    status, minted, err = await cli("codes", "mint", campaign, "--count", "70000", "--prefix", "vip")
    assert status == 0
    assert "70,000 codes in base32-16" in err
    assert "1 in 2^" in err
    rows = list(csv.DictReader(minted.splitlines()))
    assert [row["serial"] for row in rows] == [str(serial) for serial in range(70_000)]
    assert all(row["code"].startswith("VIP-") for row in rows)
    assert await cli.done("codes", "export", "0") == minted

    file = cli.settings.data_dir / "codes.csv"
    assert await cli.done("codes", "export", "0", "--out", str(file)) == ""
    assert file.read_text() == minted
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    error = await cli.refused("codes", "mint", campaign, "--count", "5", "--out", str(file))
    assert "--force" in error
    assert "--force" in await cli.refused("codes", "export", "0", "--out", str(file))
    assert file.read_text() == minted
    batch = await cli.json("codes", "mint", campaign, "--count", "5", "--out", str(file), "--force")
    assert (batch["id"], batch["count"]) == (1, 5)  # what was refused has minted nothing
    assert len(file.read_text().splitlines()) == 6
    assert [path.name for path in cli.settings.data_dir.iterdir()] == ["codes.csv"]


async def test_an_export_is_on_record_with_who_and_where_to(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    file = cli.settings.data_dir / "codes.csv"
    await cli.done("codes", "mint", campaign, "--count", "70000", "--out", str(file))
    await cli.done("codes", "export", "0")
    assert (await cli("codes", "export", "0", "--out", "/dev/full"))[0] == 1
    found = await cli.json("audit-log", "--act", "export", "--subject", "batch:0")
    assert [(act["actor"], act["details"]["out"], act["outcome"]) for act in found] == [
        ("cli", "/dev/full", "aborted"),
        ("cli", "-", "complete"),
        ("cli", str(file), "complete"),
    ]
    assert all(act["details"]["count"] == 70_000 and act["details"]["os_user"] for act in found)
    assert len((await cli.done("audit-log", "--limit", "2")).splitlines()) == 2
    older = await cli.json("audit-log", "--after", str(found[-1]["id"]))
    assert [act["act"] for act in older] == ["create_campaign"]


async def test_a_batch_is_voided_and_made_good_again(cli: Cli, redis: Redis) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    await cli.done("codes", "mint", campaign, "--count", "10", "--out", "/dev/null")
    assert await cli.done("codes", "void", "--batch", "0", "--reason", "leaked", "--yes") == "void_1\n"
    good = await cli.json("codes", "unvoid", "--batch", "0", "--serials", "2-4", "--reason", "not these")
    assert (good["status"], good["first_serial"], good["last_serial"]) == ("unvoided", 2, 4)
    one = await cli.json("codes", "void", "--batch", "0", "--serials", "3", "--reason", "this one", "--yes")
    assert (one["status"], one["first_serial"], one["last_serial"], one["actor"]) == ("voided", 3, 3, "cli")
    worker = ConfigurationCache(redis)
    await worker.refresh()
    assert [serial for serial in range(10) if not worker.is_void(0, serial)] == [2, 4]


async def test_a_device_is_written_to_and_not_replaced(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    await cli.done("codes", "mint", campaign, "--count", "5", "--out", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116 - what a path leads to


async def test_a_refused_mint_leaves_no_file(cli: Cli) -> None:
    file = cli.settings.data_dir / "codes.csv"
    await cli.refused("codes", "mint", "cmp_9", "--count", "5", "--out", str(file))
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    await cli.refused(
        "codes", "mint", campaign, "--count", "1000000", "--format", "digits-15", "--out", str(file)
    )
    assert "No such file" in await cli.refused(
        "codes", "mint", campaign, "--count", "5", "--out", str(file / "below")
    )
    assert list(cli.settings.data_dir.iterdir()) == []
    assert "no such batch" in (await cli.refused("codes", "export", "0")).lower()


async def test_a_disk_that_is_full_tells_how_to_get_the_codes(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    _, _, err = await cli("codes", "mint", campaign, "--count", "70000", "--out", "/dev/full")
    assert "redeem codes export 0" in err
    assert "Traceback" not in err


async def test_minting_in_two_processes_at_once_never_overlaps(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    outputs = await asyncio.gather(*(cli.done("codes", "mint", campaign, "--count", "500") for _ in range(4)))
    codes = [row["code"] for out in outputs for row in csv.DictReader(out.splitlines())]
    assert len(set(codes)) == len(codes) == 2000


async def test_a_reader_that_has_had_enough_is_no_error(cli: Cli) -> None:
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("codes", "mint", campaign, "--count", "1000000"),
        env=environment(cli.settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if process.stdout is None or process.stderr is None:
        raise RuntimeError
    assert await process.stdout.readline() == b"code,serial\n"
    process.stdout._transport.close()  # type: ignore[attr-defined] # a stream reader has no close
    err = (await process.stderr.read()).decode()
    assert await process.wait() == 0
    assert err.count("\n") == 1
    assert err.startswith("Batch 0:")


async def test_rotating_adds_a_key_that_new_batches_use(cli: Cli) -> None:
    file = cli.settings.data_dir / "mint-keys"
    file.touch(mode=0o600)
    file.write_text(f"k1 {'5a' * 32}\n")
    cli.settings = type(cli.settings)(
        redis_url=cli.settings.redis_url, database_url=cli.settings.database_url, data_dir=file.parent
    )
    campaign = (await cli.done("campaigns", "create", "--name", "Sale")).strip()
    minted = await cli.done("codes", "mint", campaign, "--count", "5")
    assert await cli.done("codes", "rotate-key") == "k2\n"
    assert await cli.done("codes", "export", "0") == minted
    batch = await cli.json("codes", "mint", campaign, "--count", "5", "--out", str(file.parent / "b.csv"))
    assert batch["mint_key"] == "k2"
    assert "REDEEM_MINT_KEYS" in await cli.refused("codes", "rotate-key", REDEEM_MINT_KEYS=f"k1:{'5a' * 32}")


@pytest.mark.parametrize(
    "arguments",
    [
        "keys create --name a --scopes root",
        "blocks add network 203.0.113.0/99 --reason a",
        "blocks remove blk_9",
        "keys create --name a --scopes ,",
        "keys revoke key_9 --yes",
        "keys update key_9 --signing required",
        "campaigns create --name a --kind multi",
        "campaigns create --name a --amount 5",
        "campaigns create --name a --stock -1",
        "campaigns create --name a --ends-at 2030-01-01T00:00:00",
        "campaigns show cmp_9",
        "campaigns update cmp_9 --state active",
        "campaigns pause cmp_9",
        "codes mint cmp_9 --count 1",
        "codes mint cmp_9 --count 0",
        "codes mint cmp_9 --count 1 --format hex",
        "codes mint cmp_9 --count 1 --prefix !",
        "codes export 9",
        "codes void --batch 9 --reason leaked --yes",
    ],
)
async def test_what_is_refused_ends_with_1_and_one_line(cli: Cli, arguments: str) -> None:
    assert (await cli.refused(*arguments.split())).startswith("Error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "keys",
        "keys create",
        "keys create --name a",
        "keys update key_9",
        "keys create --name a --scopes read --nonsense",
        "campaigns create",
        "campaigns create --name a --amount 1.5",
        "campaigns update cmp_1",
        "campaigns update cmp_1 --stock many",
        "codes mint cmp_1",
        "codes mint cmp_1 --count x",
        "codes mint cmp_1 --count 1 --json",
        "codes export x",
        "codes void --batch 0",
        "codes void --reason leaked",
        "codes void --batch 0 --serials 4- --reason leaked",
        "audit-log --limit 0",
    ],
)
async def test_wrong_usage_ends_with_2(cli: Cli, arguments: str) -> None:
    status, out, err = await cli(*arguments.split())
    assert (status, out) == (2, "")
    assert "Traceback" not in err


async def test_without_an_engine_the_line_says_how_to_start_one(cli: Cli) -> None:
    line = await cli.refused("keys", "list", REDEEM_REDIS_URL="", REDEEM_DATABASE_URL="")
    assert f"no engine runs on {cli.settings.data_dir}" in line
    assert "redeem up" in line


async def test_bad_settings_and_unreachable_servers_are_one_line(cli: Cli) -> None:
    away = "postgresql://postgres:hunter2@/redeem?host=/nonexistent"
    for others in (
        {"REDEEM_NONSENSE": "1"},
        {"REDEEM_PORT": "x"},
        {"REDEEM_REDIS_URL": "nonsense"},
        {"REDEEM_DATABASE_URL": "nonsense"},
        {"REDEEM_DATABASE_URL": away},
    ):
        assert "hunter2" not in await cli.refused("keys", "list", **others)


async def test_a_change_that_redis_cannot_take_is_made_and_reported(cli: Cli) -> None:
    status, out, err = await cli(
        "keys", "create", "--name", "a", "--scopes", "read", REDEEM_REDIS_URL="unix:///nonexistent.sock"
    )
    assert status == 0
    assert out.startswith("rk_")
    assert "Saved" in err
    assert len(await cli.json("keys", "list")) == 1
