"""Runs attempts that need a reason: each gets an entry in the audit log first, and its outcome afterwards."""

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
    """Look up a typed code, then run a void, unvoid or adjustment on it with an entry in the audit log.

    Raises:
        Refusal: there is no such code, or the reason contains it or another code.
        Fault: the code cannot be looked up, or the attempt cannot be recorded; nothing was done.
    """
    core.refuse_codes(attempt.key, reason=attempt.reason)
    attempt.bind_code(await core.find(code, attempt.key, attempt.reason))
    return await on_record(core, database, attempt, f"code:{attempt.batch}:{attempt.serial}")


async def on_record(core: Core, database: Database, attempt: Rollback | Correction, subject: str) -> Outcome:
    """Run an attempt that is bound to its code, with an entry in the audit log.

    Raises:
        Refusal: ``idempotency_key_reused``: a configuration change used the key; nothing was done.
        StoreUnavailable, OutcomeUnknown: the attempt cannot be recorded; nothing was done.
    """
    async with database.transaction() as connection:
        if attempt.key and await change_records.is_used(connection, attempt.actor, attempt.key):
            raise Refusal("idempotency_key_reused")
        act = await audit_log.record(
            connection, act=attempt.act, actor=attempt.actor, subject=subject, reason=attempt.reason
        )
    outcome = await core.answer_bound(attempt)
    with contextlib.suppress(StoreUnavailable, OutcomeUnknown):  # the attempt is done: answer its outcome
        async with database.transaction() as connection:
            await audit_log.finish(connection, act, _ended_as(attempt, outcome))
    return outcome


def _ended_as(attempt: Rollback | Correction, outcome: Outcome) -> str:
    if isinstance(outcome, Retry):
        raise ContractViolation("only attempts on holds may ask for a retry")
    if outcome.replayed:
        return "replayed"  # this call did nothing
    return outcome.code if isinstance(outcome, Refused | RefusedTogether) else attempt.success
