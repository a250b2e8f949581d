"""A call waits for those who were just answered only while that makes attempts faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from engine.store.gathering import (
    BLOCK_CALLS,
    GAVE_UP_MAX,
    INTERVAL_MAX_AT_ONCE,
    INTERVAL_MAX_WAITING,
    SETTLING_CALLS,
    Gathering,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_MAX: Final = 64
ATTEMPT_S: Final = 10e-6  # of a call
BLOCK: Final = SETTLING_CALLS + BLOCK_CALLS
CALLS: Final = 10 * (INTERVAL_MAX_AT_ONCE + 1) * BLOCK
SELDOM: Final = 1.5 / INTERVAL_MAX_AT_ONCE  # the share of calls that go another way than most
OFTEN: Final = 1 - 1.5 / INTERVAL_MAX_WAITING


def share_of_waits(call: Callable[[], bool]) -> float:
    """Make many calls, then as many again. Returns which share of these waited."""
    for _ in range(CALLS):
        call()
    return sum(call() for _ in range(CALLS)) / CALLS


class ClosedLoop:
    """Clients that send their next attempt when they have an answer, one after the other.

    A call has a fixed price, and one for each attempt.
    """

    def __init__(self, count: int, *, call_s: float, return_s: float, returns: bool = True) -> None:
        self.gathering = Gathering(BATCH_MAX)
        self.count, self.call_s, self.return_s, self.returns = count, call_s, return_s, returns
        self.answered = count // 2 or 1
        self.seconds = 0.0

    def call(self) -> bool:
        """Give one call its reply; return whether the next one waits for all clients."""
        self.gathering.replied(self.answered, self.seconds)
        queued = self.count - self.answered
        waits = self.gathering.expected(self.answered, queued) > 0
        if waits and not self.returns:
            self.gathering.gave_up()
        if waits and self.returns:
            attempts = self.count
            queue_s = sum(number * self.return_s for number in range(attempts))
        else:
            attempts = queued or self.answered
            before_s = self.call_s + self.answered * ATTEMPT_S
            queue_s = sum(max(0.0, before_s - number * self.return_s) for number in range(attempts))
        self.answered = attempts
        self.seconds = queue_s + attempts * (self.call_s + attempts * ATTEMPT_S)
        return waits


class OpenLoop:
    """Attempts that come at a constant rate, whatever became of those before them."""

    def __init__(self, *, call_s: float, every_s: float) -> None:
        self.gathering = Gathering(BATCH_MAX)
        self.call_s, self.every_s = call_s, every_s
        self.attempts, self.seconds = 1, call_s

    def call(self) -> bool:
        self.gathering.replied(self.attempts, self.seconds)
        call_s = self.call_s + self.attempts * ATTEMPT_S
        queued = int(call_s / self.every_s)
        expected = self.gathering.expected(self.attempts, queued)
        self.attempts = max(expected, queued, 1)
        queue_s = sum(number * self.every_s for number in range(self.attempts))
        self.seconds = queue_s + self.attempts * (self.call_s + self.attempts * ATTEMPT_S)
        return expected > 0


def test_few_clients_that_return_at_once_are_waited_for() -> None:
    assert share_of_waits(ClosedLoop(16, call_s=500e-6, return_s=10e-6).call) > OFTEN


def test_nobody_waits_where_a_return_takes_longer_than_a_call() -> None:
    assert share_of_waits(ClosedLoop(16, call_s=200e-6, return_s=100e-6).call) < SELDOM


def test_nobody_waits_for_clients_that_do_not_return() -> None:
    waits = share_of_waits(ClosedLoop(16, call_s=500e-6, return_s=10e-6, returns=False).call) * CALLS
    assert 0 < waits <= (GAVE_UP_MAX + 1) * (CALLS / BLOCK / INTERVAL_MAX_AT_ONCE + 1)


@pytest.mark.parametrize("every_s", [50e-6, 100e-6, 300e-6])
def test_nobody_waits_for_those_who_come_anyway(every_s: float) -> None:
    assert share_of_waits(OpenLoop(call_s=500e-6, every_s=every_s).call) < SELDOM


@pytest.mark.parametrize("count", [1, BATCH_MAX + 1])
def test_nobody_waits_alone_or_for_more_than_one_call_can_take(count: int) -> None:
    assert share_of_waits(ClosedLoop(count, call_s=500e-6, return_s=1e-6).call) == 0


def test_the_way_changes_with_the_clients() -> None:
    clients = ClosedLoop(16, call_s=500e-6, return_s=10e-6)
    assert share_of_waits(clients.call) > OFTEN
    clients.returns = False
    assert share_of_waits(clients.call) < SELDOM
    clients.returns = True
    assert share_of_waits(clients.call) > OFTEN
