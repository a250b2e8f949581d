"""Results of ``redeem loadtest capacity``: stores and lists what the command sends.

The load test is a program of its own, perhaps on another machine. So the engine believes its figures and
only bounds them. A report is an entry of the audit log, so it has a sender, and stays.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from engine.control import audit_log
from engine.control.change import Changed, ControlPlane, claim_key, keep_answer
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal
from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from engine.database import Database
    from engine.postgres_types import Row

ACT: Final = "add_capacity_report"
"""The act in the audit log."""
STEPS_MAX: Final = 100
_SQL: Final = queries(__package__, "capacity_reports")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_Figure = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class CapacityStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rate that was held for a time.

    Attributes:
        per_second: the rate that was asked for.
        done_per_s: what was done of it.
        p50_ms, p99_ms: latency, from when an attempt was due.
        held: no limit was passed.
    """

    per_second: _Figure
    done_per_s: _Figure
    p50_ms: _Figure
    p99_ms: _Figure
    held: bool


class LoadMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine from which the load came.

    Attributes:
        workers: workers of the engine on it; None if none was seen, so the engine runs elsewhere.
    """

    system: _Text
    processors: _Count
    memory_bytes: _Count
    workers: _Count | None


class NewCapacityReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/capacity-reports``.

    Attributes:
        verdict: the result in one sentence.
        per_second: the highest rate that was confirmed; None if none was.
        p99_ms: the highest of the runs that confirm it.
        differences: between the answers and the ledger.
        p99_limit_ms: a rate above it counts as failed.
    """

    verdict: _Text
    per_second: _Figure | None
    p99_ms: _Figure | None
    differences: _Count
    p99_limit_ms: _Figure
    machine: LoadMachine
    began_at: datetime
    ended_at: datetime
    steps: Annotated[list[CapacityStep], msgspec.Meta(min_length=1, max_length=STEPS_MAX)]


class CapacityReport(msgspec.Struct, frozen=True, kw_only=True):
    """A stored report. ``actor`` is the id of the API key that sent it."""

    id: int
    at: datetime
    actor: str
    report: NewCapacityReport

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        shown: dict[str, object] = msgspec.to_builtins(self.report)
        times = {"began_at": self.report.began_at, "ended_at": self.report.ended_at, "created_at": self.at}
        shown |= {name: shown_instant(at) for name, at in times.items()}
        return shown | {"id": self.id, "actor": self.actor}


async def add(plane: ControlPlane, new: NewCapacityReport, *, actor: str) -> Changed[CapacityReport]:
    """Store a report.

    Raises:
        Refusal: ``malformed_request``: a time has no zone, or a text has a code.
    """
    if new.began_at.tzinfo is None or new.ended_at.tzinfo is None:
        raise Refusal("malformed_request", "began_at and ended_at must have a time zone")
    async with plane.database.transaction() as connection:
        await claim_key(plane, connection)
        texts = {"verdict": new.verdict, "system": new.machine.system}
        await refuse_codes(connection, plane.settings, **texts)
        details = msgspec.to_builtins(new)
        act_id = await audit_log.record(connection, act=ACT, actor=actor, subject="capacity", details=details)
        added = _report(await connection.fetchrow(_SQL["get"], act_id))
        await keep_answer(plane, connection, added)
    return Changed(added, published=True)


async def page(database: Database, *, after: int | None, limit: int) -> list[CapacityReport]:
    """Return at most ``limit`` reports, the newest first, starting after the one with the id ``after``."""
    before = BIGINT_MAX if after is None else after
    async with database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, before, ACT)
    return [_report(row) for row in rows]


def _report(row: Row) -> CapacityReport:
    report = msgspec.json.decode(row["details"], type=NewCapacityReport)
    return CapacityReport(id=row["id"], at=row["at"], actor=row["actor"], report=report)
