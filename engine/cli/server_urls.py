"""``redeem servers``: shows how to reach the servers of a deployment with their own programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from engine import settings as all_settings
from engine.cli.connect import server_urls
from engine.cli.options import data_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def servers() -> None:
    """Show how to reach PostgreSQL and Redis."""


@servers.command()
@click.argument("server", type=click.Choice(["postgresql", "redis"]))
@data_option
def url(server: str, data_dir: Path | None) -> None:
    """Print the URL of a server: of the settings, or of the bundled server. It may contain a password.

    Bundled servers run only while `redeem up` does.
    """
    settings = all_settings.load(os.environ, {"data_dir": data_dir})
    redis, postgresql = server_urls(settings)
    click.echo(redis if server == "redis" else postgresql)
