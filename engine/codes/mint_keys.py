"""Mint keys: where they are read from, and how a new one is added.

The keys that turn (batch, serial) into codes live outside both databases: in a file that
only its owner can read, or in an environment variable (DESIGN section 4). A batch names
its key, so old keys stay readable for as long as their codes are in circulation; new
batches use the last one. Losing a key loses every code minted under it, so a file is
created and replaced only as a whole, and on disk before anything is reported.

A file has one `name hex` pair a line, 64 hex digits, and comments after `#`. No message
and no repr shows a key.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from engine.settings import Settings

KEY_BYTES: Final = 32
FILE_BYTES_MAX: Final = 65_536

_FILE_MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_NUMBERED: Final = re.compile(r"k([1-9][0-9]*)")


class MintKeyError(ValueError):
    """The mint keys cannot be used: missing, malformed, or readable by others."""


@dataclass(frozen=True, slots=True)
class MintKeys:
    """All mint keys by name, and the name of the one that new batches use."""

    current: str
    by_name: Mapping[str, bytes] = field(repr=False)


def load(path: Path) -> MintKeys:
    """Read the keys of a file that only its owner can read; the last one is current.

    Raises:
        MintKeyError: the file is missing, malformed, empty, or open to group or others.
    """
    descriptor = _open(path)
    try:
        return _parse_file(path, _read(path, descriptor))
    finally:
        os.close(descriptor)


def from_settings(settings: Settings) -> MintKeys:
    """The keys this process was told to use: the setting itself, else the file.

    Raises:
        MintKeyError: there are none, or they cannot be used.
    """
    return from_text(settings.mint_keys) if settings.mint_keys else load(settings.mint_keys_path)


def from_text(text: str) -> MintKeys:
    """Read keys from `name:hex,name2:hex`, as in an environment variable; the last is current.

    Raises:
        MintKeyError: it is malformed or empty.
    """
    items = ((number, item.strip()) for number, item in enumerate(text.split(","), 1))
    pairs = ((number, item.partition(":")[::2]) for number, item in items if item)
    return _collect("the mint key setting", pairs, "entry")


def create_file(path: Path) -> str:
    """Create a key file with one new key, and return its name.

    Raises:
        MintKeyError: the file exists; it is never overwritten.
        OSError: it could not be written.
    """
    try:
        _write_new(path, f"# mint keys: the last one is for new batches\nk1 {_new_key()}\n".encode())
    except FileExistsError:
        raise MintKeyError(f"{path} exists already; add a key to it by rotating") from None
    _sync_directory(path)
    return "k1"


def rotate(path: Path) -> str:
    """Add a new key, `k` and the next number, for new batches, and return its name.

    The file is replaced in one step and is on disk on return; a rotation under way in
    another process is waited for.

    Raises:
        MintKeyError: as `load`.
        OSError: it could not be written; the old file is unharmed.
    """
    path = path.resolve()  # the file itself is replaced, not a link to it
    with _locked(path) as descriptor:
        old = _read(path, descriptor)
        numbers = [
            int(match[1]) for key in _parse_file(path, old).by_name if (match := _NUMBERED.fullmatch(key))
        ]
        name = f"k{max(numbers, default=0) + 1}"
        if not old.endswith(b"\n"):
            old += b"\n"
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            _write_new(temporary, old + f"{name} {_new_key()}\n".encode(), owner=os.fstat(descriptor))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path)
    return name


def _new_key() -> str:
    return secrets.token_hex(KEY_BYTES)


def _open(path: Path) -> int:
    """A descriptor of the file, after the checks on it."""
    try:
        # Not blocking, so that a pipe in its place is refused below and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MintKeyError(f"cannot read mint keys from {path}: {error.strerror}") from None
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a file"
    elif status.st_mode & _OTHERS:
        problem = f"can be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}"
    elif status.st_size > FILE_BYTES_MAX:
        problem = f"is larger than {FILE_BYTES_MAX} bytes"
    if problem is not None:
        os.close(descriptor)
        raise MintKeyError(f"mint key file {path} {problem}")
    return descriptor


def _read(path: Path, descriptor: int) -> bytes:
    content = os.pread(descriptor, FILE_BYTES_MAX + 1, 0)
    if len(content) > FILE_BYTES_MAX:
        raise MintKeyError(f"mint key file {path} is larger than {FILE_BYTES_MAX} bytes")
    return content


def _parse_file(path: Path, content: bytes) -> MintKeys:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise MintKeyError(f"mint key file {path} is not text") from None
    words = ((number, line.partition("#")[0].split()) for number, line in enumerate(lines, 1))
    pairs = ((number, (line[0], " ".join(line[1:]))) for number, line in words if line)
    return _collect(f"mint key file {path}", pairs, "line")


def _collect(source: str, pairs: Iterable[tuple[int, tuple[str, str]]], unit: str) -> MintKeys:
    """Keys from numbered (name, hex) pairs; what is wrong is told by its number, never by its text."""
    keys: dict[str, bytes] = {}
    current = None
    for number, (name, digits) in pairs:
        if not (_NAME.fullmatch(name) and _HEX.fullmatch(digits)):
            raise MintKeyError(f"{source}, {unit} {number}: expected a name and {2 * KEY_BYTES} hex digits")
        key = bytes.fromhex(digits)
        if name in keys or key in keys.values():
            raise MintKeyError(f"{source}, {unit} {number}: a name or a key occurs twice")
        keys[name] = key
        current = name
    if current is None:
        raise MintKeyError(f"{source} holds no key")
    return MintKeys(current, MappingProxyType(keys))


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, locked against other rotations; opened again where one has just replaced it."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _write_new(path: Path, content: bytes, *, owner: os.stat_result | None = None) -> None:
    """Write a file that must not exist yet, through to the disk; leaves none behind if it fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)  # whatever the umask took away
            if owner is not None and owner.st_uid != os.fstat(file.fileno()).st_uid:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
