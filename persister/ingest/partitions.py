"""The ledger's tables, one for each month (UTC) of the stream's time: there before they are written to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "ledger")
AHEAD_MS: Final = 7 * 24 * 3600 * 1000
"""How long before a month begins it gets its table, so that nobody waits for that at midnight."""
_LAST: Final = datetime(9999, 12, 1, tzinfo=UTC)


class MonthPartitions:
    """What a writer knows of the tables there are."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._since_ms = self._until_ms = 0.0

    async def ensure(self, times_ms: Sequence[int]) -> None:
        """Have a table for each of these moments (ascending), and for what comes soon behind the last."""
        first, last, soon = times_ms[0], times_ms[-1], times_ms[-1] + AHEAD_MS
        if self._since_ms <= first and soon < self._until_ms:
            return
        for begin in sorted({month_of(ms) for ms in (*times_ms, soon)}):
            await self._connection.execute(_SQL["create_month"], _ms(begin))
        self._since_ms = _ms(month_of(last))
        self._until_ms = end_ms(month_of(soon))


def month_of(ms: int) -> datetime:
    """The month, by its beginning, of a moment in ms since the epoch; the last one goes on for ever."""
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return _LAST
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def end_ms(month: datetime) -> float:
    """When the next one begins; of the last, never."""
    return float("inf") if month == _LAST else _ms((month + timedelta(days=32)).replace(day=1))


def _ms(begin: datetime) -> int:
    return int(begin.timestamp()) * 1000
