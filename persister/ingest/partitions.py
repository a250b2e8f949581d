"""Creates the ledger's partitions, one for each month (UTC) of the stream's time, before rows need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "ledger")
AHEAD_MS: Final = 7 * 24 * 3600 * 1000
"""A month's partition is created this long before the month begins, so that no write waits for it."""
_LAST: Final = datetime(9999, 12, 1, tzinfo=UTC)


class MonthPartitions:
    """Remembers which partitions exist, for one writer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._since_ms = self._until_ms = 0.0

    async def ensure(self, times_ms: Sequence[int]) -> None:
        """Create the partitions for these times (ms, ascending) and for ``AHEAD_MS`` after the last."""
        first, last, soon = times_ms[0], times_ms[-1], times_ms[-1] + AHEAD_MS
        if self._since_ms <= first and soon < self._until_ms:
            return
        for begin in sorted({month_of(ms) for ms in (*times_ms, soon)}):
            await self._connection.execute(_SQL["create_month"], _ms(begin))
        self._since_ms = _ms(month_of(last))
        self._until_ms = end_ms(month_of(soon))


def month_of(ms: int) -> datetime:
    """First moment of the month of ``ms`` (since the epoch). December 9999 never ends."""
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return _LAST
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def end_ms(month: datetime) -> float:
    """When the next month begins, in ms since the epoch; infinity for December 9999."""
    return float("inf") if month == _LAST else _ms((month + timedelta(days=32)).replace(day=1))


def _ms(begin: datetime) -> int:
    return int(begin.timestamp()) * 1000
