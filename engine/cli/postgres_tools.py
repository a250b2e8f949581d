"""Runs PostgreSQL's own programs (``pg_dump``, ``pg_restore``) on the database of a URL."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from engine.bundled import postgres_program
from engine.errors import StoreUnavailable
from engine.settings import without_settings

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES: Final = 1 << 20
_PASSWORD: Final = "PGPASSWORD"  # noqa: S105 - the name of a variable


def database_name(url: str) -> str:
    """Return the name of the database in a URL; empty if it has none."""
    return unquote(urlsplit(url).path.lstrip("/"))


def with_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return _joined(urlsplit(url)._replace(path="/" + quote(name)))


async def run_tool(
    name: str, url: str, *arguments: str, write: Callable[[bytes], object] | None = None
) -> None:
    """Run a program on a database to its end; ``write`` takes its output.

    The password goes through the environment: others can read a command line.

    Raises:
        StoreUnavailable: there is no such program, or it failed.
    """
    target, secrets = _without_password(url)
    process = await asyncio.create_subprocess_exec(
        _program(name),
        f"--dbname={target}",
        "--no-password",
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if write else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=without_settings(os.environ) | secrets,
    )
    try:
        errors = asyncio.create_task(process.stderr.read()) if process.stderr else None
        while write and process.stdout and (piece := await process.stdout.read(PIECE_BYTES)):
            write(piece)
        said = await errors if errors else b""
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        raise StoreUnavailable(f"{name} failed: {lines[0]}")


def _program(name: str) -> str:
    """Return the path of a program: of the bundled PostgreSQL, else of this machine.

    Raises:
        StoreUnavailable: there is none.
    """
    found = postgres_program(name) or shutil.which(name)
    if found is None:
        raise StoreUnavailable(f"{name} is not installed here: it is part of PostgreSQL's client programs")
    return str(found)


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without its password, and the environment that has it."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = [unquote(password)] if colon else [value for name, value in query if name == "password"]
    kept = urlencode([(name, value) for name, value in query if name != "password"], quote_via=quote)
    plain = _joined(parts._replace(netloc=f"{user}{at}{host}", query=kept))
    return plain, {_PASSWORD: given[0]} if given else {}


def _joined(parts: SplitResult) -> str:
    """Return the URL, with both slashes also where it names no host."""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if parts.query else ''}{parts.query}"
