"""What ``redeem doctor`` says about the parts that may be compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.guard import limits
from engine.health.redis_checks import Finding, Verdict
from engine.lane.choice import HOW_TO_BUILD, chosen_lane
from engine.settings import SettingsError
from persister.ingest import entries
from persister.rebuild import idempotency_records

if TYPE_CHECKING:
    from engine.settings import Settings

_CHECK = "lane"


def check_lane(settings: Settings) -> Finding:
    """Say which lane the workers run with this installation and these settings."""
    try:
        lane = chosen_lane(settings)
    except SettingsError as error:
        return Finding(_CHECK, Verdict.WRONG, str(error), "unset REDEEM_LANE")
    if lane == "express":
        return Finding(_CHECK, Verdict.OK, "the express lane answers plain redemptions")
    if settings.lane:
        return Finding(_CHECK, Verdict.OK, f"REDEEM_LANE={lane}: the express lane is not used")
    says = f"the express lane was not built, so the python lane runs, at more cost: {HOW_TO_BUILD}"
    return Finding(_CHECK, Verdict.OK, says)


def check_limits() -> Finding:
    """Say which code counts for the limits of the guard."""
    if limits.is_built():
        return Finding("limits", Verdict.OK, "compiled code counts what sources try")
    says = f"the compiled table was not built, so Python counts what sources try: {HOW_TO_BUILD}"
    return Finding("limits", Verdict.OK, says)


def check_event_reader() -> Finding:
    """Say which code reads the events for the ledger."""
    if entries.COMPILED:
        return Finding("event reader", Verdict.OK, "compiled code reads the events for the ledger")
    says = (
        f"the compiled reader was not built, so the persister reads in Python, at more cost: {HOW_TO_BUILD}"
    )
    return Finding("event reader", Verdict.OK, says)


def check_rebuild_records() -> Finding:
    """Say which code restores the idempotency records of plain redemptions."""
    if idempotency_records.COMPILED:
        return Finding("rebuild records", Verdict.OK, "compiled code restores idempotency records")
    says = f"what restores idempotency records was not built, so Python does, at more cost: {HOW_TO_BUILD}"
    return Finding("rebuild records", Verdict.OK, says)
