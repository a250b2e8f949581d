"""Attempts that have a reason: each is in the audit log before it is made, and how it ended after."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.api.outcomes import Refused, RefusedTogether, Retry
from engine.control import audit_log
from engine.control import idempotency as change_records
from engine.errors import ContractViolation, OutcomeUnknown, Refusal, StoreUnavailable

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.database import Database
    from engine.redemption.core import Core
    from engine.redemption.correct import Correction, Rollback


async def correct(core: Core, database: Database, attempt: Correction, code: str) -> Outcome:
    """Make an attempt of administration on the code that was typed, on record.

    Raises:
        Refusal: there is no such code, or the reason contains it.
        Fault: the code cannot be looked up, or the attempt cannot be recorded; nothing was done.
    """
    attempt.bind_code(await core.find(code, attempt.key, attempt.reason))
    return await on_record(core, database, attempt, f"code:{attempt.batch}:{attempt.serial}")


async def on_record(core: Core, database: Database, attempt: Rollback | Correction, subject: str) -> Outcome:
    """Make an attempt that knows its code, on record.

    Raises:
        Refusal: ``idempotency_key_reused``: the key made a change of administration; nothing was done.
        StoreUnavailable, OutcomeUnknown: it cannot be recorded; nothing was done.
    """
    async with database.transaction() as connection:
        if attempt.key and await change_records.is_used(connection, attempt.actor, attempt.key):
            raise Refusal("idempotency_key_reused")
        act = await audit_log.record(
            connection, act=attempt.act, actor=attempt.actor, subject=subject, reason=attempt.reason
        )
    outcome = await core.answer_bound(attempt)
    with contextlib.suppress(StoreUnavailable, OutcomeUnknown):  # what was done is done
        async with database.transaction() as connection:
            await audit_log.finish(connection, act, _ended_as(attempt, outcome))
    return outcome


def _ended_as(attempt: Rollback | Correction, outcome: Outcome) -> str:
    if isinstance(outcome, Retry):
        raise ContractViolation("only attempts on holds are made anew")
    if outcome.replayed:
        return "replayed"  # nothing was done by this call
    return outcome.code if isinstance(outcome, Refused | RefusedTogether) else attempt.success
