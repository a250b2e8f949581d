"""Clocks that jump, and a million addresses: guessers are found, others are not, and memory stays bounded."""

from __future__ import annotations

import time

import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from engine.guard.asked import AskedSources
from engine.guard.labels import OK, UNKNOWN, Tried
from engine.guard.limits import Limit, LimitTable
from engine.guard.rules import SCORE
from engine.guard.suspects import Suspects
from engine.settings import Settings

KEY, ADDRESS = "key_page", "203.0.113.7"
NOW_S = 1_800_000_000.0
JUMPS_S = (-365 * 86_400, -86_400, -3600, -1, 1, 3600, 86_400, 365 * 86_400)


def is_blocked(suspects: Suspects, label: int, code: int, now_s: float) -> bool:
    found = suspects.hear(Tried(KEY, "", ADDRESS, "", label, code), now_s)
    return any(one.rule == SCORE and one.blocks for one in found)


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_after_a_jump_of_the_clock_a_guesser_is_found_within_eight_codes(jump_s: int) -> None:
    suspects = Suspects(Settings())
    assert not any(is_blocked(suspects, UNKNOWN, number, NOW_S + number) for number in range(7))
    then_s = NOW_S + jump_s
    assert any(is_blocked(suspects, UNKNOWN, 100 + number, then_s + number) for number in range(8))


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_jump_of_the_clock_blocks_nobody_who_succeeds_in_between(jump_s: int) -> None:
    suspects = Suspects(Settings())
    for number in range(60):  # two mistakes, then a success; the clock jumps to and fro
        at_s = NOW_S + number + (jump_s if number // 6 % 2 else 0)
        assert not is_blocked(suspects, OK if number % 3 == 2 else UNKNOWN, number, at_s)


def test_nobody_is_asked_for_challenges_for_ever_after_a_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, source = AskedSources(10), (KEY, "network", ADDRESS)
    asked.ask(source, time.time() + 600)
    assert asked.is_asked(KEY, "", ADDRESS)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 601)
    assert not asked.is_asked(KEY, "", ADDRESS)
    monkeypatch.setattr(time, "time", lambda: now_s - 86_400)
    assert not asked.is_asked(KEY, "", ADDRESS)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_stays_bounded_under_an_attack_from_a_million_addresses() -> None:
    settings, process = Settings(), psutil.Process()
    most = settings.guard_sources_max
    suspects, limit, asked = Suspects(settings), LimitTable(Limit(10, 10), most), AskedSources(most)
    before, full = process.memory_info().rss, 0
    for number in range(1_000_000):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        suspects.hear(Tried(KEY, "", address, "", UNKNOWN, number), NOW_S + number / 1000)
        limit.admit_now(KEY, "", "", address)
        asked.ask((KEY, "network", address), time.time() + 600)
        if number == 2 * most:
            full = process.memory_info().rss - before
    assert max(len(suspects), len(limit), len(asked)) <= most
    assert process.memory_info().rss - before < 1.5 * full
