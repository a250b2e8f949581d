"""``redeem keys``: creates, changes, lists and revokes API keys, and rotates their signing secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from engine.cli.connect import echo_json, read_all, run_change
from engine.cli.options import NONE, confirm, json_option, yes_option
from engine.control import api_keys, key_changes, signing_secrets
from engine.control.key_changes import ApiKeyChange
from engine.store.configuration import SCOPES, SIGNING

if TYPE_CHECKING:
    from engine.control.signing_secrets import IssuedSecret


@click.group()
def keys() -> None:
    """Create, change, list and revoke API keys, and rotate their signing secrets."""


@keys.command()
@click.option("--name", help="What the key is for. Of a browser key the default is its first origin.")
@click.option("--scopes", help=f"One or more of {','.join(SCOPES)}; separate them with commas.")
@click.option(
    "--campaign",
    "campaigns",
    multiple=True,
    metavar="ID",
    help="Limit the key to this campaign; for several campaigns repeat the option.",
)
@click.option(
    "--signing",
    type=click.Choice(SIGNING),
    default="off",
    show_default=True,
    help="Whether its requests must be signed.",
)
@click.option(
    "--browser",
    is_flag=True,
    help="A key for web pages, which everybody may read: it can only redeem, hold and check codes of its "
    "campaigns. It needs --campaign and --origin, and has no scopes.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="A browser key works in pages of this origin, such as https://shop.example; for several, repeat it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the key with its id as JSON.")
def create(
    name: str | None,
    scopes: str | None,
    campaigns: tuple[str, ...],
    origins: tuple[str, ...],
    signing: Literal["off", "optional", "required"],
    *,
    browser: bool,
    as_json: bool,
) -> None:
    """Create an API key and print it. It is shown only once.

    For a key that signs and for a browser key, two more lines: the id of its signing secret, and the secret.
    """
    if browser:
        name = name or next(iter(origins), None)
    elif scopes is None:
        raise click.UsageError("A key needs --scopes, or --browser.")
    if name is None:
        raise click.UsageError("A key needs --name, a browser key at least --origin.")
    new = api_keys.NewApiKey(
        name=name,
        scopes=None if scopes is None else [scope.strip() for scope in scopes.split(",")],
        campaigns=list(campaigns) or None,
        kind="browser" if browser else "server",
        origins=list(origins) or None,
        signing=signing,
    )
    issued = run_change(lambda plane: api_keys.create_as_asked(plane, new, actor="cli"))
    if as_json:
        echo_json(issued.document())
        return
    click.echo(issued.key)
    _echo_secret(issued.signing_secret)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--name", help="What the key is for.")
@click.option("--signing", type=click.Choice(SIGNING), help="Whether its requests must be signed.")
@click.option(
    "--campaign",
    "campaigns",
    multiple=True,
    metavar="ID",
    help="Limit the key to this campaign and no other; for several, repeat it. `none` removes the limit.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let a browser key work in pages of this origin and no other; for several, repeat it.",
)
@json_option
def update(key_id: str, *, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - the options above, by name
    """Change an API key that is in use. The key itself and its scopes stay.

    If it begins to sign and has no signing secret yet, two more lines: the id of the new secret, and the
    secret. It is shown only once.
    """
    given = {name: value for name, value in options.items() if value}
    if not given:
        raise click.UsageError("nothing to change")
    if given.get("campaigns") == (NONE,):
        given["campaigns"] = None
    changes = msgspec.convert(given, ApiKeyChange)
    changed = run_change(lambda plane: key_changes.update(plane, key_id, changes))
    if as_json:
        echo_json(changed.document())
        return
    click.echo(changed.api_key.id)
    _echo_secret(changed.signing_secret)


def _echo_secret(secret: IssuedSecret | None) -> None:
    if secret is not None:
        click.echo(f"{secret.id}\n{secret.secret}")


@keys.command("rotate-secret")
@click.argument("key_id", metavar="ID")
@click.option("--retire", metavar="SECRET", help="Retire this one of the two secrets, and add none.")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate_secret(key_id: str, retire: str | None, *, yes: bool, as_json: bool) -> None:
    """Add a signing secret to an API key that has one, or to a browser key, or retire one of two.

    Prints the id of the new secret, and the secret. It is shown only once. Both secrets are accepted until
    one is retired.
    """
    if retire is None:
        issued = run_change(lambda plane: signing_secrets.rotate(plane, key_id))
        if as_json:
            echo_json(issued.document())
        else:
            _echo_secret(issued)
        return
    confirm(f"Refuse what {retire} signs, for good?", yes=yes)
    retired = run_change(lambda plane: signing_secrets.retire(plane, key_id, retire))
    if as_json:
        echo_json(retired.document())
    else:
        click.echo(retired.id)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_keys(*, as_json: bool) -> None:
    """List all API keys, including revoked ones."""
    all_keys = read_all(
        lambda plane, after, limit: api_keys.page(plane, after=after, limit=limit), lambda key: key.id
    )
    if as_json:
        echo_json([key.document() for key in all_keys])
        return
    for key in all_keys:
        state = "revoked" if key.revoked_at else "valid"
        limit = "" if key.campaigns is None else f"  {','.join(key.campaigns)}"
        may = ",".join(key.scopes) if key.origins is None else f"browser {','.join(key.origins)}"
        click.echo(f"{key.id}  {state:7}  {may}{limit}  {key.name}")


@keys.command()
@click.argument("key_id", metavar="ID")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON.")
def revoke(key_id: str, *, yes: bool, as_json: bool) -> None:
    """Revoke an API key permanently, by its id."""
    confirm(f"Revoke {key_id} for good?", yes=yes)
    revoked = run_change(lambda plane: api_keys.revoke(plane, key_id))
    if as_json:
        echo_json(revoked.document())
    else:
        click.echo(revoked.id)
