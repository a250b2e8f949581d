"""The wheel carries what runs, and nothing that only measures a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from engine.lane.choice import is_built

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("engine", "lua", "persister", "loadtest")
NOT_CARRIED: Final = ("loadtest/benchmarks/", "loadtest/comparators/")
CARRIED: Final = {".py", ".pyi", ".lua", ".sql", ".toml", ".json", ".css"}


def test_a_wheel_has_every_module_script_and_query_but_no_benchmark(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    )
    subprocess.run((*build, "--wheel-dir", str(tmp_path), str(source)), check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist()) == is_built()
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if Path(name).suffix in CARRIED}
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in CARRIED and "__pycache__" not in path.parts
    }
    assert carried == {name for name in expected if not name.startswith(NOT_CARRIED)}
