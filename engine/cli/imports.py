"""``redeem codes import``: imports codes that were made elsewhere, and continues an interrupted import."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from engine.cli.connect import UNPUBLISHED, echo_json, run
from engine.cli.files import STDOUT, opened, refuse_existing
from engine.cli.options import ACTOR, json_option
from engine.imports import records
from engine.imports.importer import Importer, Upload
from engine.imports.parser import Form, guess_form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.imports.records import Import
    from engine.imports.runner import ImportOutcome

PIECE_BYTES: Final = 65_536
PROGRESS_INTERVAL_S: Final = 2.0
_GUESSABLE: Final = (
    "The codes can be guessed: they are short, or many for their length. Web pages that redeem codes of\n"
    "this campaign must solve challenges (docs/browser-keys.md)."
)


# The last line of the command reports a Redis error already.
logging.getLogger("engine.store.link").setLevel(logging.ERROR)


@click.command("import")
@click.argument("campaign_id", metavar="CAMPAIGN")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(Form)),
    help="File format; default: guessed from the beginning of the file.",
)
@click.option(
    "--report", metavar="FILE", help="List the lines that gave no code in this file, as `line,reason`."
)
@click.option("--force", is_flag=True, help="Replace the report's file if it exists.")
@click.option("--key", help="Idempotency key: the same import with the same key is made only once.")
@json_option
def import_codes(
    campaign_id: str,
    file: Path,
    form: str | None,
    report: str | None,
    key: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Import codes from CSV (a column `code`, or nothing but codes) or NDJSON.

    The engine keeps only digests of the codes. They can be redeemed once the whole file is imported.
    If the import is interrupted, run the same command again: it continues where it stopped.
    """
    if report == STDOUT:
        raise click.UsageError("--report needs a file: the result goes to stdout")
    if report is not None:
        refuse_existing(Path(report), force=force)

    async def act(plane: ControlPlane) -> ImportOutcome:
        with _source(file) as stream:
            source = _pieces(stream)
            beginning = await anext(source, b"")
            upload = Upload(
                campaign=campaign_id,
                form=Form(form) if form else guess_form(beginning),
                source=_chained(beginning, source),
                created_by=ACTOR,
                key=key,
            )
            outcome = await Importer(plane).run(upload, _Progress(_size(file)))
        if report is not None:
            await write_problems(plane, outcome.imported.name, report, force=True)
        return outcome

    outcome = run(act)
    if outcome.same_as:
        click.echo(f"The same file was imported before, as {outcome.same_as}.", err=True)
    if not outcome.published:
        click.echo(UNPUBLISHED, err=True)
    if as_json:
        echo_json(outcome.document())
    else:
        click.echo(_summary(outcome.imported))
        if outcome.imported.guessable:
            click.echo(_GUESSABLE)


@click.command("problems")
@click.argument("import_id", metavar="IMPORT")
@click.option("--out", default=STDOUT, show_default=True, metavar="FILE|-", help="Where to write the CSV.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def list_problems(import_id: str, out: str, *, force: bool) -> None:
    """Write the lines of an import that gave no code, as CSV with the header `line,reason`."""
    run(lambda plane: write_problems(plane, import_id, out, force=force))


@click.command("discard-import")
@click.argument("import_id", metavar="IMPORT")
def discard_import(import_id: str) -> None:
    """Discard an unfinished import, so that its codes can be imported again."""
    discarded = run(lambda plane: records.discard(plane, import_id, actor=ACTOR))
    click.echo(discarded.name)


async def write_problems(plane: ControlPlane, import_id: str, out: str, *, force: bool) -> None:
    """Write the lines that gave no code as CSV, in constant memory."""
    await records.get(plane, import_id)
    with opened(out, force=force) as write:
        write(records.PROBLEMS_HEADER)
        async for piece in records.problems(plane, import_id):
            write(piece)


class _Progress:
    """Shows the progress of a long import on stderr. ``size``: bytes of the file, if known."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._reported_at = time.monotonic()

    def __call__(self, imported: Import) -> None:
        if time.monotonic() - self._reported_at < PROGRESS_INTERVAL_S:
            return
        self._reported_at = time.monotonic()
        part = f" ({100 * imported.bytes // self._size} %)" if self._size else ""
        click.echo(f"{imported.name}: {imported.lines:,} lines, {imported.accepted:,} codes{part}", err=True)


def _summary(imported: Import) -> str:
    batch = f" as batch {imported.batch}" if imported.accepted else ""
    return (
        f"{imported.name}: {imported.lines:,} lines, {imported.accepted:,} accepted{batch},"
        f" {imported.duplicates:,} duplicates, {imported.unusable:,} unusable"
    )


def _source(file: Path) -> BinaryIO:
    return sys.stdin.buffer if str(file) == STDOUT else file.open("rb")


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


async def _pieces(stream: BinaryIO) -> AsyncIterator[bytes]:
    """Read a stream piece by piece, in a thread, because reading from a pipe may block."""
    read = getattr(stream, "read1", stream.read)
    while data := await asyncio.to_thread(read, PIECE_BYTES):
        yield data


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for data in rest:
        yield data
