"""Reads mint keys, creates key files, and adds new keys.

Mint keys turn (batch, serial) into codes. They are kept outside both databases: in a file that only its owner
can read, or in an environment variable. Each batch names its key. New batches use the last
key; old keys stay in the file while their codes are in use. If a key is lost, every code minted under it is
lost. So a file is always replaced as a whole, and it is on disk before the new key is reported.

A file has one `name hex` pair per line, with 64 hex digits, and comments after `#`. No message and no repr
shows a key.
"""

from __future__ import annotations

import fcntl
import hmac
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
CHECK_BYTES: Final = 16
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
    """All mint keys by name. ``current`` is the name of the key for new batches."""

    current: str
    by_name: Mapping[str, bytes] = field(repr=False)


def load(path: Path) -> MintKeys:
    """Read the keys of a file that only its owner can read. The last key is current.

    Raises:
        MintKeyError: the file is missing, malformed, empty, or open to group or others.
    """
    descriptor = _open(path)
    try:
        return _parse_file(path, _read(path, descriptor))
    finally:
        os.close(descriptor)


def from_settings(settings: Settings) -> MintKeys:
    """Read the keys from the setting, or from the key file if the setting is empty.

    Raises:
        MintKeyError: there are no keys, or they cannot be used.
    """
    return from_text(settings.mint_keys) if settings.mint_keys else load(settings.mint_keys_path)


def from_text(text: str) -> MintKeys:
    """Read keys from the text `name:hex,name2:hex` of an environment variable. The last key is current.

    Raises:
        MintKeyError: the text is malformed or empty.
    """
    items = ((number, item.strip()) for number, item in enumerate(text.split(","), 1))
    pairs = ((number, item.partition(":")[::2]) for number, item in items if item)
    return _collect("the mint key setting", pairs, "entry")


def check_value(key: bytes) -> bytes:
    """The value by which a key is recognised: HMAC-SHA256 of a constant, 16 bytes.

    A key has 256 random bits, so the value tells nothing about it, and it checks no code.
    """
    return hmac.digest(key, b"redeem mint key check v1", "sha256")[:CHECK_BYTES]


def create_file(path: Path) -> str:
    """Create a key file with one new key, and return its name.

    Raises:
        MintKeyError: the file exists already. It is never overwritten.
        OSError: the file could not be written.
    """
    try:
        _write_new(path, f"# mint keys: the last one is for new batches\nk1 {_new_key()}\n".encode())
    except FileExistsError:
        raise MintKeyError(f"{path} exists already; add a key to it with `redeem codes rotate-key`") from None
    _sync_directory(path)
    return "k1"


def rotate(path: Path) -> str:
    """Add a new key for new batches, and return its name: `k` and the next number.

    The file is replaced in one step, and it is on disk on return. If another process is rotating, this waits
    for it.

    Raises:
        MintKeyError: as `load`.
        OSError: the new file could not be written; the old file is unchanged.
    """
    path = path.resolve()  # if the path is a symbolic link, replace the file behind it
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
    """Open the file and check its type, mode and size."""
    try:
        # Non-blocking: if the path is a pipe, open() must not wait; it is refused below.
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
    """Collect keys from numbered (name, hex) pairs. An error names the number of a pair, never its text."""
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
    """Open the file and lock it against other rotations. Open it again if a rotation has just replaced it."""
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
    """Write a new file and fsync it. If this fails, the file is removed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)  # the umask may have removed some bits
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
