"""``redeem dashboard link``, and what ``redeem up`` prints: the dashboard's address and a sign-in link."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import click

from engine.cli.connect import echo_json, load_settings, plane_on, run
from engine.cli.options import json_option
from engine.control import api_keys
from engine.errors import Refusal
from engine.pages.sessions import Sessions
from engine.store.configuration import SCOPES

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings

_log = logging.getLogger(__name__)
KEY_NAME: Final = "Dashboard sign-in links"
"""The name of the API key that links sign in with. It has all scopes, and nobody has its secret."""
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - an address to listen on, replaced


@click.group()
def dashboard() -> None:
    """Sign in to the dashboard."""


@dashboard.command()
@click.option("--url", help="Address of the engine, as the browser knows it.  [default: from the settings]")
@click.option(
    "--key", "key_id", metavar="ID", help="Sign in with this API key.  [default: one with all scopes]"
)
@json_option
def link(url: str | None, key_id: str | None, *, as_json: bool) -> None:
    """Print a link that signs in to the dashboard, once."""
    settings = load_settings()
    made = run(lambda plane: make_link(plane, url or _address(settings), key_id), settings)
    if as_json:
        echo_json({"url": made, "expires_in_s": settings.sign_in_link_s})
    else:
        click.echo(made)


async def show(settings: Settings, url: str) -> None:
    """Print the dashboard's address and a sign-in link; a failure is logged and the engine goes on."""
    url = _reachable(url)
    try:
        async with plane_on(settings) as plane:
            made = await make_link(plane, url)
    except Exception as error:  # noqa: BLE001 - the engine works without the link
        _log.warning("no sign-in link can be made", extra={"reason": str(error)})
        return
    click.echo(_LINES.format(url=url, link=made, minutes=-(-settings.sign_in_link_s // 60)), nl=False)


async def make_link(plane: ControlPlane, url: str, key_id: str | None = None) -> str:
    """Return a link that signs in with an API key; without one, with a key that is made for links.

    Raises:
        Refusal: ``not_found``: there is no such valid key.
        StoreUnavailable: PostgreSQL or the mint keys cannot be used.
    """
    if key_id is None:
        key_id = await _key_for_links(plane)
    elif await api_keys.find_by_id(plane.database, key_id) is None:
        raise Refusal("not_found", "There is no such API key, or it was revoked.")
    token = Sessions(plane.settings, plane.redis).link(key_id)
    return f"{url.rstrip('/')}/admin#sign-in={token}"  # behind the #, no server sees it


async def _key_for_links(plane: ControlPlane) -> str:
    known = await api_keys.find_named(plane.database, KEY_NAME, SCOPES)
    if known is not None:
        return known
    return (await api_keys.create(plane, KEY_NAME, SCOPES)).value.api_key.id


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return _reachable(f"http://{host}:{settings.port}")


def _reachable(url: str) -> str:
    """Replace an address to listen on everywhere with that of this machine."""
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.rpartition(":")
    return f"{scheme}://{_EVERYWHERE.get(host, host)}{colon}{port}"


_LINES: Final = """
the dashboard:

  {url}/admin

sign in to it, once and within {minutes} minutes (another link: redeem dashboard link):

  {link}
"""
