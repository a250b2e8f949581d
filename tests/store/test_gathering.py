"""A call waits for those who were just answered only while that makes redemptions faster."""

from __future__ import annotations

import pytest

from engine.store.gathering import BLOCK_CALLS, GAVE_UP_MAX, INTERVAL_MAX, SETTLING_CALLS, Gathering

BATCH_MAX = 64
CALLS = 10 * (INTERVAL_MAX + 1) * (SETTLING_CALLS + BLOCK_CALLS)


class Clients:
    """Clients of one worker, with one attempt each. A call has a fixed price, and one for each attempt."""

    def __init__(self, count: int, *, call_s: float, return_s: float, waits_in_vain: bool = False) -> None:
        self.gathering = Gathering(BATCH_MAX)
        self.count, self.call_s, self.return_s = count, call_s, return_s
        self.waits_in_vain = waits_in_vain
        self.now_s = 0.0
        self.answered = count // 2

    def call(self) -> bool:
        """Let one call have its reply; return whether the next one waits for all clients."""
        self.gathering.replied(self.answered, self.now_s)
        queued = self.count - self.answered
        waits = self.gathering.expected(self.answered, queued) > 0
        if waits and self.waits_in_vain:
            self.gathering.gave_up()
        elif waits:
            self.answered = self.count
            self.now_s += self.count * self.return_s
        else:
            self.answered = queued or self.count // 2
        self.now_s += self.call_s + self.answered * 10e-6
        return waits

    def share_of_waits(self) -> float:
        """The share of calls that waited, once both ways are known."""
        for _ in range(CALLS):
            self.call()
        return sum(self.call() for _ in range(CALLS)) / CALLS


def test_few_clients_that_return_at_once_are_waited_for() -> None:
    assert Clients(16, call_s=500e-6, return_s=10e-6).share_of_waits() > 0.95


def test_nobody_waits_where_a_return_takes_longer_than_a_call() -> None:
    assert Clients(16, call_s=200e-6, return_s=50e-6).share_of_waits() < 0.05


def test_nobody_waits_for_clients_that_do_not_return() -> None:
    clients = Clients(16, call_s=500e-6, return_s=10e-6, waits_in_vain=True)
    in_vain = clients.share_of_waits() * CALLS
    blocks = CALLS / (SETTLING_CALLS + BLOCK_CALLS)
    assert 0 < in_vain <= (GAVE_UP_MAX + 1) * (blocks / INTERVAL_MAX + 1)


@pytest.mark.parametrize("count", [1, BATCH_MAX + 1])
def test_nobody_waits_alone_or_for_more_than_one_call_can_take(count: int) -> None:
    assert Clients(count, call_s=500e-6, return_s=1e-6).share_of_waits() == 0


def test_the_way_changes_with_the_clients() -> None:
    clients = Clients(16, call_s=500e-6, return_s=10e-6)
    assert clients.share_of_waits() > 0.95
    clients.waits_in_vain = True
    assert clients.share_of_waits() < 0.05
    clients.waits_in_vain = False
    assert clients.share_of_waits() > 0.95


def test_a_pause_in_the_load_changes_little() -> None:
    clients = Clients(16, call_s=500e-6, return_s=10e-6)
    clients.share_of_waits()
    clients.now_s += 3600
    assert sum(clients.call() for _ in range(CALLS)) / CALLS > 0.9
