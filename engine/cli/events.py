"""``redeem events``: prints the event feed from PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import click
import orjson

from engine.cli.connect import load_settings, open_plane
from engine.cli.options import event_filter_options
from engine.errors import StoreUnavailable
from engine.ledger import feed
from engine.store.events import EVENT_TYPES

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

PAGE_EVENTS: Final = 1000
AWAY_S: Final = 1.0
"""Pause before the next try while PostgreSQL is down."""


@click.group()
def events() -> None:
    """Print the event feed."""


@events.command()
@click.option(
    "--after",
    metavar="CURSOR",
    help="Continue after this cursor, or at the `beginning` or `end` (default; with --no-follow: beginning).",
)
@event_filter_options(EVENT_TYPES)
@click.option("--limit", type=click.IntRange(1), help="Stop after this many events.")
@click.option("--follow/--no-follow", default=True, help="Wait for new events, or stop at the newest.")
def tail(
    after: str | None,
    types: tuple[str, ...],
    campaigns: tuple[str, ...],
    limit: int | None,
    *,
    follow: bool,
) -> None:
    """Write events to stdout, one JSON object a line, until Ctrl-C.

    At the end it writes `next CURSOR` to stderr: pass that cursor as --after to continue there.
    """
    begin = after or (feed.FROM_END if follow else feed.FROM_BEGINNING)
    tailing = _Tail(begin, types or None, campaigns or None, limit, follow=follow)
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop
        asyncio.run(tailing.run())
    click.echo(f"next {tailing.cursor}", err=True)


class _Tail:
    """One run of the command.

    Attributes:
        cursor: after the last event that was written.
    """

    def __init__(
        self,
        begin: str,
        types: tuple[str, ...] | None,
        campaigns: tuple[str, ...] | None,
        limit: int | None,
        *,
        follow: bool,
    ) -> None:
        self.cursor = feed.BEGINNING
        self._begin = begin
        self._types = types
        self._campaigns = campaigns
        self._left = limit
        self._follow = follow

    async def run(self) -> None:
        settings = load_settings()
        async with open_plane(settings) as plane:
            self.cursor = await feed.cursor_at(self._begin, plane.database)
            await self._step(plane)  # an error in the first step ends the command
            outage_shown = False
            while self._left != 0:
                try:
                    moved = await self._step(plane)
                except StoreUnavailable as fault:
                    if not self._follow:
                        raise
                    if not outage_shown:
                        click.echo(f"waiting: {fault}", err=True)
                    outage_shown = True
                    await asyncio.sleep(AWAY_S)
                    continue
                outage_shown = False
                if not moved and not self._follow:
                    return
                if not moved:
                    await asyncio.sleep(settings.feed_poll_ms / 1000)

    async def _step(self, plane: ControlPlane) -> bool:
        """Write one page; return whether there may be more."""
        most = PAGE_EVENTS if self._left is None else min(PAGE_EVENTS, self._left)
        async with plane.database.connection() as connection:
            page = await feed.read_page(connection, self.cursor, most, self._types, self._campaigns)
        if page.items:
            lines = b"\n".join(orjson.dumps(item.document()) for item in page.items)
            click.echo(lines)  # click flushes stdout
        moved = page.next != self.cursor
        self.cursor = page.next
        if self._left is not None:
            self._left -= len(page.items)
        return moved
