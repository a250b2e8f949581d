"""The rules of the guard, and the mode of each: the setting's, or another that ops chose while running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.settings import Settings

ATTEMPTS: Final = "attempts"
CHECKS: Final = "checks"
REQUESTS: Final = "requests"  # of one address with one browser key
SCORE: Final = "score"
SLOW_DRIP: Final = "slow_drip"
LEAKED_LIST: Final = "leaked_list"
SERVER_KEY: Final = "server_key"
FLOOD: Final = "flood"
LIMITS: Final = (ATTEMPTS, CHECKS, REQUESTS)
BEHAVIOUR: Final = (SCORE, SLOW_DRIP, LEAKED_LIST, SERVER_KEY, FLOOD)
NAMES: Final = (*LIMITS, *BEHAVIOUR)
PROXY_NOT_CONFIGURED: Final = "proxy_not_configured"  # no mode: it only keeps other rules from a mistake
OFF: Final = "off"
OBSERVE: Final = "observe"
CHALLENGE: Final = "challenge"
ENFORCE: Final = "enforce"


class Rules:
    """The modes of all rules in one process.

    Attributes:
        defaults: the modes of the settings, by the name of the rule.
        modes: the modes in force.
    """

    def __init__(self, settings: Settings) -> None:
        self.defaults = default_modes(settings)
        self.modes = dict(self.defaults)
        self._on_change: list[Callable[[], None]] = []

    @property
    def watches_behaviour(self) -> bool:
        """Whether a rule looks at what became of attempts."""
        return any(self.modes[name] != OFF for name in BEHAVIOUR)

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this after each change of a mode."""
        self._on_change.append(call)

    def take(self, name: str, mode: str | None) -> None:
        """Set the mode of a rule; None for that of the settings. A rule of a later version is passed over."""
        if name not in self.defaults:
            return
        self.modes[name] = self.defaults[name] if mode is None else mode
        for call in self._on_change:
            call()


def default_modes(settings: Settings) -> dict[str, str]:
    """Return the modes that the settings give, by the name of the rule. A limit without a figure is off."""
    figures = {name: getattr(settings, f"guard_{name}_per_min") for name in LIMITS}
    limits = {name: settings.guard_limits_mode if figure else OFF for name, figure in figures.items()}
    return limits | {name: getattr(settings, f"guard_{name}_mode") for name in BEHAVIOUR}
