"""Runs ``redeem loadtest`` against one engine of real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tests.support.cli import Cli

if TYPE_CHECKING:
    from pathlib import Path

    from engine.settings import Settings

PEAK: Final = "20"
SECONDS: Final = "2"
THRESHOLDS: Final = "[default]\nerror_share = 0.0\n"  # nothing that depends on how fast this machine is


class LoadTests(Cli):
    """Runs the command against one engine."""

    def __init__(self, settings: Settings, url: str, directory: Path) -> None:
        super().__init__(settings)
        self.url = url
        self.directory = directory
        self.thresholds = directory / "thresholds.toml"
        self.thresholds.write_text(THRESHOLDS)

    async def run(self, scenario: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit status, result and stderr of a short run; ``arguments`` take precedence."""
        status, out, err = await self(
            *("loadtest", "run", scenario, "--json", "--peak", PEAK, "--seconds", SECONDS),
            *("--url", self.url, "--thresholds", str(self.thresholds)),
            *("--out", str(self.directory / scenario), *arguments),
        )
        return status, json.loads(out) if out else {}, err

    async def verify(self, scenario: str) -> tuple[int, dict[str, Any]]:
        """Exit status and findings of another look at a run."""
        at = str(self.directory / scenario)
        status, out, err = await self("loadtest", "verify", at, "--url", self.url, "--json", "--settle", "0")
        assert out, err
        return status, json.loads(out)
