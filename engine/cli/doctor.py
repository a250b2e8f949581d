"""``redeem doctor``: shows what is wrong with a deployment, and what to do about it."""

from __future__ import annotations

import asyncio

import click

from engine.cli import diagnosis
from engine.cli.connect import echo_json, load_settings
from engine.health.redis_checks import Verdict

_SAYS = {
    Verdict.OK: "everything is as it should be",
    Verdict.WARNING: "nothing is wrong, but there are warnings",
    Verdict.WRONG: "something is wrong",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(*, as_json: bool) -> None:
    """Check settings, servers, ledger, processes, webhooks, mint keys, clocks; exit status 1 if any is wrong.

    Changes nothing. Works beside a running engine, and also while servers are down.
    """
    findings = asyncio.run(diagnosis.examine(load_settings()))
    verdicts = {finding.verdict for finding in findings}
    worst = next(verdict for verdict in reversed(Verdict) if verdict in verdicts)
    if as_json:
        checks = [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "says": finding.says,
                "do": finding.do or None,
            }
            for finding in findings
        ]
        echo_json({"verdict": worst.value, "checks": checks})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.verdict.value:8}{finding.check:{width}}  {finding.says}")
            if finding.do:
                click.echo(f"{'':8}{'':{width}}  -> {finding.do}")
        click.echo(_SAYS[worst])
    if worst is Verdict.WRONG:
        raise click.exceptions.Exit(1)
