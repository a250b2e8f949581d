"""Says which lane the workers of this installation run, and makes the express lane where it was built."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from engine.compiled import find_compiled
from engine.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.guard.signatures import SignedHead
    from engine.lane.protocol import FastLane
    from engine.lane.shared import Shared
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

    ExpressLanes = Callable[[Shared], Callable[[], FastLane]]

MODULE: Final = "engine.lane._express"
HOW_TO_BUILD: Final = (
    "install a C compiler and Python.h (Debian: gcc, python3-dev), then install the engine again"
)


def is_built() -> bool:
    """Whether this installation has the express lane."""
    return find_compiled(MODULE) is not None


def chosen_lane(settings: Settings) -> str:
    """Return ``express``, ``python`` or ``aiohttp``: the setting, or the fastest lane of this installation.

    Raises:
        SettingsError: the setting asks for the express lane, which was not built here.
    """
    if settings.lane in {"python", "aiohttp"}:
        return settings.lane
    if is_built():
        return "express"
    if settings.lane:
        raise SettingsError(
            f"REDEEM_LANE is express, but the express lane was not built: {HOW_TO_BUILD},"
            " or leave REDEEM_LANE empty"
        )
    return "python"


def express_lanes(
    known_with: Callable[[str, str], CachedKey | None],
    verify_at_once: Callable[[CachedKey, SignedHead | None, bytes], bytes | None],
    core: Core,
) -> ExpressLanes:
    """Return what makes the express lanes of a worker, once it has what they share.

    ``known_with`` finds the API key of an Authorization header with a scope, without waiting;
    ``verify_at_once`` verifies a signature (``Signatures``).
    """
    made: ExpressLanes = importlib.import_module(MODULE).express_lanes(known_with, verify_at_once, core)
    return made
