"""The software bill of materials, and what ``make pip-audit`` says of what it could not check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "deploy" / "dependencies.py"
LOCK: Final = ROOT / "requirements.lock"
KNOWN: Final = {"id": "PYSEC-1", "fix_versions": ["2"]}


def run(*arguments: str, path: Path | None = None) -> tuple[int, str]:
    environment = dict(os.environ) if path is None else {"PATH": str(path)}
    argv = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout


def names_of(document: dict[str, Any]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", each["name"]).lower() for each in document["components"]}


def test_every_locked_package_is_in_the_bill() -> None:
    status, out = run("sbom", str(LOCK))
    document = json.loads(out)
    assert (status, document["bomFormat"]) == (0, "CycloneDX")
    locked = re.findall(r"^([a-z0-9-]+)==", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert names_of(document) == set(locked)
    assert {"redemption-engine", "aiohttp", "pytest"} <= names_of(json.loads(run("sbom")[1]))


def test_the_base_of_the_image_is_pinned_by_digest() -> None:
    (base,) = re.findall(
        r"^ARG PYTHON=(.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert re.fullmatch(r"python:[0-9.]+-slim-bookworm@sha256:[0-9a-f]{64}", base)


def test_without_pip_audit_it_says_that_nothing_was_checked(tmp_path: Path) -> None:
    status, out = run("audit", str(LOCK), path=tmp_path)
    assert status == 2
    assert out.startswith("NOT CHECKED: pip-audit is not on this machine")


@pytest.mark.parametrize(
    ("package", "status", "says"),
    [
        ({"name": "a", "version": "1", "vulns": []}, 0, "nothing is known against 1 packages"),
        ({"name": "a", "version": "1", "vulns": [KNOWN]}, 1, "a 1: PYSEC-1 (fixed in: 2)"),
        ({"name": "a", "skip_reason": "not found"}, 2, "no data here for 1 of 1 packages"),
        (None, 2, "cannot reach its data"),
    ],
)
def test_an_answer_without_data_is_not_taken_for_a_clean_one(
    tmp_path: Path, package: object, status: int, says: str
) -> None:
    """A pip-audit whose index knows none of the packages ends with 0. These answers have its form."""
    program = tmp_path / "pip-audit"
    text = "" if package is None else json.dumps({"dependencies": [package]})
    program.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
    program.chmod(0o755)
    returned, out = run("audit", str(LOCK), path=tmp_path)
    assert (returned, says in out) == (status, True), out
