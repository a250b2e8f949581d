"""A package index on loopback: the wheels that a lock names, and of each package a newer one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.utils import canonicalize_name, parse_wheel_filename

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWER: Final = "9999.0"
DOWNLOAD_S_MAX: Final = 600.0


class Index:
    """What it offers lies in one directory; it remembers what it was asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offered: dict[str, list[Path]] = {}
        self.asked: list[str] = []
        self.url = ""

    @property
    def names(self) -> set[str]:
        """The packages whose pages were asked for."""
        return {path.split("/")[2] for path in self.asked if path.startswith("/simple/")}

    @property
    def files(self) -> set[str]:
        """The wheels that were asked for, or their metadata."""
        return {Path(path).name for path in self.asked if path.startswith("/files/")}

    def offer(self, wheels: list[Path]) -> None:
        """These wheels, and a newer one of each package."""
        files = self._directory / "files"
        files.mkdir(parents=True)
        for wheel in wheels:
            name = parse_wheel_filename(wheel.name)[0]
            (files / wheel.name).symlink_to(wheel)
            self._offered.setdefault(name, [newer_wheel(name, files)]).append(files / wheel.name)
        for package, offered in self._offered.items():
            page = self._directory / "simple" / package / "index.html"
            page.parent.mkdir(parents=True)
            page.write_text("".join(map(_link, offered)), encoding="utf-8")

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """On a free port of loopback."""
        handler = partial(_Handler, self.asked, directory=str(self._directory))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}/simple"
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, asked: list[str], *arguments: object, directory: str) -> None:
        self._asked = asked
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type] # what the server passes on

    def log_message(self, *_: object) -> None:
        """Keep the path instead of printing a line."""
        self._asked.append(self.path)


def newer_wheel(name: str, into: Path) -> Path:
    """A wheel that can be installed and holds nothing, of a version above all others."""
    stem = f"{name.replace('-', '_')}-{NEWER}"
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {NEWER}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = "".join(f"{stem}.dist-info/{file},,\n" for file in (*contents, "RECORD"))
    path = into / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in (contents | {"RECORD": lines}).items():
            wheel.writestr(f"{stem}.dist-info/{file}", text)
    return path


def fetched(python: Path, lock: Path, kept: Path, into: Path) -> list[Path]:
    """The wheels of a lock for a Python, its hashes checked: from those kept, else from the package index."""
    pip = (python, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", into)
    locked = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", lock)
    kept.mkdir(parents=True, exist_ok=True)
    alone = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(kept)}
    offline = subprocess.run(
        (*pip, "--no-index", *locked), env=alone, capture_output=True, check=False, timeout=DOWNLOAD_S_MAX
    )
    if offline.returncode:
        online = subprocess.run(
            (*pip, *locked), capture_output=True, text=True, check=False, timeout=DOWNLOAD_S_MAX
        )
        assert online.returncode == 0, online.stderr[-2000:]
    wheels = sorted(into.glob("*.whl"))
    for wheel in wheels:
        _keep(wheel, kept / wheel.name)
    return wheels


def _keep(wheel: Path, place: Path) -> None:
    """As a second name of the file where that goes; another process may do the same at once."""
    if place.exists():
        return
    half = place.with_name(f"{place.name}.{os.getpid()}")
    half.write_bytes(wheel.read_bytes())
    half.replace(place)


def _link(wheel: Path) -> str:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f'<a href="../../files/{wheel.name}#sha256={digest}">{wheel.name}</a><br>\n'


def canonical(name: str) -> str:
    """One spelling of a package's name."""
    return canonicalize_name(name)
