"""The built pages: read from their directory, in the form that a browser takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from engine.pages.built_pages import BuiltPages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    assets = tmp_path / "built" / "assets"
    assets.mkdir(parents=True)
    (tmp_path / "secret.html").write_text("not a page")
    (assets.parent / "index.html").write_text("<!doctype html>")
    (assets / "main-1a2b.js").write_text("plain")
    (assets / "main-1a2b.js.br").write_bytes(b"by brotli")
    (assets / "main-1a2b.js.gz").write_bytes(b"by gzip")
    (assets / "notes.md").write_text("not for browsers")
    return assets.parent


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
        ("br;q=0,gzip;q=0.0", "identity"),
        ("", "identity"),
        ("BR", "br"),
    ],
)
def test_a_file_is_sent_in_the_smallest_form_that_the_browser_takes(
    directory: Path, accepted: str, coding: str
) -> None:
    found = BuiltPages(directory).file("assets/main-1a2b.js")
    assert found
    assert found.form(accepted) == (coding, found.forms[coding])
    assert set(found.forms) == {"identity", "br", "gzip"}
    assert found.content_type == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "name",
    ["../secret.html", "assets/../../secret.html", "assets/notes.md", "assets/main-1a2b.js.br", "", "assets"],
)
def test_only_files_of_the_pages_are_served(directory: Path, name: str) -> None:
    assert BuiltPages(directory).file(name) is None


def test_pages_that_are_built_while_the_engine_runs_are_served(directory: Path) -> None:
    index = directory / "index.html"
    index.unlink()
    pages = BuiltPages(directory)
    assert pages.file("index.html") is None
    index.write_text("first")
    first = pages.file("index.html")
    index.write_text("second")
    os.utime(index, (0, 0))
    second = pages.file("index.html")
    assert first
    assert second
    assert (first.forms["identity"], second.forms["identity"]) == (b"first", b"second")
    assert first.etag != second.etag
