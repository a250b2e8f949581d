"""``redeem codes``: mint a batch, export it again, rotate the mint key."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from engine import batches, mint_keys
from engine.cli.connect import echo_json, load_settings, run, run_change
from engine.formats import DEFAULT_FORMAT, FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.batches import Batch, MintedBatch
    from engine.settings import Settings

    Write = Callable[[bytes], object]

STDOUT: Final = "-"
FILE_MODE: Final = 0o600
PROGRESS_INTERVAL_S: Final = 2.0
_out = click.option(
    "--out", default=STDOUT, show_default=True, metavar="FILE|-", help="Where to write the CSV."
)


@click.group()
def codes() -> None:
    """Mint and export codes, rotate the mint key."""


@codes.command()
@click.argument("campaign_id", metavar="CAMPAIGN")
@click.option("--count", type=int, required=True, help="How many codes.")
@click.option(
    "--format", "format_name", default=DEFAULT_FORMAT.name, show_default=True, help=", ".join(FORMATS)
)
@click.option("--prefix", help="What stands before each code, such as SUMMER.")
@_out
@click.option("--json", "as_json", is_flag=True, help="Print the batch as JSON; needs --out FILE.")
def mint(
    campaign_id: str, count: int, format_name: str, prefix: str | None, out: str, *, as_json: bool
) -> None:
    """Issue a batch of new codes and write them as CSV, with the header `code,serial`."""
    if as_json and out == STDOUT:
        raise click.UsageError("--json needs --out FILE: the codes go to stdout")
    settings = load_settings()
    new = batches.NewBatch(count, format_name, prefix)
    minted = None
    try:
        with _opened(out) as write:
            minted = run_change(
                lambda plane: batches.mint(plane, campaign_id, new, created_by="cli"), settings
            )
            click.echo(_summary(minted), err=True)
            _write_codes(minted.batch, settings, write)
    except BrokenPipeError:
        raise
    except OSError as error:
        if minted is None:
            raise
        raise click.ClickException(
            f"batch {minted.batch.id} is issued, but not written ({error.strerror}):"
            f" get its codes with `redeem codes export {minted.batch.id}`"
        ) from error
    if as_json:
        echo_json(minted.document())


@codes.command()
@click.argument("batch_id", metavar="BATCH", type=int)
@_out
def export(batch_id: int, out: str) -> None:
    """Write the codes of a batch again, exactly as minting wrote them."""
    settings = load_settings()
    batch = run(lambda plane: batches.get(plane, batch_id), settings)
    with _opened(out) as write:
        _write_codes(batch, settings, write)


@codes.command("rotate-key")
def rotate_key() -> None:
    """Add a new mint key for batches from now on, and print its name. Keep the old ones."""
    settings = load_settings()
    if settings.mint_keys:
        raise click.ClickException(
            "the mint keys are in REDEEM_MINT_KEYS: add the new one there, as the last"
        )
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


def _write_codes(batch: Batch, settings: Settings, write: Write) -> None:
    """Header and codes, in constant memory; tells on stderr how far it is when it takes long."""
    chunks = batches.codes(batch, settings)
    write(batches.CSV_HEADER)
    done, told_at = 0, time.monotonic()
    for chunk in chunks:
        write(chunk)
        done += chunk.count(b"\n")
        if time.monotonic() - told_at > PROGRESS_INTERVAL_S and done < batch.count:
            told_at = time.monotonic()
            click.echo(f"{done:,} of {batch.count:,} codes ({100 * done // batch.count} %)", err=True)


@contextlib.contextmanager
def _opened(out: str) -> Iterator[Write]:
    """Where to write: stdout, or a file that has its name only once it is whole and on disk."""
    if out == STDOUT:
        stream = sys.stdout.buffer
        yield stream.write
        stream.flush()
        return
    path = Path(out).resolve()  # a link stays, the file it leads to is replaced
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device.write
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
