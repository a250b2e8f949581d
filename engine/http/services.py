"""What the handlers of one worker work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from engine.http.auth import Authenticator
    from engine.imports.importer import Importer
    from engine.ledger.feed_readers import Feed
    from engine.ledger.redemptions import Records
    from engine.redemption.core import Core
    from engine.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything is open for as long as the application is.

    Attributes:
        metrics_dir: where the processes of this deployment keep their metrics; None for this one alone.
    """

    settings: Settings
    authenticator: Authenticator
    core: Core
    database: Database
    redis: Redis
    plane: ControlPlane
    records: Records
    feed: Feed
    importer: Importer
    metrics_dir: Path | None


SERVICES: Final[web.AppKey[Services]] = web.AppKey("services")


def services_of(request: web.Request) -> Services:
    """The services of this process."""
    return request.app[SERVICES]
