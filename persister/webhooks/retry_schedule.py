"""When a message that was not delivered is tried again, and when it is given up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from engine.settings import SettingsError, variable

JITTER: Final = 0.2
RETRY_AFTER_S_MAX: Final = 3600.0
"""An endpoint may ask for more time, but not to be forgotten."""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The pauses between the tries of a message, in seconds: one try more than there are of them."""

    pauses_s: tuple[float, ...]

    def pause_s(self, failures: int, retry_after_s: float | None = None) -> float | None:
        """How long to wait after so many failures, 1 or more; None: it was the last try.

        Up to a fifth shorter than the rung says, at random, so that messages which failed together do not
        come back together. ``retry_after_s``: what the endpoint asked for, which may make it longer.
        """
        if failures > len(self.pauses_s):
            return None
        pause_s = self.pauses_s[failures - 1] * random.uniform(1 - JITTER, 1)  # noqa: S311 - no secret
        return max(pause_s, min(retry_after_s or 0.0, RETRY_AFTER_S_MAX))


def parse_retry_schedule(text: str) -> RetrySchedule:
    """A schedule as the setting has it: seconds, separated by commas.

    Raises:
        SettingsError: it is none.
    """
    try:
        pauses_s = tuple(float(rung) for rung in text.split(",") if rung.strip())
    except ValueError:
        pauses_s = (-1.0,)
    if not all(0 <= pause_s < float("inf") for pause_s in pauses_s):
        raise SettingsError(f"{variable('webhook_retry_s')} must be seconds, separated by commas")
    return RetrySchedule(pauses_s)
