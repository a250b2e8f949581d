"""Decides whether a call waits for the clients that the call before it has answered.

A call has a fixed price, the wait for the disk included: sixteen attempts take hardly longer than eight. But
those who were just answered come too late for a call that is sent at once. So sixteen clients stay two
groups, one in a call and one in the queue. Waiting until all are back pays if few clients return at once. It
does not pay if they are many, as Redis has nothing to do meanwhile, or if they do not return. So both ways
are tried in turns. What counts is how long an attempt takes, from its arrival to its reply: that is right for
clients that wait for each answer, and for those that come whatever became of others.
"""

from __future__ import annotations

from typing import Final

SETTLING_CALLS: Final = 4  # calls after a change of the way that still have attempts of the way before
BLOCK_CALLS: Final = 32
GAVE_UP_MAX: Final = 8  # in one block
INTERVAL_MIN: Final = 4  # blocks between two tries of the other way
INTERVAL_MAX_WAITING: Final = 16
INTERVAL_MAX_AT_ONCE: Final = 128  # fewer than one attempt of a hundred waits for a try
PAYS: Final = 1.1
SAMPLE_MAX: Final = 2.0
SMOOTHING: Final = 4  # a sample counts one in so many


class Gathering:
    """Keeps the faster of two ways: to wait for those who were answered, or to send the next call at once.

    It counts in blocks of calls. Now and then a block goes the other way and is compared with the one before.
    """

    def __init__(self, batch_max: int) -> None:
        self._batch_max = batch_max
        self._waits = False  # the way that is kept
        self._is_trial = False
        self._gain = 1.0  # how many times less an attempt takes if calls wait, smoothed
        self._kept_s = 0.0  # what an attempt took in the last block of the way that is kept
        self._interval = self._left = INTERVAL_MIN
        self._begin_block()

    def expected(self, answered: int, queued: int) -> int:
        """How many attempts the next call should have, after a reply; 0 if it should be sent at once."""
        together = answered + queued
        return together if self._waits != self._is_trial and 1 < together <= self._batch_max else 0

    def replied(self, attempts: int, seconds: float) -> None:
        """Count a call that has its reply. ``seconds``: those of its attempts since they came, added up."""
        self._calls += 1
        if self._calls <= SETTLING_CALLS:
            return
        self._attempts += attempts
        self._seconds += seconds
        if self._calls == SETTLING_CALLS + BLOCK_CALLS:
            self._end_block(self._seconds / self._attempts)

    def gave_up(self) -> None:
        """Count a call that waited as long as it may, in vain."""
        self._gave_up += 1
        if self._gave_up > GAVE_UP_MAX:
            self._end_block(None)

    def _begin_block(self) -> None:
        self._calls = self._attempts = self._gave_up = 0
        self._seconds = 0.0

    def _end_block(self, attempt_s: float | None) -> None:
        """``attempt_s``: what an attempt took; None if those who were waited for did not come."""
        if self._is_trial:
            self._compare(attempt_s)
        elif attempt_s is None:
            self._keep(waits=False)
        else:
            self._kept_s = attempt_s
            self._left -= 1
            self._is_trial = self._left == 0
        self._begin_block()

    def _compare(self, trial_s: float | None) -> None:
        at_once, waiting = (trial_s, self._kept_s) if self._waits else (self._kept_s, trial_s)
        sample = at_once / waiting if at_once and waiting else 1 / SAMPLE_MAX
        self._gain += (min(max(sample, 1 / SAMPLE_MAX), SAMPLE_MAX) - self._gain) / SMOOTHING
        self._keep(waits=self._gain > (1 if self._waits else PAYS))

    def _keep(self, *, waits: bool) -> None:
        if waits != self._waits:
            self._waits, self._interval = waits, INTERVAL_MIN
        else:
            longest = INTERVAL_MAX_WAITING if waits else INTERVAL_MAX_AT_ONCE
            self._interval = min(2 * self._interval, longest)
        self._is_trial, self._left = False, self._interval
