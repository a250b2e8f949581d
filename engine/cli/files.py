"""Opens the output of a command: stdout, or a file."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[[bytes], object]

STDOUT: Final = "-"
FILE_MODE: Final = 0o600


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to replace a file, unless ``force`` says so. A device can be written to.

    Raises:
        click.ClickException: the file exists.
    """
    if path.is_file() and not force:
        raise click.ClickException(f"{path} exists already; --force replaces it")


@contextlib.contextmanager
def opened(out: str, *, force: bool = False) -> Iterator[Write]:
    """Open stdout, or a file that gets its name only when it is complete and on disk.

    Raises:
        click.ClickException: there is such a file already, and not ``force``.
    """
    if out == STDOUT:
        stream = sys.stdout.buffer
        yield stream.write
        stream.flush()
        return
    path = Path(out).resolve()  # a symbolic link stays; its target is replaced
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device.write
        return
    refuse_existing(path, force=force)
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
