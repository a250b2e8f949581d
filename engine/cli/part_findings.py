"""What `redeem doctor` says of workers, persister, deliverer and webhooks. docs/doctor.md lists it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from engine.health.parts import Liveness
from engine.health.parts_watch import worker_ages
from engine.health.redis_checks import Finding, Verdict
from engine.health.restarts import crash_loops, read_restarts
from engine.observability.heartbeats import SILENT_S, ProcessRole, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.health.parts import EndpointState, Ledger, PartState
    from engine.observability.heartbeats import Beat
    from engine.settings import Settings

WAIT_S_WARNING: Final = 30.0
REMEMBERED_S: Final = 3600.0
_END_IT: Final = "end it by its pid (kill -9); `redeem up`, `redeem serve` or a standby starts another"
_READ_LOG: Final = "read its log, and correct what it names"


def number_of_shards(shards: int, settings: Settings) -> Finding:
    """Return the finding about the setting of the number of shards. ``shards``: those of the deployment."""
    if shards == settings.shards:
        return Finding("deployment", Verdict.OK, f"shards: {shards}")
    says = f"the deployment has {shards} shards, but REDEEM_SHARDS is {settings.shards}"
    do = f"set REDEEM_SHARDS={shards}; or, to change the number, stop everything and run `redeem rebuild`"
    return Finding("deployment", Verdict.WRONG, says, do)


def persister(name: str, state: PartState, waiting: int) -> Finding:
    """Return the finding about the persister of a shard. ``waiting``: stream entries still to be written."""
    says = state.says()
    if state.liveness is not Liveness.ACTIVE and waiting:
        says += f"; stream entries that wait: {waiting}"
    if state.liveness is Liveness.SILENT and state.beat is None:
        return Finding(name, Verdict.WARNING, says, "wait until it has ended")
    verdict, do = _judged(state, "redeem persist (`redeem up` runs one)")
    return Finding(name, verdict, says, do)


def deliverer(ledger: Ledger) -> Finding:
    """Return the finding about the deliverer. Without endpoints, nobody misses it."""
    state, is_needed = ledger.deliverer, any(endpoint.enabled for endpoint in ledger.webhooks)
    verdict, do = _judged(state, "redeem deliver (`redeem up` runs one)")
    if is_needed or verdict is Verdict.OK:
        return Finding("deliverer", verdict, state.says(), do)
    says = f"{state.says()}; there are no webhooks to deliver"
    if state.liveness is Liveness.ABSENT:
        return Finding("deliverer", Verdict.OK, says)
    return Finding("deliverer", Verdict.WARNING, says, do)


def _judged(state: PartState, start: str) -> tuple[Verdict, str]:
    match state.liveness:
        case Liveness.ACTIVE:
            return Verdict.OK, ""
        case Liveness.STARTING:
            return Verdict.WARNING, "look again in a few seconds"
        case Liveness.FAILING:
            return Verdict.WRONG, _READ_LOG
        case Liveness.SILENT:
            return Verdict.WRONG, _END_IT
    return Verdict.WRONG, start


def workers(ledger: Ledger) -> Finding:
    """Return the finding about the workers of all machines."""
    beats = ledger.signs.of(ProcessRole.WORKER)
    if not beats:
        return Finding(
            "workers", Verdict.WRONG, "none runs: nothing is redeemed", "redeem serve, or `redeem up`"
        )
    working = sum(beat.is_fresh and beat.state == State.ACTIVE for beat in beats)
    troubles = [trouble for beat in beats if (trouble := _worker_trouble(beat))]
    says = "; ".join([f"{working} of {len(beats)} work", *troubles])
    if not troubles:
        return Finding("workers", Verdict.OK, says)
    is_silent = any(not beat.is_fresh for beat in beats)
    return Finding("workers", Verdict.WRONG, says, _END_IT if is_silent else _READ_LOG)


def _worker_trouble(beat: Beat) -> str:
    process = f"{beat.instance} (pid {beat.pid})"
    if not beat.is_fresh:
        return f"{process} is stopped, hangs or was killed: no sign of life for {beat.age_s:.0f} s"
    return "" if beat.state == State.ACTIVE else f"{process} fails: {beat.trouble}"


def restarts(run_dir: Path) -> Iterator[Finding]:
    """Yield a finding if processes of this machine end again and again, or were killed because they hung."""
    places = list(run_dir.glob("*"))
    loops = [loop for place in places for loop in crash_loops(place)]
    hung = [
        f"{name} was killed {found.hung} times because it hung, and started again"
        for place in places
        for name, found in read_restarts(place).items()
        if found.hung and time.time() - found.at < REMEMBERED_S
    ]
    if loops:
        yield Finding("restarts", Verdict.WRONG, "; ".join([*loops, *hung]), _READ_LOG)
    elif hung:
        do = "look in its log for what it did last; is the machine short of processor time or memory?"
        yield Finding("restarts", Verdict.WARNING, "; ".join(hung), do)


def local_workers(run_dir: Path) -> Finding:
    """Return the finding about the workers of this machine, while PostgreSQL cannot say where workers are."""
    directories = [place for place in run_dir.glob("*") if place.is_dir()]
    ages = {f"{place.name}/{name}": age for place in directories for name, age in worker_ages(place).items()}
    if not ages:
        says = "none is seen on this machine; others cannot be seen without PostgreSQL"
        return Finding("workers", Verdict.WARNING, says)
    silent = [f"{name} has no sign of life for {age:.0f} s" for name, age in ages.items() if age >= SILENT_S]
    says = "; ".join([f"{len(ages) - len(silent)} of {len(ages)} work on this machine", *silent])
    return Finding("workers", Verdict.WRONG if silent else Verdict.OK, says, _END_IT if silent else "")


def webhooks(endpoints: list[EndpointState]) -> Iterator[Finding]:
    """Yield a finding for each endpoint."""
    if not endpoints:
        yield Finding("webhooks", Verdict.OK, "there are none")
    for endpoint in endpoints:
        yield _webhook(endpoint)


def _webhook(endpoint: EndpointState) -> Finding:
    name = f"webhook {endpoint.id}"
    waiting = f"events that wait: {endpoint.behind}"
    if not endpoint.enabled:
        if endpoint.disabled_reason is None:
            return Finding(name, Verdict.OK, "disabled")
        says = f"disabled, because the endpoint asked for it: {endpoint.disabled_reason}"
        return Finding(name, Verdict.WARNING, says, f"redeem webhooks enable {endpoint.id}")
    if endpoint.failures:
        says = f"fails for {endpoint.failing_s or 0:.0f} s: {endpoint.error}; {waiting}"
        do = f"repair the endpoint; redeem webhooks attempts {endpoint.id} shows its answers"
        return Finding(name, Verdict.WRONG, says, do)
    if endpoint.dead_letters:
        says = f"messages that were given up: {endpoint.dead_letters}"
        return Finding(name, Verdict.WARNING, says, f"redeem webhooks dead-letters {endpoint.id}")
    if endpoint.waits_s > WAIT_S_WARNING:
        says = f"{waiting}; the oldest is {endpoint.waits_s:.0f} s old"
        return Finding(name, Verdict.WARNING, says, "look at the deliverer, and at how fast the endpoint is")
    return Finding(name, Verdict.OK, waiting if endpoint.behind else "all events are delivered")
