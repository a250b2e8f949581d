"""Runs the command ``redeem`` in a separate process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from engine.settings import Settings

COMMAND: Final = (sys.executable, "-m", "engine.cli")
ROOT: Final = Path(__file__).parents[2]


def environment(settings: Settings, **others: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDEEM_")}
    return kept | {
        "REDEEM_REDIS_URL": settings.redis_url,
        "REDEEM_DATABASE_URL": settings.database_url,
        "REDEEM_DATA_DIR": str(settings.data_dir),
        "REDEEM_MINT_KEYS": settings.mint_keys,
        "PYTHONPATH": str(ROOT),
        **others,
    }


class Cli:
    """Runs the command in a separate process, on the test's servers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def __call__(self, *arguments: str, **others: str) -> tuple[int, str, str]:
        """Run the command; return exit status, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            cwd=self.settings.data_dir,
            env=environment(self.settings, **others),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def done(self, *arguments: str) -> str:
        """Run a command that must succeed; return its stdout."""
        status, out, err = await self(*arguments)
        assert status == 0, err
        return out

    async def json(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        return json.loads(await self.done(*arguments, "--json"))

    async def refused(self, *arguments: str, **others: str) -> str:
        """Run a command that must be refused; return its one line on stderr."""
        status, out, err = await self(*arguments, **others)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err


def redeem(settings: Settings, *arguments: str) -> str:
    """Run a command that must succeed beside a running ``redeem up``; return its stdout."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=settings.to_environ() | {"PYTHONPATH": str(ROOT)}, cwd=settings.data_dir,
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
