"""What `redeem doctor` says of the guard. docs/doctor.md lists it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.control.automatic_blocks import ACTOR
from engine.health.redis_checks import Finding, Verdict
from engine.observability.heartbeats import CLIENT_ADDRESSES, GUARD_SHARING, ProcessRole
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.observability.heartbeats import Signs
    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

OBSERVED_DAYS: Final = 14
_SHOWN_MAX: Final = 5  # imports
_SQL: Final = queries(__package__, "doctor")
_BLOCKS: Final = queries("engine.control", "blocks")


async def examine(database: Connection, settings: Settings, signs: Signs) -> list[Finding]:
    """Return the findings about workers, alerts, blocks and rules."""
    in_force = await database.fetchval(_BLOCKS["in_force"])
    automatic = await database.fetchval(_BLOCKS["in_force_by"], ACTOR)
    open_alerts = {row["rule"]: row["number"] for row in await database.fetch(_SQL["open_alerts"])}
    observed = {
        row["name"]: row["days"] for row in await database.fetch(_SQL["observed_rules"], OBSERVED_DAYS)
    }
    return [
        _of_workers(signs, GUARD_SHARING, "workers tell each other what sources try", _NOT_SHARED),
        _of_workers(signs, CLIENT_ADDRESSES, "no header with a client's address is ignored", _IGNORED),
        _blocks(in_force, automatic, settings),
        _alerts(open_alerts),
        _imports(await database.fetch(_SQL["unmeasured_imports"])),
        *_rules(observed),
    ]


_NOT_SHARED: Final = (
    "each worker decides alone",
    "read its log; may the user in REDEEM_REDIS_URL write the keys {s0}:guard:* (ACL LIST)?",
)
_IGNORED: Final = (
    "the header with the client's address came from a peer that is no trusted proxy",
    "if that is your proxy, add its network to REDEEM_TRUSTED_PROXIES; else somebody goes past your proxy",
)


def _of_workers(signs: Signs, check: str, well: str, trouble: tuple[str, str]) -> Finding:
    """Return the finding about what workers have noted in their signs of life."""
    means, do = trouble
    noted = [
        f"{beat.instance}: {beat.notes[check]}"
        for beat in signs.of(ProcessRole.WORKER)
        if beat.is_fresh and check in beat.notes
    ]
    if not noted:
        return Finding(check, Verdict.OK, well)
    return Finding(check, Verdict.WARNING, f"{means}; {'; '.join(noted)}", do)


def _blocks(in_force: int, automatic: int, settings: Settings) -> Finding:
    name, says = "guard blocks", f"in force: {in_force}, of which the guard made {automatic}"
    if in_force >= settings.blocks_max:
        do = "block networks instead of addresses, remove blocks, or raise REDEEM_BLOCKS_MAX"
        return Finding(name, Verdict.WARNING, f"{says}: nobody can add more", do)
    if automatic >= settings.guard_blocks_max:
        do = "redeem blocks list --state active; block networks instead, or raise REDEEM_GUARD_BLOCKS_MAX"
        return Finding(name, Verdict.WARNING, f"{says}: no more automatic blocks", do)
    return Finding(name, Verdict.OK, says)


def _alerts(open_alerts: dict[str, int]) -> Finding:
    if not open_alerts:
        return Finding("guard alerts", Verdict.OK, "none is open")
    says = ", ".join(f"{rule} ({number})" for rule, number in open_alerts.items())
    return Finding("guard alerts", Verdict.WARNING, f"open: {says}", "redeem guard alerts --state open")


def _imports(unmeasured: list[Row]) -> Finding:
    name = "guard imports"
    if not unmeasured:
        return Finding(name, Verdict.OK, "every import was measured: can its codes be guessed?")
    shown = ", ".join(f"{row['id']} of {row['campaign']}" for row in unmeasured[:_SHOWN_MAX])
    more = f" and {len(unmeasured) - _SHOWN_MAX} more" if len(unmeasured) > _SHOWN_MAX else ""
    says = f"not measured, because an earlier version imported them: {shown}{more}"
    do = "send the same file again: redeem codes import CAMPAIGN FILE; it changes nothing else"
    return Finding(name, Verdict.WARNING, says, do)


def _rules(observed: dict[str, int]) -> Iterator[Finding]:
    for name, days in observed.items():
        says = f"only observed for {days} days: it finds, and refuses nobody"
        do = f"redeem guard rules list; then redeem guard rules set {name} enforce, or off"
        yield Finding(f"guard rule {name}", Verdict.WARNING, says, do)
