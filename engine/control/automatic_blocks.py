"""Makes the blocks that the guard decides by itself. PostgreSQL is their truth, as for blocks by ops.

The worker that saw the last attempt makes the block at once. The others make it a moment later if it is not
there then: so a worker that is killed meanwhile loses no block. A finding makes one block, whoever is first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any, Final

import orjson

from engine.control import audit_log, blocks
from engine.control.change import Change, ControlPlane, change
from engine.control.stored_texts import refuse_codes
from engine.errors import Fault, Refusal
from engine.guard.addresses import parse_network
from engine.guard.rules import PROXY_NOT_CONFIGURED, SCORE
from engine.observability.metrics import GUARD_BLOCKS
from engine.queries import queries

if TYPE_CHECKING:
    from engine.guard.guard import Guard
    from engine.guard.suspects import Suspicion
    from engine.settings import Settings

_log = logging.getLogger(__name__)
ACTOR: Final = "guard"
LATER_S: Final = 1.0
OLDEST_S: Final = 60.0  # a finding that is older than this blocks nobody any more
AT_ONCE: Final = 50
PROXY_STOPS_S: Final = 3600.0  # after the latest sign of a proxy that is not configured
WAITING_MAX: Final = 1 << 16  # findings; beyond it the oldest are dropped
_random: Final = random.SystemRandom()
_SQL: Final = queries(__package__, "blocks")


async def keep_blocking(plane: ControlPlane, guard: Guard) -> None:
    """Block what the rules find, until cancelled. While PostgreSQL is away, findings wait."""
    loop = asyncio.get_running_loop()
    behaviour = guard.behaviour
    waiting: list[tuple[float, Suspicion]] = []
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min((at for at, _ in waiting), default=None)):
                await behaviour.has_found.wait()
        behaviour.has_found.clear()
        while behaviour.found:
            finding, is_own = behaviour.found.popleft()
            waiting.append((loop.time() + (0.0 if is_own else LATER_S), finding))
        del waiting[:-WAITING_MAX]
        due = [finding for at, finding in waiting if at <= loop.time()][:AT_ONCE]
        if not due:
            continue
        try:
            await block(plane, guard, due)
        except (Fault, OSError) as error:
            _log.warning("blocks cannot be made", extra={"reason": str(error)})
            await asyncio.sleep(LATER_S)
            continue
        done = {id(finding) for finding in due}
        waiting = [(at, finding) for at, finding in waiting if id(finding) not in done]


async def block(plane: ControlPlane, guard: Guard, findings: list[Suspicion]) -> None:
    """Block the sources of findings, all in one change.

    Left out are sources that are blocked or allowed, what has led to a block before, and addresses that may
    be that of a proxy which is not configured.

    Raises:
        Fault: as ``change``.
    """
    free = [finding for finding in findings if guard.block_of(finding.source) is None]
    async with plane.database.connection() as connection:
        now_s = await connection.fetchval(_SQL["now"])
        new = [
            one
            for one in free
            if one.at_s > now_s - OLDEST_S
            and not (await _before(connection, one))[1]
            and not await _may_be_proxy(connection, plane.settings, one)
        ]
    if not new:
        return

    async def write(under: Change) -> list[Suspicion]:
        room = plane.settings.guard_blocks_max - await under.connection.fetchval(_SQL["in_force_by"], ACTOR)
        made: list[Suspicion] = []
        for finding in new:
            number, is_done = await _before(under.connection, finding)
            if not is_done and len(made) < room and await _is_free_of_codes(under.connection, plane, finding):
                await _insert(under, plane.settings, finding, number)
                made.append(finding)
        if room <= 0:
            _log.error("no more automatic blocks", extra={"in_force": plane.settings.guard_blocks_max})
        return made

    for finding in (await change(plane, write)).value:
        GUARD_BLOCKS.labels(finding.rule).inc()
        guard.behaviour.tell_of_block(finding)
        _log.warning(
            "a source is blocked", extra={"rule": finding.rule, "kind": finding.source[1], **_counts(finding)}
        )


async def _before(connection: Any, finding: Suspicion) -> tuple[int, bool]:  # noqa: ANN401 - of asyncpg
    api_key, kind, subject = finding.source
    row = await connection.fetchrow(_SQL["made_before"], kind, subject, api_key, finding.at_s, ACTOR)
    return row["number"], row["is_done"]


async def _may_be_proxy(connection: Any, settings: Settings, finding: Suspicion) -> bool:  # noqa: ANN401 - of asyncpg
    """Whether all customers may have this address, because nobody said which proxies stand in front."""
    api_key, kind, _ = finding.source
    if kind != "network" or settings.trusted_proxies:
        return False
    found = await connection.fetchval(_SQL["is_behind_proxy"], api_key, PROXY_NOT_CONFIGURED, PROXY_STOPS_S)
    return bool(found)


async def _is_free_of_codes(connection: Any, plane: ControlPlane, finding: Suspicion) -> bool:  # noqa: ANN401 - of asyncpg
    _, kind, subject = finding.source
    if kind == "network" and parse_network(subject):
        return True
    try:
        await refuse_codes(connection, plane.settings, subject=subject)
    except Refusal:
        return False
    return True


async def _insert(under: Change, settings: Settings, finding: Suspicion, number: int) -> None:
    api_key, kind, subject = finding.source
    ttl_s = block_s(settings, finding.block_s, number)
    evidence = orjson.dumps(finding.evidence).decode()
    values = ("block", kind, subject, _reason(finding), evidence, ACTOR, ttl_s, under.version, api_key)
    made = await under.connection.fetchrow(blocks.INSERT, *values)
    await audit_log.record(
        under.connection,
        act="block",
        actor=ACTOR,
        subject=f"block:blk_{made['id']}",
        reason=_reason(finding),
        details={"kind": kind, "ttl_s": ttl_s, "rule": finding.rule},
    )


def block_s(settings: Settings, asked_s: int, number: int) -> int:
    """Return how long a block lasts that is the source's ``number + 1``-th within the history."""
    first = asked_s or settings.guard_block_s
    doubled = min(first << min(number, 20), max(settings.guard_block_s_max, asked_s))
    part = settings.guard_block_jitter_percent / 100
    return max(1, round(doubled * _random.uniform(1 - part, 1 + part)))


def _reason(finding: Suspicion) -> str:
    seen = finding.evidence
    codes = f"{seen['unknown']} different codes that were never issued, within {seen['seconds']} s"
    return f"{codes}: score {seen['score']}" if finding.rule == SCORE else f"{codes}, and fewer successes"


def _counts(finding: Suspicion) -> dict[str, object]:
    return {name: finding.evidence[name] for name in ("unknown", "seconds", "score")}
