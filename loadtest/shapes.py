"""Load shapes for locust: the number of clients at each moment.

A shape gives the share of the peak at a time. The number of clients follows from the rate of one client.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from locust import LoadTestShape

if TYPE_CHECKING:
    from loadtest.scenarios import Plan

RAMP_SHARE: Final = 0.1
QUIET_S: Final = 1.0
WAVES: Final = 4
NIGHT: Final = 0.1


class Shape(LoadTestShape):
    """A share of the peak over time. The locustfile sets ``plan``."""

    abstract = True
    plan: ClassVar[Plan]

    @abstractmethod
    def share(self, at: float) -> float:
        """Return the share of the peak at this share of the run; both from 0 to 1."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of clients and the spawn rate; None at the end. Locust calls it every second."""
        elapsed_s: float = self.get_run_time()  # type: ignore[no-untyped-call] # locust's
        if elapsed_s >= self.plan.seconds:
            return None
        peak = self.plan.peak_per_s / self.plan.each_per_s
        clients = max(1, math.ceil(peak * self.share(elapsed_s / self.plan.seconds)))
        return clients, max(1.0, peak)  # reach the number within a second


class Steady(Shape):
    """Up to the peak within the first tenth, then there until the end."""

    def share(self, at: float) -> float:
        """Of the peak."""
        return min(1.0, 0.25 + at / RAMP_SHARE)


class Opening(Shape):
    """Almost nobody, then suddenly everybody."""

    def share(self, at: float) -> float:
        """Of the peak."""
        return 0.0 if at * self.plan.seconds < QUIET_S else 1.0


class Waves(Shape):
    """Up to the peak and down again, several times."""

    def share(self, at: float) -> float:
        """Of the peak."""
        return 1.0 if (at * WAVES) % 1.0 < 1 / 2 else 1 / 4


class Day(Shape):
    """Night, a peak at noon, night."""

    def share(self, at: float) -> float:
        """Of the peak."""
        return NIGHT + (1.0 - NIGHT) * math.sin(math.pi * at) ** 2
