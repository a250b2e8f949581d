"""Alerts of the guard: what ops should look at. Raises, lists and acknowledges them.

One cause has one alert within ``guard_alert_interval_s``, whichever worker raises it: the alert counts.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from engine.api.checks import check_choice
from engine.control import audit_log
from engine.control.change import Changed, ControlPlane, keep_answer
from engine.errors import Fault, Refusal
from engine.observability.metrics import GUARD_ALERTS
from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.guard.behaviour import Alarm, Behaviour
    from engine.postgres_types import Row

_log = logging.getLogger(__name__)
STATES: Final = ("open", "acknowledged")
RAISED: Final = "alert.raised"
ACKNOWLEDGED: Final = "alert.acknowledged"
MESSAGE_TYPES: Final = frozenset({RAISED, ACKNOWLEDGED})
"""Types of the messages to webhooks. Only webhooks that name such a type get them."""
_ID: Final = re.compile(r"alr_([1-9][0-9]{0,17})")
_AGAIN_S: Final = 1.0
_SQL: Final = queries(__package__, "alerts")


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert.

    Attributes:
        api_key: it is about this API key; None: about all.
        kind, subject: the source that it is about; None: about none.
        count: how often its cause came until ``last_at``.
    """

    id: int
    rule: str
    cause: str
    summary: str
    api_key: str | None
    kind: str | None
    subject: str | None
    evidence: dict[str, Any]
    count: int
    created_at: datetime
    last_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None

    @property
    def shown_id(self) -> str:
        """The id in the API."""
        return f"alr_{self.id}"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        shown = msgspec.structs.asdict(self) | {"id": self.shown_id}
        for name in ("created_at", "last_at", "acknowledged_at"):
            at = getattr(self, name)
            shown[name] = None if at is None else shown_instant(at)
        return shown


async def raise_alert(plane: ControlPlane, alarm: Alarm, count: int) -> None:
    """Store an alert, or count it in the one of its cause.

    Raises:
        Fault: PostgreSQL cannot be used.
    """
    async with plane.database.transaction() as connection:
        await connection.execute(_SQL["lock"], alarm.cause)
        interval_s = plane.settings.guard_alert_interval_s
        if await connection.fetchval(_SQL["again"], alarm.cause, interval_s, count):
            return
        evidence = orjson.dumps(alarm.evidence).decode()
        about = (alarm.api_key, alarm.kind, alarm.subject)
        number = await connection.fetchval(
            _SQL["insert"], alarm.cause, alarm.rule, alarm.summary, *about, evidence, count
        )
        await connection.execute(_SQL["tell_webhooks"], number, RAISED)
    GUARD_ALERTS.labels(alarm.rule).inc()
    _log.warning(
        "alert of the guard", extra={"rule": alarm.rule, "summary": alarm.summary, "cause": alarm.cause}
    )


async def keep_raising(plane: ControlPlane, behaviour: Behaviour) -> None:
    """Raise what the guard of this worker reports, until cancelled. While PostgreSQL is away, alarms wait."""
    while True:
        await behaviour.has_alarms.wait()
        behaviour.has_alarms.clear()
        latest: dict[str, Alarm] = {}
        counts: Counter[str] = Counter()
        for alarm in behaviour.alarms:
            latest[alarm.cause] = alarm
            counts[alarm.cause] += 1
        behaviour.alarms.clear()
        for cause, alarm in latest.items():
            try:
                await raise_alert(plane, alarm, counts[cause])
            except (Fault, OSError) as error:
                behaviour.alert(alarm, counts[cause])
                _log.warning("alerts cannot be stored", extra={"reason": str(error)})
                await asyncio.sleep(_AGAIN_S)


async def page(plane: ControlPlane, *, state: str | None, after: int | None, limit: int) -> list[Alert]:
    """Return at most ``limit`` alerts, the newest first, starting after the one with the number ``after``.

    Raises:
        Refusal: ``malformed_request``.
    """
    check_choice("state", state, STATES)
    async with plane.database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, BIGINT_MAX if after is None else after, state)
    return [alert_of_row(row) for row in rows]


async def acknowledge(plane: ControlPlane, alert_id: str, *, actor: str) -> Changed[Alert]:
    """Note that somebody has seen an alert. A second time changes nothing.

    Raises:
        Refusal: ``not_found``.
    """
    number = parse_id(alert_id)
    async with plane.database.transaction() as connection:
        if plane.idempotency is not None:
            await plane.idempotency.claim(connection)
        done = "" if number is None else await connection.execute(_SQL["acknowledge"], number, actor)
        row = None if number is None else await connection.fetchrow(_SQL["get"], number)
        if row is None:
            raise Refusal("not_found", "There is no such alert.")
        if done == "UPDATE 1":
            await connection.execute(_SQL["tell_webhooks"], number, ACKNOWLEDGED)
            await audit_log.record(
                connection, act="acknowledge_alert", actor=actor, subject=f"alert:{alert_id}"
            )
        alert = alert_of_row(row)
        await keep_answer(plane, connection, alert)
    return Changed(alert, published=True)


async def forget_old(plane: ControlPlane) -> None:
    """Delete alerts whose cause has not come for ``block_history_days``."""
    async with plane.database.connection() as connection:
        await connection.execute(_SQL["forget"], plane.settings.block_history_days)


def parse_id(text: str) -> int | None:
    """Return the number in an id of the API; None if the id is malformed."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


def alert_of_row(row: Row) -> Alert:
    """Make an alert from a row that has its columns."""
    values = {name: row[name] for name in Alert.__struct_fields__}
    return Alert(**values | {"evidence": orjson.loads(row["evidence"])})
