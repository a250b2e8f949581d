"""What processes of one run show to Prometheus together, also those that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from engine.observability.exposition import exposition

if TYPE_CHECKING:
    from pathlib import Path

COUNT = "from prometheus_client import Counter; Counter('things', 'Things').inc()"


def test_a_process_killed_while_it_began_its_file_hides_nobody_elses_values(tmp_path: Path) -> None:
    shared = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COUNT], env=shared, check=True)
    (written, _) = tmp_path.glob("counter_*.db")
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "counter_2.db").write_bytes(bytes(written.stat().st_size))
    assert "things_total 2.0" in exposition(tmp_path).decode()
