"""Erases a user's name from the ledger, on request of an operator."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.api.checks import check_text
from engine.control import audit_log
from engine.control.change import Changed, ControlPlane, claim_key, keep_answer, try_publish
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal, StoreUnavailable
from engine.ledger.stream_tail import entry_position, ledger_offsets
from engine.ledger.users import stored_name
from engine.queries import queries
from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.ledger.record import Position
    from engine.postgres_types import Connection

PSEUDONYM_BYTES: Final = 8
_POLL_S: Final = 0.05
_SQL: Final = queries(__package__, "erasure")


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """A done erasure: the user's new pseudonym, and the number of ledger entries that were changed."""

    user: str
    events: int

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. It does not contain the erased name."""
        return {"user": self.user, "status": "erased", "events": self.events}


async def erase(plane: ControlPlane, user: str, *, actor: str, reason: str | None = None) -> Changed[Erasure]:
    """Replace a user's name with a random pseudonym everywhere in the ledger. Sums do not change.

    Blocks of the user are lifted: without the name they cannot be applied.

    First waits until the ledger has every entry that the streams hold now, so that no older entry brings
    the name back. ``actor`` is the id of an API key, or ``cli``. The audit log has the pseudonym only, so
    nobody can find the pseudonym of a name.

    Raises:
        Refusal: ``user_not_found``; ``malformed_request``: the reason is invalid.
        Replayed: as ``IdempotencyRecord.claim``.
        StoreUnavailable: PostgreSQL or Redis cannot be used, the ledger does not catch up within
            ``erasure_timeout_s``, or the update takes longer than that; nothing is changed.
        OutcomeUnknown: PostgreSQL went away during the commit.
    """
    if reason is not None:
        check_text("reason", reason, plane.settings.reason_length_max)
    user = stored_name(user)
    async with plane.database.connection() as connection:
        await refuse_codes(connection, plane.settings, reason=reason)
    await _let_ledger_catch_up(plane)
    pseudonym = f"erased-{secrets.token_hex(PSEUDONYM_BYTES)}"
    timeout_s = plane.settings.erasure_timeout_s
    async with plane.database.transaction() as connection:
        await claim_key(plane, connection)
        await connection.execute(_SQL["erase_metadata"], user, timeout=timeout_s)
        done = await connection.execute(_SQL["erase"], user, pseudonym, timeout=timeout_s)
        of_rejects = await connection.execute(_SQL["erase_rejects"], user.encode(), pseudonym.encode())
        of_packed = await _erase_packed_rejects(connection, user, pseudonym)
        erasure = Erasure(user=pseudonym, events=_rows(done) + _rows(of_rejects) + of_packed)
        of_alerts = _rows(await connection.execute(_SQL["erase_alerts"], user, pseudonym))
        was_blocked = await _erase_blocks(connection, user, pseudonym, actor)
        if not (erasure.events or was_blocked or of_alerts):
            raise Refusal("user_not_found")
        await audit_log.record(
            connection,
            act="erase_user",
            actor=actor,
            subject=f"user:{pseudonym}",
            reason=reason,
            details={"events": erasure.events},
        )
        await keep_answer(plane, connection, erasure)
    await _forget_attempts(plane)
    return Changed(erasure, published=await try_publish(plane) if was_blocked else True)


async def _forget_attempts(plane: ControlPlane) -> None:
    """Remove what workers tell each other of the latest attempts. It ends by itself, too."""
    with contextlib.suppress(OSError, RedisError):
        await plane.redis.unlink(keys.guard_attempts())


async def _erase_packed_rejects(connection: Connection, user: str, pseudonym: str) -> int:
    """Replace the name wherever it is a JSON string of the line. Return how many rejects had it."""
    name, replacement = msgspec.json.encode(user), msgspec.json.encode(pseudonym)
    rejects = await connection.fetch(_SQL["packed_rejects"], name)
    for reject in rejects:
        *position, line = reject
        await connection.execute(_SQL["erase_packed_reject"], *position, line.replace(name, replacement))
    return len(rejects)


async def _erase_blocks(connection: Connection, user: str, pseudonym: str, actor: str) -> bool:
    """Lift the blocks of a user, and replace the name in them. Return whether there were any."""
    if not await connection.fetchval(_SQL["has_blocks"], user):
        return False
    version = await connection.fetchval(_SQL["next_version"])
    await connection.execute(_SQL["erase_blocks"], user, pseudonym, actor, version)
    return True


async def _let_ledger_catch_up(plane: ControlPlane) -> None:
    """Wait until the ledger has every entry that is in the streams at the start of this call."""
    deadline = asyncio.get_running_loop().time() + plane.settings.erasure_timeout_s
    async with plane.database.connection() as connection:
        offsets = await ledger_offsets(connection)
    ends = [end for shard in offsets if (end := await _end_of_stream(plane.redis, shard)) is not None]
    while any(offsets[end.shard] < end for end in ends):
        if asyncio.get_running_loop().time() > deadline:
            raise StoreUnavailable("the ledger has not caught up with the streams in time")
        await asyncio.sleep(_POLL_S)
        async with plane.database.connection() as connection:
            offsets = await ledger_offsets(connection)


async def _end_of_stream(redis: Redis, shard: int) -> Position | None:
    try:
        entries: Any = await redis.xrevrange(keys.events(shard), count=1)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return entry_position(shard, entries[0][0]) if entries else None


def _rows(status: str) -> int:
    return int(status.removeprefix("UPDATE "))
