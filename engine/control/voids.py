"""Voids whole batches and serial ranges, and makes them valid again.

A void is a change of the configuration: one row, not a loop over codes. It applies from the next call of a
script on, whether it covers one code or ten million. Declarations are never removed; for each serial the
latest declaration counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from engine.api.checks import check_text
from engine.control import audit_log, batches
from engine.control.change import Change, Changed, ControlPlane, change
from engine.control.stored_texts import refuse_codes
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
    """The codes to void, or to unvoid, and the reason. Without serials it is the whole batch."""

    batch: int
    first_serial: int | None = None
    last_serial: int | None = None
    reason: str


class Void(msgspec.Struct, frozen=True, kw_only=True):
    """A stored declaration: the serials were made void, or valid again if ``void`` is false."""

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
        """The id in the API."""
        return f"void_{self.id}"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
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
    """Make codes void, or valid again, and publish the change.

    ``actor`` is the id of an API key, or ``cli``. ``key`` is the Idempotency-Key that the event shows.

    Raises:
        Refusal: ``batch_not_found``; ``malformed_request``: the reason or the serials are invalid, or
            the batch would have more void ranges than ``void_ranges_max``.
    """
    check_text("reason", declaration.reason, plane.settings.reason_length_max)
    if (declaration.first_serial is None) != (declaration.last_serial is None):
        raise Refusal(
            "malformed_request", "first_serial and last_serial belong together: give both or neither"
        )

    async def write(under: Change) -> Void:
        await refuse_codes(under.connection, plane.settings, reason=declaration.reason, key=key)
        batch = await batches.find(under.connection, declaration.batch)
        first, last = _serials(declaration, batch)
        ranges = await _ranges(under.connection, batch.id)
        ranges.mark(first, last, void=void)
        ranges_max = plane.settings.void_ranges_max
        if len(ranges) > ranges_max:
            raise Refusal(
                "malformed_request",
                f"a batch can have at most {ranges_max} void ranges: void a wider range, or the whole batch",
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
    """Return at most ``limit`` declarations of a batch, the oldest first, and the serials that are void now.

    Raises:
        Refusal: ``batch_not_found``.
    """
    async with plane.database.transaction(snapshot=True) as connection:
        await batches.find(connection, batch_id)
        rows = await connection.fetch(_SQL["page"], limit, batch_id, after or 0)
        return [_void(row) for row in rows], await _ranges(connection, batch_id)


def parse_id(text: str) -> int | None:
    """Return the number in an id of the API; None if the id is malformed."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


async def _ranges(connection: Connection, batch_id: int) -> VoidRanges:
    ranges = VoidRanges()
    for row in await connection.fetch(_SQL["of_batch"], batch_id):
        ranges.mark(row["first_serial"], row["last_serial"], void=row["void"])
    return ranges


def _serials(declaration: VoidDeclaration, batch: batches.Batch) -> tuple[int, int]:
    """Return the first and last serial; check that both are in the batch."""
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
