"""Helpers for tests of imports: files made from lists of codes, complete or broken off, and their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.control import campaigns
from engine.control.campaigns import NewCampaign
from engine.control.change import Change, change
from engine.imports import records
from engine.imports.importer import Importer, Upload
from engine.imports.parser import Form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from engine.control.change import ControlPlane
    from engine.imports.runner import ImportOutcome


class BrokenOff(Exception):
    """Raised where a file breaks off."""


async def a_campaign(plane: ControlPlane, **fields: Any) -> str:  # noqa: ANN401 - by their names
    new = NewCampaign(**({"name": "Test", "state": "active"} | fields))
    return (await campaigns.create(plane, campaigns.define(new))).value.id


def lines_of(codes: Iterable[str]) -> bytes:
    return "".join(f"{code}\n" for code in codes).encode()


async def in_pieces(
    content: bytes, *, size: int = 1000, broken_at: int | None = None
) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        if broken_at is not None and at + size > broken_at:
            yield content[at:broken_at]
            raise BrokenOff
        yield content[at : at + size]


async def bring(
    plane: ControlPlane,
    campaign: str,
    content: bytes,
    *,
    form: Form = Form.CSV,
    key: str | None = None,
    created_by: str = "test",
    broken_at: int | None = None,
) -> ImportOutcome:
    """Import a file, up to the point where it breaks off."""
    source = in_pieces(content, broken_at=broken_at)
    return await Importer(plane).run(Upload(campaign, form, source, created_by=created_by, key=key))


async def age_imports(plane: ControlPlane) -> None:
    """Make all imports look as a version left them that did not measure how easily codes are guessed."""

    async def write(under: Change) -> None:
        await under.connection.execute("UPDATE imports SET guessable = false, updated_at = '2026-01-01'")
        await under.connection.execute("UPDATE batches SET guessable = false, version = $1", under.version)

    await change(plane, write)


async def problems_of(plane: ControlPlane, outcome: ImportOutcome) -> list[str]:
    pieces = [piece async for piece in records.problems(plane, outcome.imported.name)]
    return b"".join(pieces).decode().splitlines()


def counts(outcome: ImportOutcome) -> tuple[int, int, int, int]:
    """Return the numbers of lines, accepted codes, duplicates and unusable lines."""
    imported = outcome.imported
    return imported.lines, imported.accepted, imported.duplicates, imported.unusable


async def stored(plane: ControlPlane) -> list[tuple[int, int]]:
    """Return batch and serial of every imported code in PostgreSQL, in order."""
    async with plane.database.connection() as connection:
        rows = await connection.fetch("SELECT batch, serial FROM imported_codes ORDER BY batch, serial")
    return [(row["batch"], row["serial"]) for row in rows]
