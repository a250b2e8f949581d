"""Decides whether a call waits for the clients that the call before it has answered.

A call has a fixed price, the wait for the disk included: sixteen attempts take hardly longer than eight. But
those who were just answered come too late for a call that is sent at once. So sixteen clients stay two
groups, one in a call and one in the queue. Waiting until all are back pays if few clients return at once. It
does not pay if they are many, as Redis has nothing to do meanwhile, or if they do not return. So both ways
are tried in turns, and the faster one is kept.
"""

from __future__ import annotations

from typing import Final

SETTLING_CALLS: Final = 4  # calls after a change of the way that still have batches of the way before
BLOCK_CALLS: Final = 32
GAVE_UP_MAX: Final = 8  # in one block
INTERVAL_MIN: Final = 4  # blocks between two tries of the other way
INTERVAL_MAX: Final = 64
PAYS: Final = 1.05
SAMPLE_MAX: Final = 2.0  # a pause in the load is no measurement


class Gathering:
    """Keeps the faster of two ways: to wait for those who were answered, or to send the next call at once.

    It counts in blocks of calls. Now and then a block goes the other way and is compared with the one before.
    """

    def __init__(self, batch_max: int) -> None:
        self._batch_max = batch_max
        self._waits = False  # the way that is kept
        self._is_trial = False
        self._gain = 1.0  # how many times faster it is to wait, smoothed
        self._pace = 0.0  # seconds for an attempt in the last block of the way that is kept
        self._interval = self._left = INTERVAL_MIN
        self._begin_block()

    def expected(self, answered: int, queued: int) -> int:
        """How many attempts the next call should have, after a reply; 0 if it should be sent at once."""
        together = answered + queued
        return together if self._waits != self._is_trial and 1 < together <= self._batch_max else 0

    def replied(self, attempts: int, now_s: float) -> None:
        """Count a call that has its reply."""
        self._calls += 1
        if self._calls <= SETTLING_CALLS:
            self._began_s = now_s
            return
        self._attempts += attempts
        if self._calls == SETTLING_CALLS + BLOCK_CALLS:
            self._end_block((now_s - self._began_s) / self._attempts)

    def gave_up(self) -> None:
        """Count a call that waited as long as it may, in vain."""
        self._gave_up += 1
        if self._gave_up > GAVE_UP_MAX:
            self._end_block(None)

    def _begin_block(self) -> None:
        self._calls = self._attempts = self._gave_up = 0
        self._began_s = 0.0

    def _end_block(self, pace: float | None) -> None:
        """``pace``: seconds for an attempt; None if those who were waited for did not come."""
        if self._is_trial:
            self._compare(pace)
        elif pace is None:
            self._keep(waits=False)
        else:
            self._pace = pace
            self._left -= 1
            self._is_trial = self._left == 0
        self._begin_block()

    def _compare(self, pace: float | None) -> None:
        at_once, waiting = (pace, self._pace) if self._waits else (self._pace, pace)
        sample = at_once / waiting if at_once and waiting else 1 / SAMPLE_MAX
        self._gain += (min(max(sample, 1 / SAMPLE_MAX), SAMPLE_MAX) - self._gain) / 2
        self._keep(waits=self._gain > (1 if self._waits else PAYS))

    def _keep(self, *, waits: bool) -> None:
        self._interval = INTERVAL_MIN if waits != self._waits else min(2 * self._interval, INTERVAL_MAX)
        self._waits, self._is_trial, self._left = waits, False, self._interval
