"""Which Pythons this machine has: one of each minor version, the newest release where there are several.

A program of its own, so that it runs before anything is installed:

* ``python3 tests/pythons.py others``: lines of version and path, without the version that runs this;
* ``python3 tests/pythons.py this``: the version that runs this;
* ``python3 tests/pythons.py missing``: the versions that are supported or next, and not here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

OLDEST: Final = (3, 11)
WANTED: Final = ((3, 11), (3, 12), (3, 13), (3, 14))
"""What is looked for by name, and named where it is not here."""
ANSWER_TIMEOUT_S: Final = 20.0
# What the path has may be a shim, which refuses or leads elsewhere tomorrow, or a Python without venv.
QUESTION: Final = "import ensurepip, sys, venv; print(*sys.version_info[:3], sys.executable)"


def pythons() -> dict[tuple[int, int], Path]:
    """Each minor version from the oldest supported on, and an interpreter that can make an environment."""
    found: dict[tuple[int, int, int], Path] = {}
    for candidate in _candidates():
        if (answer := _asked(candidate)) and answer[0][:2] >= OLDEST:
            found.setdefault(*answer)
    return {version[:2]: found[version] for version in sorted(found)}


def _candidates() -> list[Path]:
    names = ["python3", *(f"python{major}.{minor}" for major, minor in WANTED)]
    on_path = [Path(where) / name for where in os.get_exec_path() for name in names]
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    every = [Path(sys._base_executable), *on_path, *sorted(kept.glob("3.*/bin/python3"))]  # type: ignore[attr-defined] # there is no public name
    return [path for path in every if os.access(path, os.X_OK) and not _in_environment(path)]


def _in_environment(python: Path) -> bool:
    return (python.parent.parent / "pyvenv.cfg").exists()


def _asked(python: Path) -> tuple[tuple[int, int, int], Path] | None:
    """Its version and its own path; None where it cannot be used."""
    try:
        told = subprocess.run(
            (python, "-I", "-c", QUESTION),
            capture_output=True,
            text=True,
            check=True,
            timeout=ANSWER_TIMEOUT_S,
        ).stdout
        major, minor, micro, path = told.rstrip("\n").split(" ", 3)
        return (int(major), int(minor), int(micro)), Path(path)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def main() -> None:
    """Print what was asked for."""
    if sys.argv[1:] == ["this"]:
        print("{}.{}".format(*sys.version_info))  # noqa: T201 - what was asked for
        return
    here = pythons()
    if sys.argv[1:] == ["others"]:
        lines = [
            f"{major}.{minor} {path}"
            for (major, minor), path in here.items()
            if (major, minor) != sys.version_info[:2]
        ]
    elif sys.argv[1:] == ["missing"]:
        lines = [f"{major}.{minor}" for major, minor in WANTED if (major, minor) not in here]
    else:
        sys.exit(__doc__)
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
