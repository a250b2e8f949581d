"""Blocks and allows of sources: creates, lifts and lists them. ``engine.guard`` applies them.

The audit log names a block by its id only: who was blocked is deleted with the history.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import orjson

from engine.api.checks import CLIENT_FIELD_LENGTH_MAX, check_choice, check_text, user_name
from engine.control import audit_log
from engine.control.change import Change, Changed, ControlPlane, change
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal
from engine.guard.addresses import parse_subject
from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.store import keys
from engine.times import shown_instant

if TYPE_CHECKING:
    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

KINDS: Final = ("network", "user", "device", "key")
STATES: Final = ("active", "expired", "lifted")
EVIDENCE_BYTES_MAX: Final = 4096
TTL_S_MAX: Final = 10 * 366 * 86_400
_FORGOTTEN_AT_ONCE: Final = 500
_ID: Final = re.compile(r"blk_([1-9][0-9]{0,17})")
_SQL: Final = queries(__package__, "blocks")
INSERT: Final = _SQL["insert"]


class NewBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/blocks``.

    Attributes:
        ttl_s: how long it lasts; None for until it is lifted.
        api_key: the id of the only API key that it is about; None for all.
    """

    kind: Literal["network", "user", "device", "key"]
    subject: str
    reason: str
    action: Literal["block", "allow"] = "block"
    ttl_s: int | None = None
    evidence: dict[str, Any] | None = None
    api_key: str | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A block or an allow."""

    id: int
    action: str
    kind: str
    subject: str
    reason: str
    evidence: dict[str, Any] | None
    actor: str
    created_at: datetime
    expires_at: datetime | None
    lifted_at: datetime | None
    lifted_by: str | None
    api_key: str | None

    @property
    def shown_id(self) -> str:
        """The id in the API."""
        return f"blk_{self.id}"

    @property
    def state(self) -> str:
        """One of ``STATES``."""
        if self.lifted_at is not None:
            return "lifted"
        has_expired = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return "expired" if has_expired else "active"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        shown = {
            name: shown_instant(value) if isinstance(value, datetime) else value
            for name, value in msgspec.structs.asdict(self).items()
        }
        return shown | {"id": self.shown_id, "state": self.state}


async def create(plane: ControlPlane, new: NewBlock, *, actor: str) -> Changed[Block]:
    """Block or allow a source, and publish it. ``actor`` is the id of an API key, or ``cli``.

    Raises:
        Refusal: ``malformed_request``: the subject does not fit its kind, a text has a code, a number is out
            of range, or ``blocks_max`` are in force; ``not_found``: there is no such API key.
    """
    check_text("reason", new.reason, plane.settings.reason_length_max)
    subject = normal_subject(new.kind, new.subject, plane.settings)
    if new.api_key is not None:
        check_text("api_key", new.api_key, CLIENT_FIELD_LENGTH_MAX)
    if new.ttl_s is not None and not 1 <= new.ttl_s <= TTL_S_MAX:
        raise Refusal("malformed_request", f"ttl_s must be between 1 and {TTL_S_MAX}")
    evidence = _evidence(new.evidence)

    async def write(under: Change) -> Block:
        await _refuse_codes(under.connection, plane.settings, new, evidence)
        for api_key in (subject if new.kind == "key" else None, new.api_key):
            if api_key is not None and not await under.connection.fetchval(_SQL["is_key"], api_key):
                raise Refusal("not_found", "There is no such API key.")
        most = plane.settings.blocks_max
        if await under.connection.fetchval(_SQL["in_force"]) >= most:
            raise Refusal("malformed_request", f"{most} blocks are in force: lift some, or block networks")
        values = (new.action, new.kind, subject, new.reason, evidence, actor, new.ttl_s)
        block = _block(await under.connection.fetchrow(INSERT, *values, under.version, new.api_key))
        await audit_log.record(
            under.connection,
            act=new.action,
            actor=actor,
            subject=f"block:{block.shown_id}",
            reason=new.reason,
            details={"kind": new.kind, "ttl_s": new.ttl_s},
        )
        return block

    return await change(plane, write)


async def lift(plane: ControlPlane, block_id: str, *, actor: str) -> Changed[Block]:
    """End a block or an allow. Lifting one that has ended changes nothing. ``actor``: as for ``create``.

    Raises:
        Refusal: ``not_found``.
    """
    number = require_id(block_id)

    async def write(under: Change) -> Block:
        done = await under.connection.execute(_SQL["lift"], number, actor, under.version)
        row = await under.connection.fetchrow(_SQL["get"], number)
        if row is None:
            raise _no_such_block()
        if done == "UPDATE 1":
            await audit_log.record(
                under.connection, act="lift_block", actor=actor, subject=f"block:{block_id}"
            )
        return _block(row)

    return await change(plane, write)


async def get(plane: ControlPlane, block_id: str) -> Block:
    """Return one block.

    Raises:
        Refusal: ``not_found``.
    """
    async with plane.database.connection() as connection:
        row = await connection.fetchrow(_SQL["get"], require_id(block_id))
    if row is None:
        raise _no_such_block()
    return _block(row)


async def page(
    plane: ControlPlane,
    *,
    kind: str | None = None,
    subject: str | None = None,
    state: str | None = None,
    after: int | None,
    limit: int,
) -> list[Block]:
    """Return at most ``limit`` blocks, the newest first, starting after the one with the number ``after``.

    A subject is found in each of its spellings if ``kind`` is given, too.

    Raises:
        Refusal: ``malformed_request``.
    """
    check_choice("kind", kind, KINDS)
    check_choice("state", state, STATES)
    if subject is not None and kind is not None:
        subject = normal_subject(kind, subject, plane.settings)
    before = BIGINT_MAX if after is None else after
    async with plane.database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, before, kind, subject, state)
    return [_block(row) for row in rows]


async def forget_old(plane: ControlPlane) -> None:
    """Delete blocks that ended more than ``block_history_days`` ago, first from Redis.

    Raises:
        StoreUnavailable, RedisError, OSError: a server cannot be used; what is left is deleted later.
    """
    days = plane.settings.block_history_days
    async with plane.database.connection() as connection:
        rows = await connection.fetch(_SQL["ended"], days, _FORGOTTEN_AT_ONCE)
        numbers = [row["id"] for row in rows]
        if not numbers:
            return
        fields = [f"block:{number}" for number in numbers]
        async with plane.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(keys.control_changed(), *fields)
            pipe.hdel(keys.control(), *fields)
            await pipe.execute()
        await connection.execute(_SQL["forget"], numbers)


def parse_id(text: str) -> int | None:
    """Return the number in an id of the API; None if the id is malformed."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


