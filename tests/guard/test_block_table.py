from __future__ import annotations

import random
import time
from typing import Any

import pytest

from engine.guard.addresses import parse_address, parse_network
from engine.guard.block_table import BlockTable
from engine.guard.guard import Guard
from engine.settings import Settings
from engine.store.configuration import CachedBlock

KEY = "key_000000000000"


def block(number: int, kind: str, subject: str, **changes: Any) -> CachedBlock:  # noqa: ANN401 - its fields
    fields: dict[str, Any] = {"action": "block", "expires_ms": None, "lifted": False} | changes
    return CachedBlock(id=number, kind=kind, subject=subject, **fields)


def now_ms() -> int:
    return int(time.time() * 1000)


def found(table: BlockTable, ip: str | None = None, user: str = "", device: str | None = None) -> int | None:
    verdict = table.verdict(KEY, user, parse_address(ip) if ip else None, device)
    return None if verdict is None else verdict.id


@pytest.mark.parametrize("seed", range(5))
def test_the_table_finds_what_comparing_with_each_block_finds(seed: int) -> None:
    chance = random.Random(seed)
    table, there = BlockTable(), {}
    for number in range(1, 60):
        subject = f"10.0.{chance.randrange(4)}.{chance.randrange(256)}/{chance.randrange(22, 33)}"
        if chance.random() < 0.5:
            subject = f"2001:db8:{chance.randrange(4)}:{chance.randrange(4)}::/{chance.randrange(44, 65)}"
        there[number] = block(number, "network", str(parse_network(subject)))
        table.take(there[number])
        if chance.random() < 0.4:
            lifted = chance.choice(list(there))
            table.take(block(lifted, "network", there.pop(lifted).subject, lifted=True))
    assert len(table) == len(there)
    for _ in range(400):
        ip = chance.choice(
            [
                f"10.0.{chance.randrange(4)}.{chance.randrange(256)}",
                f"2001:db8:{chance.randrange(4)}:{chance.randrange(4)}::{chance.randrange(9)}",
            ]
        )
        address = parse_address(ip)
        assert address is not None
        fitting = [
            number
            for number, each in there.items()
            if (network := parse_network(each.subject))
            and network.version == address.version
            and address.prefix >> (address.length - network.length) == network.prefix
        ]
        assert (found(table, ip) in fitting) == bool(fitting), (seed, ip)


def test_an_allow_wins_over_every_block() -> None:
    table = BlockTable()
    table.take(block(1, "user", "ann"))
    table.take(block(2, "network", "10.0.0.0/8", action="allow"))
    table.take(block(3, "network", "10.1.0.0/16"))
    verdict = table.verdict(KEY, "ann", parse_address("10.1.2.3"), None)
    assert verdict is not None
    assert verdict.id == 2
    assert found(table, "192.0.2.1", "ann") == 1
    table.take(block(4, "key", KEY, action="allow"))  # what docs/guard.md has ops type for a whole shop
    assert found(table, "192.0.2.1", "ann") == 4


def test_each_kind_of_source_is_found_and_no_other() -> None:
    table = BlockTable()
    table.take(block(1, "user", "ann"))
    table.take(block(2, "device", "d-1"))
    table.take(block(3, "key", KEY))
    assert table.verdict("key_other", "bob", None, "d-2") is None
    assert table.verdict("key_other", "d-1", None, "ann") is None
    assert found(table) == 3


def test_an_expired_block_ends_by_itself_and_leaves_the_table_idle() -> None:
    table = BlockTable()
    guard = Guard(Settings(), table)
    seen = [guard.watches]
    table.take(block(1, "user", "ann", expires_ms=now_ms() - 1))
    seen.append(guard.watches)
    table.take(block(2, "user", "bob", expires_ms=now_ms() + 60_000))
    seen.append(guard.watches)
    table._blocks["user", "bob"][2] = block(2, "user", "bob", expires_ms=now_ms() - 1)
    assert found(table, user="bob") is None
    seen.append(guard.watches)
    assert seen == [False, False, True, False]
    assert not len(table)
