"""Batches of minted codes: issues them and exports their codes.

A batch is one row in PostgreSQL. Its codes are not stored: each export computes the same codes from the
row and the mint key.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

import asyncpg
import msgspec

from engine.codes import mint_keys
from engine.codes.codec import Codec, UnknownKeyError
from engine.codes.formats import (
    DEFAULT_FORMAT,
    FORMATS,
    SERIAL_LIMIT,
    GuessableError,
    chance_text,
    normalise_prefix,
    refuse_guessable,
)
from engine.control import audit_log, campaigns, mint_key_checks
from engine.control.change import Change, Changed, ControlPlane, change
from engine.errors import Fault, Refusal, StoreUnavailable, not_a_cursor
from engine.queries import queries
from engine.store.configuration import IMPORTED
from engine.times import shown_instant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime

    from engine.codes.mint_keys import MintKeys
    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

_log = logging.getLogger(__name__)
CSV_HEADER: Final = b"code,serial\n"
ID_MAX: Final = 2**31 - 1
_SQL: Final = queries(__package__, "batches")


class NewBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/campaigns/{id}/batches``."""

    count: int
    format: str = DEFAULT_FORMAT.name
    prefix: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as stored in PostgreSQL.

    Serials 0 to ``count - 1`` are issued. ``mint_key`` is the name of the key, not the key.
    """

    id: int
    campaign: str
    count: int
    format: str
    prefix: str | None
    mint_key: str
    created_by: str
    created_at: datetime

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return msgspec.structs.asdict(self) | {"created_at": shown_instant(self.created_at)}


class MintedBatch(msgspec.Struct, frozen=True):
    """A new batch, and the chance that one guess in its format is a code of any batch."""

    batch: Batch
    chance: str

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return self.batch.document() | {"guess_chance": self.chance}


def load_mint_keys(settings: Settings) -> MintKeys:
    """Read the mint keys anew, so that a key that was just added is found.

    Raises:
        StoreUnavailable: there are no mint keys, or they cannot be used.
    """
    try:
        return mint_keys.from_settings(settings)
    except mint_keys.MintKeyError as error:
        raise StoreUnavailable(str(error)) from error


async def mint(
    plane: ControlPlane, campaign_id: str, new: NewBatch, *, created_by: str
) -> Changed[MintedBatch]:
    """Issue a batch under the current mint key and publish it.

    Batch numbers come from a sequence, so batches never overlap. Issuing takes the deployment's lock, so
    the guess chance counts every issued code of the format.

    Raises:
        Refusal: ``campaign_not_found``, ``campaign_ended``, or ``malformed_request``: count,
            format or prefix is invalid, or codes of this format would become guessable.
        StoreUnavailable: no mint key, or no PostgreSQL; nothing is issued.
    """
    prefix = _check(new, plane.settings)
    keys = load_mint_keys(plane.settings)

    async def write(under: Change) -> MintedBatch:
        campaign = await campaigns.find(under.connection, campaign_id)
        if campaign.state == "ended":
            raise Refusal("campaign_ended", "The campaign has ended: it gets no more codes.")
        await mint_key_checks.use(under.connection, keys.current, keys.by_name)
        issued = await under.connection.fetchval(_SQL["issued"], new.format)
        try:
            chance = refuse_guessable(FORMATS[new.format], issued + new.count)
        except GuessableError as error:
            raise Refusal("malformed_request", str(error)) from error
        try:
            row = await under.connection.fetchrow(
                _SQL["insert"],
                campaign_id,
                new.count,
                new.format,
                prefix,
                keys.current,
                created_by,
                under.version,
            )
        except asyncpg.SequenceGeneratorLimitExceededError as error:
            raise Refusal("malformed_request", "all batch numbers of this deployment are used") from error
        return MintedBatch(_batch(row), chance_text(chance))

    return await change(plane, write)


async def get(plane: ControlPlane, batch_id: int) -> Batch:
    """Return one batch.

    Raises:
        Refusal: ``batch_not_found``.
    """
    async with plane.database.connection() as connection:
        return await find(connection, batch_id)


async def find(connection: Connection, batch_id: int) -> Batch:
    """Return one batch, read over a given connection.

    Raises:
        Refusal: ``batch_not_found``.
    """
    row = await connection.fetchrow(_SQL["get"], batch_id) if 0 <= batch_id <= ID_MAX else None
    if row is None:
        raise Refusal("batch_not_found")
    return _batch(row)


async def page(plane: ControlPlane, campaign_id: str, *, after: int | None, limit: int) -> list[Batch]:
    """Return at most ``limit`` batches of a campaign, the oldest first, starting after the id ``after``.

    Raises:
        Refusal: ``campaign_not_found``.
    """
    if after is not None and not 0 <= after <= ID_MAX:
        raise not_a_cursor()
    async with plane.database.connection() as connection:
        await campaigns.find(connection, campaign_id)
        rows = await connection.fetch(_SQL["page"], limit, campaign_id, -1 if after is None else after)
    return [_batch(row) for row in rows]


def codes(batch: Batch, settings: Settings) -> Iterator[bytes]:
    """Yield all codes of a batch as CSV lines ``code,serial``, in chunks, without the header.

    Every call yields the same bytes. Memory is bounded. A chunk takes some tens of milliseconds, so call
    ``next`` in a thread. The errors are raised by the call itself, not by the iterator.

    Raises:
        Refusal: ``malformed_request``: the codes were imported, so only their digests are known.
        StoreUnavailable: the batch's mint key is not known here.
    """
    if batch.format == IMPORTED:
        raise Refusal(
            "malformed_request", "The codes of this batch were imported: only their digests are stored."
        )
    codec = Codec(load_mint_keys(settings).by_name)
    try:
        return codec.mint(
            batch.mint_key, FORMATS[batch.format], batch.prefix or "", batch.id, start=0, count=batch.count
        )
    except UnknownKeyError as error:
        raise StoreUnavailable(
            f"the mint key {batch.mint_key} of batch {batch.id} is not known here"
        ) from error


@contextlib.asynccontextmanager
async def exporting(
    plane: ControlPlane, batch: Batch, *, actor: str, details: dict[str, object]
) -> AsyncIterator[None]:
    """Record an export of a batch's codes in the audit log; the block does the export.

    The entry is committed before the block runs. Its outcome is added after the block: ``complete``, or
    ``aborted`` if the block raises. The outcome stays empty if the process dies, or if PostgreSQL is away
    at the end.

    Raises:
        StoreUnavailable: the export cannot be recorded, or the batch was issued under another mint key of
            this name; nothing may be exported.
    """
    keys = load_mint_keys(plane.settings)
    async with plane.database.transaction() as connection:
        await mint_key_checks.require_same(connection, keys.by_name, {batch.mint_key})
        act_id = await audit_log.record(
            connection,
            act="export",
            actor=actor,
            subject=f"batch:{batch.id}",
            details={"count": batch.count, **details},
        )
    outcome = "aborted"
    try:
        yield
        outcome = "complete"
    finally:
        try:
            async with plane.database.connection() as connection:
                await audit_log.finish(connection, act_id, outcome)
        except Fault as fault:
            _log.warning("cannot record how an export ended", extra={"act": act_id, "reason": str(fault)})


def _check(new: NewBatch, settings: Settings) -> str | None:
    """Check a new batch; return its prefix as it is stored."""
    count_max = min(settings.mint_count_max, SERIAL_LIMIT)
    if not 1 <= new.count <= count_max:
        raise Refusal("malformed_request", f"count must be between 1 and {count_max}")
    if new.format not in FORMATS:
        raise Refusal("malformed_request", f"format must be one of {', '.join(FORMATS)}")
    if new.prefix is None:
        return None
    try:
        normalise_prefix(new.prefix)
    except ValueError as error:
        raise Refusal("malformed_request", str(error)) from error
    return new.prefix.upper()


def _batch(row: Row) -> Batch:
    return Batch(**{name: row[name] for name in Batch.__struct_fields__})
