"""``redeem audit``: checks that ledger, Redis and counters agree, and lists the differences."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import asyncpg
import click
from redis.exceptions import RedisError

from engine.cli.connect import check_redis_url, echo_json, load_settings, server_urls
from engine.cli.progress import Progress
from engine.errors import StoreUnavailable
from persister.reconcile.kept import keep
from persister.reconcile.reconcile import reconcile

if TYPE_CHECKING:
    from engine.settings import Settings
    from persister.reconcile.report import ReconciliationReport

_ANCHOR: Final = re.compile(r"([0-9]{1,4}):([0-9]{1,18}):([0-9a-f]{64})")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="SHARD:ROW:DIGEST",
    help="End of a hash chain that an earlier audit printed; the chain must still contain it. Repeatable.",
)
def audit(*, as_json: bool, anchors: tuple[str, ...]) -> None:
    """Compare ledger, hash chain, Redis and counters; exit status 1 if anything differs.

    Works beside a running engine. The dashboard shows how much differed. The command prints the end of each
    hash chain as an anchor. Keep the anchors on another machine: a later audit with --anchor detects a
    ledger that was rewritten as a whole.
    """
    settings = load_settings()
    redis_url, database_url = server_urls(settings)
    settings = replace(settings, redis_url=redis_url, database_url=database_url)
    check_redis_url(settings)
    known_anchors = _parse(anchors)
    try:
        report = asyncio.run(_audit(settings, known_anchors))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, RedisError) as error:
        raise StoreUnavailable(f"the audit could not be finished: {error}") from error
    if as_json:
        echo_json(report.document())
    else:
        _print(report)
    if not report.clean:
        raise click.exceptions.Exit(1)


async def _audit(settings: Settings, anchors: dict[int, list[tuple[int, bytes]]]) -> ReconciliationReport:
    began = time.monotonic()
    report = await reconcile(settings, anchors, Progress("audit"))
    try:
        await keep(settings, report, time.monotonic() - began)
    except (OSError, asyncpg.PostgresError) as error:
        click.echo(f"the result is not kept for the dashboard: {error}", err=True)
    return report


def _parse(anchors: tuple[str, ...]) -> dict[int, list[tuple[int, bytes]]]:
    parsed: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for anchor in anchors:
        match = _ANCHOR.fullmatch(anchor)
        if match is None:
            raise click.BadParameter("an anchor is SHARD:ROW:DIGEST, as the audit prints it")
        parsed[int(match[1])].append((int(match[2]), bytes.fromhex(match[3])))
    return dict(parsed)


def _print(report: ReconciliationReport) -> None:
    click.echo(f"{'check':12}{'looked at':>14}{'differing':>12}")
    for check in report.looked_at | report.differing:
        click.echo(f"{check:12}{report.looked_at[check]:>14}{report.differing[check]:>12}")
    for finding in report.findings:
        click.echo(f"{finding.check}: {finding.item}: should be {finding.expected}, is {finding.found}")
    for check, count in report.differing.items():
        if count > report.findings_max:
            click.echo(f"{check}: {count - report.findings_max} more")
    for head in report.heads:
        click.echo(f"the chain ends: --anchor {head.shard}:{head.seq}:{head.digest}")
    click.echo("everything agrees" if report.clean else f"{report.differing.total()} differences")
