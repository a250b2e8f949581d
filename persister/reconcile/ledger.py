"""Checks the ledger by itself: row numbers, totals, hash chain, codes that exist, erased names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from engine.queries import queries
from persister.ingest import chain
from persister.reconcile.report import ChainHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from engine.postgres_types import Connection, Row
    from persister.reconcile.report import ReconciliationReport

_SQL: Final = queries(__package__, "audit")
LINK_ROWS: Final = 10_000
"""Rows read in one query. Links are small in quiet times, so several are read together."""
_FETCH_ROWS: Final = 5000


async def reconcile_ledger(
    connection: Connection,
    report: ReconciliationReport,
    anchors: Mapping[int, list[tuple[int, bytes]]],
    progress: Callable[[str, int], None],
) -> None:
    """Check one snapshot of the ledger; ``connection`` is in a repeatable-read transaction.

    ``anchors``: by shard, digests of the chain that were noted earlier, each with its last row.
    """
    offsets = await connection.fetch(_SQL["offsets"])
    await _check_numbers(connection, report, offsets)
    await _check_totals(connection, report)
    for row in offsets:
        await _check_chain(connection, report, row, dict(anchors.get(row["shard"], [])), progress)
    for shard in anchors.keys() - {row["shard"] for row in offsets}:
        report.add("chain", f"shard {shard}", "a chain", "no such shard")
    async for row in connection.cursor(_SQL["strays"], prefetch=_FETCH_ROWS):
        item = f"{row['shard']}:{row['seq']}"
        report.add("codes", item, "a code of its campaign", f"batch {row['batch']}, serial {row['serial']}")
    for row in await connection.fetch(_SQL["erased"]):
        report.look("erasures")
        if row["events"] is None or row["rows"] > row["events"]:
            logged = "no such act" if row["events"] is None else f"{row['events']} events in the act"
            report.add("erasures", row["user_id"], logged, f"{row['rows']} rows")


async def _check_numbers(connection: Connection, report: ReconciliationReport, offsets: list[Any]) -> None:
    ends = {row["shard"]: row["seq"] for row in offsets}
    last = {row["shard"]: row["kept_until"] for row in offsets}
    for row in await connection.fetch(_SQL["row_counts"]):
        report.look("numbers", row["rows"])
        last[row["shard"]] = max(last.get(row["shard"], 0), row["last_seq"])
    for shard, seq in last.items():
        if seq != ends.get(shard, 0):
            report.add("numbers", f"shard {shard}", f"last row {ends.get(shard, 0)}", f"last row {seq}")
    async for row in connection.cursor(_SQL["disorder"], prefetch=_FETCH_ROWS):
        item = f"{row['shard']}:{row['seq']}"
        if row["before"] != row["seq"] - 1:
            report.add("numbers", item, f"behind row {row['seq'] - 1}", f"behind row {row['before']}")
        else:
            report.add("numbers", item, "a later entry than the row before", "an earlier one")


async def _check_totals(connection: Connection, report: ReconciliationReport) -> None:
    report.look("totals", await connection.fetchval(_SQL["count_totals"]))
    async for row in connection.cursor(_SQL["totals"], prefetch=_FETCH_ROWS):
        item = f"{row['campaign']} on shard {row['shard']}, {row['type']}"
        expected = f"{row['events']} events, amount {row['amount']}"
        report.add("totals", item, expected, f"{row['total_events']} events, amount {row['total_amount']}")


async def _check_chain(
    connection: Connection,
    report: ReconciliationReport,
    offset: Row,
    anchors: dict[int, bytes],
    progress: Callable[[str, int], None],
) -> None:
    shard, before, seq = offset["shard"], chain.CHAIN_BEGINNING, offset["chain_after"]
    await _check_remaining_rows(connection, report, offset)
    async for links in _groups(connection, shard):
        first, last = links[0]["first_seq"], links[-1]["last_seq"]
        rows = await connection.fetch(_SQL["rows"], shard, first, last)
        at = 0
        for link in links:
            end = at
            while end < len(rows) and rows[end]["seq"] <= link["last_seq"]:
                end += 1
            own, at = rows[at:end], end
            item = f"shard {shard}, rows {link['first_seq']} to {link['last_seq']}"
            if link["first_seq"] != seq + 1:
                report.add("chain", item, f"rows from {seq + 1}", f"rows from {link['first_seq']}")
            whole = link["last_seq"] > offset["kept_until"]
            digest = (
                chain.link_digest(before, list(zip(*own, strict=True))) if whole and _is_sealed(own) else b""
            )
            if whole and digest != link["digest"]:
                report.add("chain", item, link["digest"].hex(), digest.hex() or "rows that are missing")
            before, seq = link["digest"], link["last_seq"]
            _check_anchor(report, shard, seq, before, anchors)
        report.look("chain", len(links))
        progress("rows of the chain verified", seq)
    if (seq, before) != (offset["seq"], offset["chain_digest"]):
        wanted = f"ends with row {offset['seq']}, {offset['chain_digest'].hex()}"
        report.add("chain", f"shard {shard}", wanted, f"ends with row {seq}, {before.hex()}")
    for anchor, digest in anchors.items():
        report.add("chain", f"shard {shard}, row {anchor}", digest.hex(), "no link ends there")
    report.heads.append(ChainHead(shard, seq, before.hex()))


async def _check_remaining_rows(connection: Connection, report: ReconciliationReport, offset: Row) -> None:
    """Check the rows that stayed when others were archived against the digest taken then."""
    if not offset["kept_until"]:
        return
    report.look("remaining", offset["kept_rows"])
    kept = offset["kept_rows"], offset["kept_digest"]
    rows, digest = await chain.digest_remaining_rows(connection, offset["shard"], offset["kept_until"])
    if (rows, digest) != kept:
        item = f"shard {offset['shard']}, what is left up to row {offset['kept_until']}"
        report.add("remaining", item, f"{kept[0]} rows, {kept[1].hex()}", f"{rows} rows, {digest.hex()}")


def _is_sealed(rows: list[Any]) -> bool:
    return bool(rows) and all(row["user_seal"] is not None for row in rows)


def _check_anchor(
    report: ReconciliationReport, shard: int, seq: int, digest: bytes, anchors: dict[int, bytes]
) -> None:
    noted = anchors.pop(seq, None)
    if noted is not None:
        report.look("anchors")
        if noted != digest:
            report.add("anchors", f"shard {shard}, row {seq}", noted.hex(), digest.hex())


async def _groups(connection: Connection, shard: int) -> AsyncIterator[list[Any]]:
    """Consecutive links, in groups of about ``LINK_ROWS`` rows."""
    links: list[Any] = []
    async for link in connection.cursor(_SQL["links"], shard, prefetch=_FETCH_ROWS):
        links.append(link)
        if link["last_seq"] - links[0]["first_seq"] >= LINK_ROWS:
            yield links
            links = []
    if links:
        yield links
