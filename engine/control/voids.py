"""Voids of whole batches and of serial ranges: a flag that every worker holds, not a loop over codes.

To void is a change of configuration like any other, so it holds from the next call of a script on,
for one code as for ten million. What was declared stays as a log; of each serial the latest counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from engine.api.checks import check_text
from engine.control import audit_log, batches
from engine.control.change import Change, Changed, ControlPlane, change
from engine.errors import Refusal
from engine.queries import queries
from engine.store.void_ranges import VoidRanges
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.postgres_types import Connection, Row

_ID: Final = re.compile(r"void_([1-9][0-9]{0,17})")
_SQL: Final = queries(__package__, "voids")


class VoidDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """Which codes to void, or to make good again, and why; without serials the whole batch."""

    batch: int
    first_serial: int | None = None
    last_serial: int | None = None
    reason: str


class Void(msgspec.Struct, frozen=True, kw_only=True):
    """Serials that were made void (or, where ``void`` is false, good again) at one time."""

    id: int
    batch: int
    first_serial: int
    last_serial: int
    void: bool
    reason: str
    actor: str
    at: datetime

    @property
    def shown_id(self) -> str:
        """The id as the API has it."""
        return f"void_{self.id}"

    def document(self) -> dict[str, object]:
        """How it is shown, times in ISO 8601, UTC."""
        return {
            "id": self.shown_id,
            "status": "voided" if self.void else "unvoided",
            "batch": self.batch,
            "first_serial": self.first_serial,
            "last_serial": self.last_serial,
            "reason": self.reason,
            "actor": self.actor,
            "at": shown_instant(self.at),
        }


async def declare(
    plane: ControlPlane, declaration: VoidDeclaration, *, void: bool, actor: str, key: str | None = None
) -> Changed[Void]:
    """Make codes void, or good again, and publish it.

    ``actor`` is the id of an API key or ``cli``; ``key`` is the Idempotency-Key that the event shows.

    Raises:
        Refusal: ``batch_not_found``; ``malformed_request``: the reason or the serials will not do, or
            the batch would be in more pieces than ``void_ranges_max``.
    """
    check_text("reason", declaration.reason, plane.settings.reason_length_max)
    if (declaration.first_serial is None) != (declaration.last_serial is None):
        raise Refusal(
            "malformed_request", "first_serial and last_serial belong together: give both or neither"
        )

    async def write(under: Change) -> Void:
        batch = await batches.find(under.connection, declaration.batch)
        first, last = _serials(declaration, batch)
        ranges = await _ranges(under.connection, batch.id)
        ranges.mark(first, last, void=void)
        ranges_max = plane.settings.void_ranges_max
        if len(ranges) > ranges_max:
            raise Refusal(
                "malformed_request",
                f"what is void of a batch may be {ranges_max} ranges: take a wider one, or the whole batch",
            )
        row = await under.connection.fetchrow(
            _SQL["insert"], batch.id, first, last, void, declaration.reason, actor, key, under.version
        )
        declared = _void(row)
        await audit_log.record(
            under.connection,
            act="void" if void else "unvoid",
            actor=actor,
            subject=f"batch:{batch.id}",
            reason=declaration.reason,
            details={"id": declared.shown_id, "first_serial": first, "last_serial": last},
        )
        return declared

    return await change(plane, write)


async def page(
    plane: ControlPlane, batch_id: int, *, after: int | None, limit: int
) -> tuple[list[Void], VoidRanges]:
    """At most ``limit`` of what was declared for a batch, the oldest first, and which serials are void now.

    Raises:
        Refusal: ``batch_not_found``.
    """
    async with plane.database.transaction(snapshot=True) as connection:
        await batches.find(connection, batch_id)
        rows = await connection.fetch(_SQL["page"], limit, batch_id, after or 0)
        return [_void(row) for row in rows], await _ranges(connection, batch_id)


def parse_id(text: str) -> int | None:
    """The number in an id as the API has it, or None where it is none."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


async def _ranges(connection: Connection, batch_id: int) -> VoidRanges:
    ranges = VoidRanges()
    for row in await connection.fetch(_SQL["of_batch"], batch_id):
        ranges.mark(row["first_serial"], row["last_serial"], void=row["void"])
    return ranges


def _serials(declaration: VoidDeclaration, batch: batches.Batch) -> tuple[int, int]:
    """First and last serial, within the batch."""
    if declaration.first_serial is None or declaration.last_serial is None:
        return 0, batch.count - 1
    if not 0 <= declaration.first_serial <= declaration.last_serial < batch.count:
        raise Refusal(
            "malformed_request",
            f"serials must be between 0 and {batch.count - 1}, the first not above the last",
        )
    return declaration.first_serial, declaration.last_serial


def _void(row: Row) -> Void:
    return Void(**{name: row[name] for name in Void.__struct_fields__})
