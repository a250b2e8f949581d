"""Notes what a worker cannot share with the others at present, and why."""

from __future__ import annotations

import logging
from typing import Final

_log = logging.getLogger(__name__)
_PIPELINE: Final = " caused error: "
"""Before it, redis-py has the whole command of a pipeline: with users and addresses."""


class NotShared:
    """What is not shared. ``reasons``: why, by what it is."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def begins(self, what: str, error: Exception) -> None:
        """Note a failure. It is logged when it begins, not each time."""
        reason = str(error).rpartition(_PIPELINE)[2].strip("(',)") or type(error).__name__
        if what not in self.reasons:
            _log.warning("%s are not shared with other workers", what, extra={"reason": reason})
        self.reasons[what] = reason

    def ends(self, what: str) -> None:
        """Note that it is shared."""
        self.reasons.pop(what, None)
