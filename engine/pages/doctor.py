"""``redeem doctor`` for the dashboard: in a process of its own, so that no redemption waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from engine.errors import StoreUnavailable
from engine.settings import without_settings
from engine.times import instant

if TYPE_CHECKING:
    from engine.settings import Settings

EXAMINE_S_MAX: Final = 30.0
KEPT_S: Final = 5.0
_COMMAND: Final = (sys.executable, "-P", "-m", "engine.cli", "doctor", "--json")
_METRICS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"  # its counters would be added to those of the workers


class Doctor:
    """Examines the deployment that a worker belongs to, one examination at a time."""

    def __init__(self, settings: Settings) -> None:
        self._environment = without_settings(os.environ) | settings.to_environ()
        self._environment.pop(_METRICS_DIR, None)
        self._running = asyncio.Lock()
        self._report: dict[str, Any] = {}
        self._until = 0.0

    async def examine(self) -> dict[str, Any]:
        """Return what ``redeem doctor --json`` prints and ``at``, its time; it is at most some seconds old.

        Raises:
            StoreUnavailable: it did not end in time, or printed nothing that can be read.
        """
        async with self._running:
            if time.monotonic() >= self._until:
                self._report = await self._run()
                self._until = time.monotonic() + KEPT_S
            return self._report

    async def _run(self) -> dict[str, Any]:
        nothing = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, env=self._environment, stdin=nothing, stdout=asyncio.subprocess.PIPE, stderr=nothing
        )
        try:
            async with asyncio.timeout(EXAMINE_S_MAX):
                printed, _ = await process.communicate()
            return {"at": instant(int(time.time() * 1000)), **orjson.loads(printed)}
        except TimeoutError:
            raise StoreUnavailable("doctor gave no answer in time") from None
        except orjson.JSONDecodeError:
            raise StoreUnavailable("doctor gave no answer that can be read") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
