"""Judges each attempt to redeem, hold or check a code, before the code is looked up."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from engine.api.outcomes import Refused
from engine.guard.addresses import one_spelling, read_source
from engine.guard.limits import Limit, LimitTable
from engine.observability.metrics import GUARD_OBSERVED

if TYPE_CHECKING:
    from engine.api.checks import Client
    from engine.guard.block_table import BlockTable
    from engine.guard.limits import Source
    from engine.settings import Settings
    from engine.store.configuration import CachedBlock, CachedKey

BLOCKED: Final = "blocked"
TOO_MANY: Final = "too_many_attempts"
ATTEMPTS: Final = "attempts"
CHECKS: Final = "checks"


class Guard:
    """Judges the attempts of one worker.

    Attributes:
        watches: whether there is anything to judge by. While it is False, ``judge`` need not be called.
        tables: what sources have tried, by the name of the limit.
    """

    def __init__(self, settings: Settings, blocks: BlockTable) -> None:
        self._blocks = blocks
        limits = {
            ATTEMPTS: Limit(settings.guard_attempts_per_min, settings.guard_attempts_burst),
            CHECKS: Limit(settings.guard_checks_per_min, settings.guard_checks_burst),
        }
        self.tables = {
            name: LimitTable(limit, settings.guard_sources_max)
            for name, limit in limits.items()
            if limit.per_minute
        }
        self._of_checks = list(self.tables.items())
        self._of_attempts = [(name, table) for name, table in self._of_checks if name == ATTEMPTS]
        self._enforces = settings.guard_limits_mode == "enforce"
        self.watches = self._has_blocks = False
        self._update_watches()
        blocks.on_change = self._update_watches

    def _update_watches(self) -> None:
        self._has_blocks = len(self._blocks) > 0
        self.watches = self._has_blocks or bool(self.tables)

    def judge(
        self, api_key: CachedKey, user: str, client: Client | None, *, units: int = 1, is_check: bool = False
    ) -> Refused | None:
        """Return the refusal of an attempt on ``units`` codes; None if it may go on, and then it is charged.

        Where limits are only observed, what they would refuse is counted, goes on and is not charged: so the
        count is that of the refusals which enforcing would make.

        The source is what the caller says about its customer. The address of the caller itself is that of a
        merchant's backend, so it does not count. Of a browser key it is that of the customer, and ``client``
        has it; what the page says of its user is not limited, or anybody could use up the limit of others.
        """
        if self._has_blocks and (verdict := self._verdict(api_key, user, client)):
            if verdict.action == "allow":
                return None
            return Refused(BLOCKED, f"The {verdict.kind} is blocked: blk_{verdict.id}.")
        tables = self._of_checks if is_check else self._of_attempts
        if not tables:
            return None
        sources = _sources(api_key.id, user if api_key.origins is None else "", client)
        now = time.monotonic()
        for name, table in tables:
            wait_s = table.wait_s(sources, units, now)
            if wait_s:
                if self._enforces:
                    return Refused(TOO_MANY, retry_after_s=math.ceil(wait_s))
                GUARD_OBSERVED.labels(name).inc()
                return None
        for _, table in tables:
            table.charge(sources, units, now)
        return None

    def _verdict(self, api_key: CachedKey, user: str, client: Client | None) -> CachedBlock | None:
        source = None if client is None or client.ip is None else read_source(client.ip)
        device = None if client is None else client.device
        return self._blocks.verdict(api_key.id, user, source, device)


def _sources(key: str, user: str, client: Client | None) -> list[Source]:
    sources = [(key, "user", user)] if user else []
    if client is not None:
        if client.ip is not None:
            sources.append((key, "network", one_spelling(client.ip)))
        if client.device is not None:
            sources.append((key, "device", client.device))
    return sources
