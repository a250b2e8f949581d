"""The table of operations: every script about codes that a worker calls, and how the dispatcher sends it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from engine.guard.block_table import BlockTable
from engine.guard.guard import Guard
from engine.redemption.check import Check
from engine.redemption.combined import Combined
from engine.redemption.core import Core
from engine.redemption.correct import Adjustment, Rollback, Voiding
from engine.redemption.cross_shard_step import CrossShardStep
from engine.redemption.hold import Confirmation, Hold, Release
from engine.redemption.hold_expiry import expire_holds
from engine.redemption.key_reservation import KeyReservation
from engine.redemption.one_answer import OneAnswerCheck, OneAnswerHold, OneAnswerRedemption
from engine.redemption.prepared import Abort, Commit, Prepare
from engine.redemption.redeem import Redemption
from engine.store.dispatcher import Dispatcher, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engine.observability.metrics import Telemetry
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache

OPERATIONS: Final = (
    Operation(Redemption.script, starts_new=True),
    Operation(Combined.script, starts_new=True, batch_max=1),
    Operation(CrossShardStep.script),
    Operation(Prepare.script, starts_new=True, batch_max=1),
    Operation(Commit.script, batch_max=1),
    Operation(Abort.script, batch_max=1),
    Operation(KeyReservation.script),
    Operation(Hold.script, starts_new=True),
    Operation(Confirmation.script),
    Operation(Release.script),
    Operation(Rollback.script),
    Operation(Voiding.script),
    Operation(Adjustment.script),
    Operation(Check.script),
    Operation(OneAnswerRedemption.script, starts_new=True),
    Operation(OneAnswerHold.script, starts_new=True),
    Operation(OneAnswerCheck.script),
)


def make_core(
    settings: Settings,
    configuration: ConfigurationCache,
    redis: Redis,
    telemetry: Telemetry,
    verify: Callable[[int], Awaitable[None]] | None = None,
    *,
    guard: Guard | None = None,
) -> Core:
    """Build the core of one process. ``core.dispatcher.open()`` connects it.

    ``verify`` is awaited with a shard's number before a new connection to it is used. Without a ``guard``
    nobody is blocked, but limits hold.
    """
    dispatcher = Dispatcher(settings, configuration, telemetry, OPERATIONS, verify)
    core = Core(dispatcher, redis, guard or Guard(settings, BlockTable()))
    core.guard.tell_of_attempts(dispatcher)
    dispatcher.reserve_key = functools.partial(KeyReservation, dispatcher)
    dispatcher.expire_holds = functools.partial(expire_holds, core)
    return core
