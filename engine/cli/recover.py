"""``redeem recover``: closes a hole of the ledger with what Redis still knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.cli.connect import check_redis_url, echo_json, plane_on
from engine.cli.options import ACTOR, data_option
from engine.cli.progress import Progress
from engine.cli.servers import run_on_servers, servers_may_fail
from engine.codes.formats import LAST_SYMBOLS
from engine.control import audit_log
from engine.lookup.decoder import Decoder
from engine.store.configuration import ConfigurationCache
from persister.recover.recover import recover as recover_ledger

if TYPE_CHECKING:
    from pathlib import Path

    from engine.settings import Settings
    from persister.recover.recover import RecoveredEvent, RecoveredShard

_UNKNOWN = "????"
_NOTHING = "nothing to recover: the ledger has every event that is no longer in a stream"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@data_option
def recover(*, as_json: bool, data_dir: Path | None) -> None:
    """Write into the ledger what PostgreSQL has lost and Redis still knows.

    For a PostgreSQL that came back older than what the streams kept. Redemptions are refused until this has
    run. It compares Redis with the ledger, code by code, writes an event for each difference, and prints it.
    User, order and idempotency key of these events are lost, and so is what left no trace in Redis. Bundled
    servers that are not running are started. If a newer copy of PostgreSQL exists, restore that one instead.
    """
    shards = run_on_servers(data_dir, _recover)
    if as_json:
        echo_json([_document(shard) for shard in shards])
        return
    for shard in shards:
        for event in shard.events:
            click.echo(_line(event))
        click.echo(
            f"shard {shard.shard}: {shard.missing} stream entries were missing; "
            f"{len(shard.events)} events were written from what Redis knows"
        )
    if not shards:
        click.echo(_NOTHING)


async def _recover(settings: Settings) -> list[RecoveredShard]:
    check_redis_url(settings)
    async with servers_may_fail(), plane_on(settings) as plane:
        configuration = ConfigurationCache(plane.redis)
        await configuration.refresh()
        decoder = Decoder(settings, configuration)
        decoder.refresh()

        def last_symbols(batch: int, serial: int) -> str:
            code = decoder.code_of(batch, serial)
            return code[-LAST_SYMBOLS:].decode() if code else _UNKNOWN

        shards = await recover_ledger(settings, last_symbols, Progress("recover"))
        async with plane.database.transaction() as connection:
            for shard in shards:
                await audit_log.record(
                    connection,
                    act="recover_ledger",
                    actor=ACTOR,
                    subject=f"shard:{shard.shard}",
                    details={"missing": shard.missing, "written": len(shard.events)},
                )
    return shards


def _document(shard: RecoveredShard) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "missing": shard.missing,
        "events": [event._asdict() for event in shard.events],
    }


def _line(event: RecoveredEvent) -> str:
    code = f"batch {event.batch}, serial {event.serial}, ending in {event.last4}"
    amount = "" if event.amount is None else f", {event.amount} {event.currency or ''}".rstrip()
    user = event.user or "unknown"
    return f"{event.type}  {event.id}  {event.campaign}  {code}{amount}, user {user}"
