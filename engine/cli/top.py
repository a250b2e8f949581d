"""``redeem top``: the numbers of a campaign while it runs, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from engine.cli.connect import run
from engine.cli.options import json_option
from engine.control import campaigns
from engine.control.campaign_numbers import read_numbers
from engine.errors import StoreUnavailable
from engine.times import shown_instant

if TYPE_CHECKING:
    from engine.control.campaign_numbers import CampaignNumbers
    from engine.control.campaigns import Campaign
    from engine.control.change import ControlPlane

_LEFT_OUT: Final = frozenset(("exact",))


@click.command()
@click.argument("campaign_id", metavar="CAMPAIGN")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(1), help="Stop after this many readings.")
@json_option
def top(campaign_id: str, interval: float, count: int | None, *, as_json: bool) -> None:
    """Show the numbers of a campaign as they change, until Ctrl-C.

    On a terminal the screen is written anew each time. Otherwise each reading is one line.
    """
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop
        run(lambda plane: _Watch(plane, campaign_id, as_json=as_json).run(interval, count))


class _Watch:
    """One run of the command."""

    def __init__(self, plane: ControlPlane, campaign_id: str, *, as_json: bool) -> None:
        self._plane = plane
        self._campaign_id = campaign_id
        self._as_json = as_json
        self._before: tuple[float, int] | None = None

    async def run(self, interval: float, count: int | None) -> None:
        await campaigns.get(self._plane, self._campaign_id)  # an error in the first reading ends the command
        readings = 0
        while True:
            try:
                self._show(*await self._read())
            except StoreUnavailable as fault:
                click.echo(f"waiting: {fault}", err=True)
            readings += 1
            if readings == count:
                return
            await asyncio.sleep(interval)

    async def _read(self) -> tuple[Campaign, CampaignNumbers]:
        campaign = await campaigns.get(self._plane, self._campaign_id)
        numbers = await read_numbers(self._plane.database, self._plane.redis, [campaign])
        if campaign.id not in numbers:
            raise StoreUnavailable("Redis cannot be asked")
        return campaign, numbers[campaign.id]

    def _show(self, campaign: Campaign, numbers: CampaignNumbers) -> None:
        at = shown_instant(datetime.now(UTC))
        fields: dict[str, Any] = {"at": at, "campaign": campaign.id, "state": campaign.state}
        fields["per_second"] = self._rate(numbers.redeemed)
        fields |= {name: value for name, value in numbers.document().items() if name not in _LEFT_OUT}
        if self._as_json:
            click.echo(orjson.dumps(fields))
        elif sys.stdout.isatty():
            click.clear()
            click.echo(f"{campaign.name}  {campaign.kind}  {campaign.currency or ''}\n")
            for name, value in fields.items():
                click.echo(f"{name + ':':17} {'-' if value is None else value}")
        else:
            shown = (f"{name}={value}" for name, value in fields.items() if value is not None)
            click.echo("  ".join(shown))

    def _rate(self, redeemed: int) -> float | None:
        """Return the redemptions a second since the last reading; None for the first one."""
        now, before = time.monotonic(), self._before
        self._before = now, redeemed
        return None if before is None else round((redeemed - before[1]) / (now - before[0]), 1)
