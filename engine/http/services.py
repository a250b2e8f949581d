"""The objects that the handlers of one worker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from engine.guard.challenges import Challenges
    from engine.guard.client_addresses import ClientAddresses
    from engine.guard.limits import LimitTable
    from engine.guard.signatures import Signatures
    from engine.guard.user_tokens import UserTokens
    from engine.health.parts_watch import PartsWatch
    from engine.http.auth import Authenticator
    from engine.imports.importer import Importer
    from engine.ledger.feed_readers import Feed
    from engine.ledger.holds import Holds
    from engine.ledger.redemptions import Records
    from engine.ledger.stories import Stories
    from engine.pages.doctor import Doctor
    from engine.pages.live import LiveView
    from engine.redemption.core import Core
    from engine.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Connections and other objects of one worker. All are open as long as the application runs.

    Attributes:
        exports: a place for each export of codes that may run at once.
        sign_in_failures: addresses whose sign-ins to the dashboard have failed.
        metrics_dir: directory with the metrics of all processes of this deployment; None: only this
            process's own metrics are shown.
    """

    settings: Settings
    authenticator: Authenticator
    client_addresses: ClientAddresses
    signatures: Signatures
    user_tokens: UserTokens
    challenges: Challenges
    core: Core
    database: Database
    redis: Redis
    plane: ControlPlane
    records: Records
    holds: Holds
    stories: Stories
    feed: Feed
    importer: Importer
    exports: asyncio.Semaphore
    sign_in_failures: LimitTable
    live: LiveView
    doctor: Doctor
    parts: PartsWatch
    metrics_dir: Path | None

    @property
    def front_end_dir(self) -> Path | None:
        """The directory in which each worker of this front end has its ready file."""
        return self.metrics_dir.parent if self.metrics_dir else None


SERVICES: Final[web.AppKey[Services]] = web.AppKey("services")


def services_of(request: web.Request) -> Services:
    """Return the services of this process."""
    return request.app[SERVICES]
