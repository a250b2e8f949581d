"""The pages that `web` was built into: every file in memory, also in its compressed forms.

The build writes them into ``built`` beside this module. They are not committed; wheel and image carry them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

DIRECTORY: Final = Path(__file__).parent / "built"
INDEX: Final = "index.html"
ASSETS: Final = "assets/"
ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}
"""The content codings that are made in advance, the smallest first, and how their files end."""
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}


class BuiltFile(NamedTuple):
    """A file of the pages. ``forms``: its bytes by content coding; ``identity`` is always there.

    ``etag`` is weak, because all forms have the same one (RFC 9110, section 8.8.1).
    """

    content_type: str
    etag: str
    forms: dict[str, bytes]

    def form(self, accept_encoding: str) -> tuple[str, bytes]:
        """Return the content coding to send, and the bytes (RFC 9110, section 12.5.3)."""
        accepted = _accepted(accept_encoding)
        for coding in ENCODINGS:
            if coding in self.forms and coding in accepted:
                return coding, self.forms[coding]
        return "identity", self.forms["identity"]


class BuiltPages:
    """The files, read when they are first asked for, and again after another build."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or DIRECTORY
        self._files: dict[str, BuiltFile] = {}
        self._read_at: int | None = None

    def file(self, name: str) -> BuiltFile | None:
        """Return a file by its path below the directory; None if there is none. It may read the disk."""
        built_at = self._built_at()
        if built_at != self._read_at:
            self._files = {} if built_at is None else _read(self._directory)
            self._read_at = built_at
        return self._files.get(name)

    def _built_at(self) -> int | None:
        try:
            return (self._directory / INDEX).stat().st_mtime_ns
        except OSError:
            return None


def _read(directory: Path) -> dict[str, BuiltFile]:
    """Read all files of known types. What is not among them is served to nobody."""
    found = {}
    for path in sorted(directory.rglob("*")):
        content_type = _TYPES.get(path.suffix)
        if content_type is None or not path.is_file():
            continue
        forms = {"identity": path.read_bytes()}
        for coding, ending in ENCODINGS.items():
            compressed = path.with_name(path.name + ending)
            if compressed.is_file():
                forms[coding] = compressed.read_bytes()
        digest = hashlib.sha256(forms["identity"]).hexdigest()[:32]
        found[path.relative_to(directory).as_posix()] = BuiltFile(content_type, f'W/"{digest}"', forms)
    return found


def _accepted(header: str) -> set[str]:
    """Return the content codings that a client takes; one with the weight 0 is refused by it."""
    accepted = set()
    for part in header.split(","):
        coding, _, weight = part.partition(";")
        number = weight.strip().lower().removeprefix("q=").strip()
        if number not in {"0", "0.0", "0.00", "0.000"}:
            accepted.add(coding.strip().lower())
    return accepted
