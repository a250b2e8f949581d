"""The modes of the guard's rules: shows them, and changes them while the engine runs.

A mode that nobody has set is that of the settings. A change is published like a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from redis.exceptions import RedisError

from engine.control import audit_log
from engine.control.change import Change, Changed, ControlPlane, change
from engine.errors import Refusal
from engine.guard.rules import LIMITS, OFF, default_modes
from engine.queries import queries
from engine.store import keys
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.postgres_types import Connection
    from engine.settings import Settings

Mode = Literal["off", "observe", "challenge", "enforce"]
_SQL: Final = queries(__package__, "guard_rules")


class NewModes(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PUT /v1/guard/rules``: modes, by the name of the rule; None for that of the settings."""

    rules: dict[str, Mode | None]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule and its mode.

    Attributes:
        default: the mode of the settings.
        would_have: what it would have done if it had been enforced, since it was set to ``observe``; None if
            Redis cannot be asked.
        actor, changed_at: who set the mode, and when; None if it is that of the settings.
    """

    name: str
    mode: str
    default: str
    would_have: int | None
    actor: str | None
    changed_at: datetime | None

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        at = None if self.changed_at is None else shown_instant(self.changed_at)
        return msgspec.structs.asdict(self) | {"changed_at": at}


class RuleList(msgspec.Struct, frozen=True):
    """All rules."""

    rules: list[Rule]

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return {"items": [rule.document() for rule in self.rules]}


async def show(plane: ControlPlane) -> RuleList:
    """Return all rules, by the settings of this process."""
    async with plane.database.connection() as connection:
        return await _rules(plane, connection)


async def set_modes(plane: ControlPlane, modes: dict[str, Mode | None], *, actor: str) -> Changed[RuleList]:
    """Set modes of rules, and publish them. ``actor`` is the id of an API key, or ``cli``.

    Raises:
        Refusal: ``malformed_request``: there is no such rule, or it is a limit without a figure.
    """
    defaults = default_modes(plane.settings)
    for name, mode in modes.items():
        if name not in defaults:
            raise Refusal("malformed_request", f"rules must be some of: {', '.join(defaults)}")
        if name in LIMITS and mode not in {None, OFF} and not _figure(plane.settings, name):
            raise Refusal(
                "malformed_request", f"REDEEM_GUARD_{name.upper()}_PER_MIN is 0: set the limit first"
            )

    async def write(under: Change) -> RuleList:
        for name, mode in sorted(modes.items()):
            await under.connection.execute(_SQL["set"], name, mode, actor, under.version)
            await audit_log.record(
                under.connection,
                act="set_guard_rule",
                actor=actor,
                subject=f"rule:{name}",
                details={"mode": mode},
            )
        return await _rules(plane, under.connection)

    changed = await change(plane, write)
    try:
        if modes:
            await plane.redis.hdel(keys.guard_observed(), *modes)
    except (OSError, RedisError):
        pass  # it only counts on
    return changed


def _figure(settings: Settings, name: str) -> int:
    return int(getattr(settings, f"guard_{name}_per_min"))


async def _rules(plane: ControlPlane, connection: Connection) -> RuleList:
    set_by = {row["name"]: row for row in await connection.fetch(_SQL["list"])}
    defaults = default_modes(plane.settings)
    try:
        observed = {
            name.decode() if isinstance(name, bytes) else name: int(number)
            for name, number in (await plane.redis.hgetall(keys.guard_observed())).items()
        }
    except (OSError, RedisError):
        observed = None
    return RuleList(
        [
            Rule(
                name=name,
                mode=set_by[name]["mode"] if name in set_by else default,
                default=default,
                would_have=None if observed is None else observed.get(name, 0),
                actor=set_by[name]["actor"] if name in set_by else None,
                changed_at=set_by[name]["changed_at"] if name in set_by else None,
            )
            for name, default in defaults.items()
        ]
    )