def require_id(text: str) -> int:
    """Return the number in an id of the API.

    Raises:
        Refusal: ``not_found``.
    """
    number = parse_id(text)
    if number is None:
        raise _no_such_block()
    return number


def normal_subject(kind: str, subject: str, settings: Settings) -> str:
    """Return a subject as the guard compares it.

    Raises:
        Refusal: ``malformed_request``: it does not fit its kind.
    """
    if kind == "network":
        network = parse_subject(subject)
        if network is None:
            raise Refusal(
                "malformed_request", "subject must be an address or a network, such as 203.0.113.0/24"
            )
        if isinstance(network, str):
            check_text("subject", network, CLIENT_FIELD_LENGTH_MAX)
        return str(network)
    if kind == "user":
        try:
            return user_name(subject, settings.user_length_max)
        except Refusal as refusal:
            raise Refusal(refusal.code, refusal.detail.replace("user", "subject", 1)) from None
    check_text("subject", subject, CLIENT_FIELD_LENGTH_MAX)
    return subject


def _evidence(evidence: dict[str, Any] | None) -> str | None:
    if evidence is None:
        return None
    try:
        text = orjson.dumps(evidence).decode()
    except orjson.JSONEncodeError:
        raise Refusal("malformed_request", "evidence is nested too deep, or has too large a number") from None
    if len(text.encode()) > EVIDENCE_BYTES_MAX or "\\u0000" in text:
        raise Refusal(
            "malformed_request", f"evidence must have at most {EVIDENCE_BYTES_MAX} bytes, and no NUL"
        )
    return text


async def _refuse_codes(
    connection: Connection, settings: Settings, new: NewBlock, evidence: str | None
) -> None:
    subject = None if new.kind == "network" else new.subject
    await refuse_codes(connection, settings, reason=new.reason, subject=subject, evidence=evidence)


def _no_such_block() -> Refusal:
    return Refusal("not_found", "There is no such block.")


def _block(row: Row) -> Block:
    values = {name: row[name] for name in Block.__struct_fields__}
    return Block(**values | {"evidence": row["evidence"] and orjson.loads(row["evidence"])})
