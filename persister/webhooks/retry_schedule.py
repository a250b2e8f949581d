"""When a failed message is tried again, and when it is given up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from engine.settings import SettingsError, variable

JITTER: Final = 0.2
RETRY_AFTER_S_MAX: Final = 3600.0
"""Longest pause that an endpoint can ask for with Retry-After."""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """Pauses between the attempts of a message, in seconds. N pauses allow N + 1 attempts."""

    pauses_s: tuple[float, ...]

    def pause_s(self, failures: int, retry_after_s: float | None = None) -> float | None:
        """Seconds to wait after ``failures`` (1 or more) failures. None: the last attempt has failed.

        A random part, up to a fifth, is taken off, so that messages that failed together are not retried
        together. ``retry_after_s``, which the endpoint asked for, can make the pause longer.
        """
        if failures > len(self.pauses_s):
            return None
        pause_s = self.pauses_s[failures - 1] * random.uniform(1 - JITTER, 1)  # noqa: S311 - no secret
        return max(pause_s, min(retry_after_s or 0.0, RETRY_AFTER_S_MAX))


def parse_retry_schedule(text: str) -> RetrySchedule:
    """Parse the setting: seconds, separated by commas.

    Raises:
        SettingsError: a part is not a number, is negative or infinite.
    """
    try:
        pauses_s = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        pauses_s = (-1.0,)
    if not all(0 <= pause_s < float("inf") for pause_s in pauses_s):
        raise SettingsError(f"{variable('webhook_retry_s')} must be seconds, separated by commas")
    return RetrySchedule(pauses_s)
