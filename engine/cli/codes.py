"""``redeem codes``: mints, exports and voids codes, and rotates the mint key.

Its other commands are in ``imports`` and ``single_codes``.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import time
from typing import TYPE_CHECKING, Final

import click

from engine.cli import single_codes
from engine.cli.connect import echo_json, load_settings, run, run_change
from engine.cli.files import STDOUT, opened
from engine.cli.imports import discard_import, import_codes, list_problems
from engine.cli.options import ACTOR, confirm, json_option, reason_option, yes_option
from engine.codes import mint_keys
from engine.codes.formats import DEFAULT_FORMAT, FORMATS
from engine.control import batches, voids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.cli.files import Write
    from engine.control.batches import Batch, MintedBatch
    from engine.control.change import ControlPlane
    from engine.settings import Settings

PROGRESS_INTERVAL_S: Final = 2.0
_SERIALS: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", re.ASCII)
_out = click.option(
    "--out", default=STDOUT, show_default=True, metavar="FILE|-", help="Where to write the CSV."
)
_force = click.option("--force", is_flag=True, help="Replace FILE if it exists.")


@click.group()
def codes() -> None:
    """Mint, import, export and void codes, rotate the mint key."""


@codes.command()
@click.argument("campaign_id", metavar="CAMPAIGN")
@click.option("--count", type=int, required=True, help="How many codes.")
@click.option(
    "--format", "format_name", default=DEFAULT_FORMAT.name, show_default=True, help=", ".join(FORMATS)
)
@click.option("--prefix", help="Text before each code, such as SUMMER.")
@_out
@_force
@click.option("--json", "as_json", is_flag=True, help="Print the batch as JSON; needs --out FILE.")
def mint(
    campaign_id: str,
    count: int,
    format_name: str,
    prefix: str | None,
    out: str,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Mint a batch of new codes and write them as CSV, with the header `code,serial`."""
    if as_json and out == STDOUT:
        raise click.UsageError("--json needs --out FILE: the codes go to stdout")
    settings = load_settings()
    new = batches.NewBatch(count, format_name, prefix)
    minted = None
    try:
        with opened(out, force=force) as write:
            minted = run_change(
                lambda plane: batches.mint(plane, campaign_id, new, created_by=ACTOR), settings
            )
            click.echo(_summary(minted), err=True)
            _export(minted.batch, settings, out, write)
    except BrokenPipeError:
        raise
    except OSError as error:
        if minted is None:
            raise
        raise click.ClickException(
            f"batch {minted.batch.id} is minted, but its codes could not be written ({error.strerror}):"
            f" get them with `redeem codes export {minted.batch.id}`"
        ) from error
    if as_json:
        echo_json(minted.document())


@codes.command()
@click.argument("batch_id", metavar="BATCH", type=int)
@_out
@_force
def export(batch_id: int, out: str, *, force: bool) -> None:
    """Write the codes of a batch again, exactly as `mint` wrote them."""
    settings = load_settings()
    batch = run(lambda plane: batches.get(plane, batch_id), settings)
    with opened(out, force=force) as write:
        _export(batch, settings, out, write)


def _add_void_command(name: str, help_text: str, *, void: bool) -> None:
    """Add the command ``void`` or ``unvoid``."""

    @codes.command(name, help=help_text)
    @click.argument("code", metavar="[CODE|-]", required=False)
    @click.option("--batch", "batch_id", type=int, help="All codes of this batch.")
    @click.option(
        "--serials",
        callback=_parse_serials,
        metavar="A-B",
        help="Only serials A to B of the batch, both included.",
    )
    @reason_option
    @json_option
    def command(
        code: str | None,
        batch_id: int | None,
        serials: tuple[int | None, int | None],
        reason: str,
        *,
        as_json: bool,
        yes: bool = True,
    ) -> None:
        if code is not None and batch_id is None and serials == (None, None):
            done = single_codes.declare(single_codes.typed(code), reason, void=void)
            if as_json:
                echo_json(done)
            else:
                click.echo(f"{done['status']} {done['code']}")
            return
        if code is not None or batch_id is None:
            raise click.UsageError("give either a code, or --batch with or without --serials")
        which = "all codes" if serials == (None, None) else f"serials {serials[0]}-{serials[1]}"
        confirm(f"Make {which} of batch {batch_id} void at once?", yes=yes)
        declaration = voids.VoidDeclaration(
            batch=batch_id, first_serial=serials[0], last_serial=serials[1], reason=reason
        )
        declared = run_change(lambda plane: voids.declare(plane, declaration, void=void, actor=ACTOR))
        if as_json:
            echo_json(declared.document())
        else:
            click.echo(declared.shown_id)

    if void:
        yes_option(command)


def _parse_serials(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int | None, int | None]:
    """Parse A-B, or one serial as a range of one; without the option, both are None."""
    if text is None:
        return None, None
    match = _SERIALS.fullmatch(text)
    if not match:
        raise click.BadParameter("must be one serial, or two with a dash between them")
    return int(match[1]), int(match[2] or match[1])


_add_void_command(
    "void", "Void one code, a batch, or a range of a batch: redemptions are refused from now on.", void=True
)
_add_void_command("unvoid", "Lift the void of one code, a batch, or a range of a batch.", void=False)


@codes.command("rotate-key")
def rotate_key() -> None:
    """Add a mint key for all later batches, and print its name.

    The old mint keys stay: the codes of earlier batches need them.
    """
    settings = load_settings()
    if settings.mint_keys:
        raise click.ClickException("the mint keys come from REDEEM_MINT_KEYS: append a new key there")
    try:
        click.echo(mint_keys.rotate(settings.mint_keys_path))
    except mint_keys.MintKeyError as error:
        raise click.ClickException(str(error)) from error


def _summary(minted: MintedBatch) -> str:
    batch = minted.batch
    return (
        f"Batch {batch.id}: {batch.count:,} codes in {batch.format};"
        f" one guess succeeds with a chance of {minted.chance}."
    )


def _export(batch: Batch, settings: Settings, out: str, write: Write) -> None:
    """Write header and codes in constant memory; the audit log gets its entry before the first code."""
    chunks = batches.codes(batch, settings)
    details: dict[str, object] = {"format": "csv", "out": out, "os_user": _os_user()}

    async def act(plane: ControlPlane) -> None:
        async with batches.exporting(plane, batch, actor=ACTOR, details=details):
            await _write_codes(chunks, batch.count, write)

    run(act, settings)


async def _write_codes(chunks: Iterator[bytes], count: int, write: Write) -> None:
    """Write the codes; show the progress on stderr when it takes long."""
    write(batches.CSV_HEADER)
    done, reported_at = 0, time.monotonic()
    for chunk in chunks:
        write(chunk)
        done += chunk.count(b"\n")
        if time.monotonic() - reported_at > PROGRESS_INTERVAL_S and done < count:
            reported_at = time.monotonic()
            click.echo(f"{done:,} of {count:,} codes ({100 * done // count} %)", err=True)
        await asyncio.sleep(0)  # so that Ctrl-C can interrupt


def _os_user() -> str:
    """Return the name of the OS user who runs this command, or the uid if it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name is usual in containers
        return str(os.getuid())


codes.add_command(single_codes.check)
codes.add_command(single_codes.adjust)
codes.add_command(import_codes)
codes.add_command(list_problems)
codes.add_command(discard_import)
