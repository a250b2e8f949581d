"""``redeem config show``: the settings that a command would use here, without secrets."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, Final
from urllib.parse import urlsplit

import click

from engine import settings as all_settings
from engine.cli.connect import echo_json
from engine.cli.options import json_option
from engine.settings import Settings, variable

_HIDDEN: Final = "***"


@click.group()
def config() -> None:
    """Show the settings."""


@config.command()
@click.option("--all", "with_defaults", is_flag=True, help="Also settings that have their default.")
@json_option
def show(*, with_defaults: bool, as_json: bool) -> None:
    """Show the settings that are not defaults, and where each comes from. Passwords and keys are hidden."""
    settings = all_settings.load(os.environ)
    sources = all_settings.sources(os.environ)
    rows = [
        {"name": variable(item.name), "value": _shown(settings, item.name), "source": sources[item.name]}
        for item in fields(Settings)
        if with_defaults or sources[item.name] != all_settings.DEFAULT
    ]
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']}={row['value']}  ({row['source']})")


def _shown(settings: Settings, name: str) -> Any:  # noqa: ANN401 - a string, a number or a truth value
    value = getattr(settings, name)
    secret = not next(item for item in fields(Settings) if item.name == name).repr
    if not secret or not value:
        return value if isinstance(value, bool | int) else str(value or "")
    if name.endswith("_url"):
        return _without_password(value)
    return ",".join(f"{key.partition(':')[0]}:{_HIDDEN}" for key in value.split(","))


def _without_password(url: str) -> str:
    """Return a URL with its user, but without what could be a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    login, at, host = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    query = "&".join(
        f"{name}={_HIDDEN}" if name.lower() == "password" else f"{name}{equals}{value}"
        for name, equals, value in (each.partition("=") for each in parts.query.split("&") if each)
    )
    login = f"{user}:{_HIDDEN}" if colon else user
    return f"{parts.scheme}://{login}{at}{host}{parts.path}{'?' if query else ''}{query}"
